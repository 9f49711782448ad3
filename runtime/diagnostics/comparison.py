"""What one format of a model's weights loses against another: both run over a text, layer after layer.

All tokens pass a layer before the next one is read. So each weight is read once, and neither format has to fit into
memory whole.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files

import torch
import torch.nn.functional as F
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.decoder_layer import build_layer, resident_experts
from dslite.model.network import output_logits
from dslite.model.quantized import QuantizedMatrix, Weight, plain
from dslite.model.quantized_layout import Weights
from dslite.model.rope import amplitude, inverse_frequencies, rotation
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.engine_loader import pick_threads
from dslite.runtime.errors import UsageError
from dslite.runtime.text.tokenizer import Tokenizer
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.open_checkpoint import open_checkpoint

WINDOW = 512  # tokens of the text that are read together
_ROWS = 64  # tokens scored at once
_TEXT = "comparison.txt"


@dataclass(frozen=True)
class Comparison:
    """Divergences in nats, over the tokens that have a next one in their window."""

    tokens: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    perplexity: float
    perplexity_against: float
    seconds: float


def shipped_text() -> str:
    """English, Chinese and code."""
    return (files("dslite.assets") / _TEXT).read_text(encoding="utf-8")


def compare_formats(
    ref: ModelRef,
    tested: Weights,
    against: Weights,
    text: str | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> Comparison:
    """Compare two formats of a model over a text, by default the one that ships. Raises DsliteError."""
    own, other = (open_checkpoint(ref, weights, pack=False) for weights in (tested, against))
    tokenizer = Tokenizer.from_folder(own.folder)
    ids = tokenizer.encode(shipped_text() if text is None else text)
    torch.set_num_threads(pick_threads(None, own.nbytes))
    return compare(own, other, ids, torch.bfloat16, report)


@torch.inference_mode()
def compare(
    tested: Checkpoint,
    against: Checkpoint,
    ids: list[int],
    dtype: torch.dtype,
    report: Callable[[int, int], None] = lambda *_: None,
) -> Comparison:
    """Run token ids through both on the CPU; `report` gets layers that are done, and all. Raises UsageError."""
    if len(ids) < 2:
        raise UsageError("the text has fewer than two tokens", "give a longer one")
    began = time.perf_counter()
    layers = tested.config.num_hidden_layers
    passes = [_LayerwiseRun(checkpoint, ids, dtype) for checkpoint in (tested, against)]
    for layer in range(layers):
        for each in passes:
            each.run(layer)
        report(layer + 1, layers)
    rows = [
        _judge(own, other, passes[0].targets[start : start + _ROWS])
        for start, (own, other) in _numbered(zip(*(each.logprobs() for each in passes), strict=True))
    ]
    divergence, agreeing, own_loss, other_loss = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return Comparison(
        tokens=len(ids),
        kl_mean=float(divergence.mean()),
        kl_p99=float(divergence.quantile(0.99)),
        top1_agreement=float(agreeing.float().mean()),
        perplexity=float(own_loss.mean().exp()),
        perplexity_against=float(other_loss.mean().exp()),
        seconds=time.perf_counter() - began,
    )


def _numbered(pairs: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Each group of rows with the number of its first one."""
    start = 0
    for pair in pairs:
        yield start, pair
        start += len(pair[0])


def _judge(tested: Tensor, against: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of log-probabilities (T, V): KL of `tested` from `against`, same first choice, both losses; all (T,)."""
    divergence = F.kl_div(tested.double(), against.double(), log_target=True, reduction="none").sum(-1)
    agreeing = tested.argmax(-1) == against.argmax(-1)
    own, other = (-scores.gather(1, targets[:, None])[:, 0] for scores in (tested, against))
    return divergence, agreeing, own, other


class _LayerwiseRun:
    """The tokens on their way through one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, ids: list[int], dtype: torch.dtype) -> None:
        self._checkpoint, self._dtype, config = checkpoint, dtype, checkpoint.config
        windows = [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
        windows = [window for window in windows if len(window) > 1]
        self._counts = [len(window) for window in windows]
        self.targets = torch.tensor([token for window in windows for token in window[1:]])
        self._latents = [LatentKVCache(config, count, dtype=dtype) for count in self._counts]
        positions = torch.cat([torch.arange(count) for count in self._counts])
        self._factors = rotation(positions, inverse_frequencies(config), amplitude(config))
        tokens = torch.tensor([token for window in windows for token in window])
        self._hidden = F.embedding(tokens, plain(checkpoint.weight("model.embed_tokens.weight"))).to(dtype)

    def _take(self, name: str) -> Weight:
        weight = self._checkpoint.weight(name)
        return weight if isinstance(weight, QuantizedMatrix) else weight.to(self._dtype)

    def run(self, index: int) -> None:
        """One layer; its pages leave memory afterwards."""
        config = self._checkpoint.config
        layer = build_layer(config, index, self._take, lambda index: resident_experts(config, index, self._take))
        spans = [Span(latents, count) for latents, count in zip(self._latents, self._counts, strict=True)]
        self._hidden = layer(self._hidden, self._factors, spans, "expanded")
        self._checkpoint.check()
        del layer
        self._checkpoint.unmap()

    def logprobs(self) -> Iterator[Tensor]:
        """Log-probabilities (T, V) of the tokens that have a next one, some rows at a time."""
        eps = self._checkpoint.config.rms_norm_eps
        norm, head = plain(self._take("model.norm.weight")), self._take("lm_head.weight")
        if isinstance(head, QuantizedMatrix) and self._dtype is torch.float32:
            head = head.dequantize()
        scored = torch.cat([states[:-1] for states in self._hidden.split(self._counts)])
        for rows in scored.split(_ROWS):
            yield output_logits(rows, norm, head, eps).log_softmax(-1)
