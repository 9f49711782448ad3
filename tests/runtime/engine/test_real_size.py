"""A dense and a MoE layer at the real sizes of DeepSeek-V2-Lite, in bfloat16, against transformers in float32."""

from collections.abc import Iterator

import pytest
import torch
from support.checkpoints import load_model, write_checkpoint
from support.forward import new_cache, random_ids
from support.oracle import Oracle
from support.reference import golden
from torch import Tensor

from dslite.model.attention import Form, Span
from dslite.model.transformer import Transformer

pytestmark = pytest.mark.slow

TOLERANCE = 1e-2  # |ours - oracle's| / |oracle's|, Euclidean norms over all positions
COUNT = 64

Case = tuple[Transformer, list[int], Tensor, Tensor]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """The network, token ids, and the oracle's hidden states (T, D) behind its layers and logits (T, V).

    3.0 GB on disk; the oracle, with the same bfloat16 weights in float32, takes 6 GB of memory.
    """
    config = golden("deepseek-v2-lite.config.json") | {"num_hidden_layers": 2}
    folder = tmp_path_factory.mktemp("lite")
    write_checkpoint(folder, config, seed=1, std=0.02, dtype=torch.bfloat16, tokenizer=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    ids = random_ids(COUNT, config["vocab_size"])
    hidden, logits = Oracle(folder).hidden_and_logits(ids)
    yield load_model(folder, torch.bfloat16), ids, hidden, logits
    torch.set_num_threads(threads)
    (folder / "model.safetensors").unlink()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
def test_a_full_size_layer_pair_in_bfloat16_is_within_a_hundredth_of_float32(case: Case, form: Form) -> None:
    model, ids, expected_hidden, expected_logits = case

    with torch.inference_mode():
        hidden = model.forward(torch.tensor(ids), [Span(new_cache(model, COUNT), COUNT)], form)
        logits = model.logits(hidden)

    assert relative_error(hidden, expected_hidden) <= TOLERANCE
    assert relative_error(logits, expected_logits) <= TOLERANCE


def test_tokens_read_one_by_one_at_full_size_are_within_a_hundredth_of_float32(case: Case) -> None:
    model, ids, expected_hidden, _ = case
    cache = new_cache(model, COUNT)

    with torch.inference_mode():
        rows = [model.forward(torch.tensor(ids[:-8]), [Span(cache, COUNT - 8)])]
        rows += [model.forward(torch.tensor([token_id]), [Span(cache, 1)]) for token_id in ids[-8:]]

    assert relative_error(torch.cat(rows)[-8:], expected_hidden[-8:]) <= TOLERANCE
