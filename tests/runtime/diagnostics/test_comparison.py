"""What is said about the loss of quantized weights equals what two whole networks give."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import tiny_config, write_checkpoint

from dslite.model.attention import Span
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.diagnostics.comparison import WINDOW, compare, compare_formats, shipped_text
from dslite.runtime.downloads.hub import parse_model
from dslite.runtime.errors import UsageError
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.loader import load
from dslite.runtime.weights.quantized_checkpoint import QuantizingCheckpoint

CPU = torch.device("cpu")
VOCABULARY = 100


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(num_hidden_layers=3)))


def logprobs(checkpoint: Checkpoint, ids: list[int]) -> torch.Tensor:
    model = load(checkpoint, device=CPU, dtype=torch.float32)
    latents = LatentKVCache(model.config, len(ids), dtype=torch.float32)
    with torch.inference_mode():
        return model.logits(model.forward(torch.tensor(ids), [Span(latents, len(ids))]))[:-1].log_softmax(-1)


def test_layer_after_layer_equals_two_whole_networks(published: Checkpoint) -> None:
    ids = torch.randint(3, VOCABULARY, (WINDOW + 90,), generator=torch.Generator().manual_seed(3)).tolist()
    found = compare(QuantizingCheckpoint(published, "int4"), published, ids, torch.float32)
    windows = [ids[:WINDOW], ids[WINDOW:]]
    own = torch.cat([logprobs(QuantizingCheckpoint(published, "int4"), part) for part in windows]).double()
    other = torch.cat([logprobs(published, part) for part in windows]).double()
    divergence = (other.exp() * (other - own)).sum(-1)
    assert found.tokens == len(ids)
    assert found.kl_mean == pytest.approx(float(divergence.mean()), rel=1e-3)
    assert found.kl_p99 == pytest.approx(float(divergence.quantile(0.99)), rel=1e-3)
    assert found.kl_mean > 1e-4
    targets = torch.tensor([token for part in windows for token in part[1:]])[:, None]
    assert found.perplexity == pytest.approx(float((-own.gather(1, targets)).mean().exp()), rel=1e-4)
    assert found.perplexity_against == pytest.approx(float((-other.gather(1, targets)).mean().exp()), rel=1e-4)
    assert found.top1_agreement == pytest.approx(float((own.argmax(-1) == other.argmax(-1)).float().mean()))


def test_a_format_does_not_differ_from_itself(published: Checkpoint) -> None:
    found = compare(published, published, list(range(3, 60)), torch.float32)
    assert (found.kl_mean, found.top1_agreement) == (0.0, 1.0)
    assert found.perplexity == found.perplexity_against


def test_the_text_that_ships_has_english_chinese_and_code() -> None:
    text = shipped_text()
    for part in ("lighthouse", "计算机", "def transfer", "#include"):
        assert part in text


def test_one_token_is_too_few(published: Checkpoint) -> None:
    with pytest.raises(UsageError, match="fewer than two tokens"):
        compare(published, published, [5], torch.float32)


def test_the_demo_model_hardly_loses_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DSLITE_CACHE_DIR", str(tmp_path))
    found = compare_formats(parse_model("demo"), "int8", "bfloat16", "How do I save a profile? What does --json do?")
    assert found.kl_mean < 0.02
