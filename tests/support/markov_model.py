"""Checkpoints with known answers: a table names the token that follows each token.

Attention and experts add nothing, so the hidden state is the last token's embedding (a one-hot vector), and the output
matrix holds the table. The real network and the real engine compute the answers.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from support.checkpoints import tiny_config, write_checkpoint
from support.tokenizers import EOS_ID, VOCAB_SIZE

EOS = "end"


def write_markov_model(folder: Path, successors: Mapping[str, str], *, damaged: bool = False) -> Path:
    """A model folder. Keys are one-byte tokens; EOS ends the answer; a token that the table does not name precedes `a`.

    `damaged` puts a NaN into the output matrix.
    """
    config = tiny_config(hidden_size=VOCAB_SIZE)
    following = {ord(token): EOS_ID if after == EOS else ord(after) for token, after in successors.items()}
    tensors = {}
    for name, shape in parameter_shapes(ModelConfig.from_dict(config)).items():
        tensors[name] = torch.ones(shape) if len(shape) == 1 else torch.zeros(shape)
    tensors["model.embed_tokens.weight"] = torch.eye(VOCAB_SIZE)
    head = torch.zeros(VOCAB_SIZE, VOCAB_SIZE)  # (next, last)
    for token in range(VOCAB_SIZE):
        head[following.get(token, ord("a")), token] = 2.0
    if damaged:
        head[0, 0] = float("nan")
    tensors["lm_head.weight"] = head
    return write_checkpoint(folder, config, tensors=tensors)
