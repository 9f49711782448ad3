"""The same tokens in other portions, forms and company give the same log-probabilities."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import load_model, tiny_config, write_checkpoint
from support.forward import new_cache, random_ids, read, read_batch, read_once
from support.oracle import Oracle
from torch import Tensor

from dslite.model.attention import Form, Span
from dslite.model.moe import MoE
from dslite.model.transformer import Transformer

TOLERANCE = 2e-5
COUNT = 48  # tokens
FORMS: list[Form] = ["auto", "expanded", "absorbed"]


@dataclass
class Case:
    """A network, token ids, and transformers' log-probabilities (T, V) of them."""

    model: Transformer
    ids: list[int]
    expected: Tensor

    def __repr__(self) -> str:
        return "Case"  # hypothesis prints what it calls a test with


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(q_lora_rank=24), seed=1, tokenizer=False)
    model, oracle = load_model(folder), Oracle(folder)
    ids = random_ids(COUNT, model.config.vocab_size)
    return Case(model, ids, oracle.logprobs(ids))


@st.composite
def portions(draw: st.DrawFn) -> list[tuple[int, Form]]:
    """Sizes that sum to COUNT, each with a form."""
    cuts = sorted(draw(st.sets(st.integers(1, COUNT - 1), max_size=COUNT - 1)))
    return [(end - start, draw(st.sampled_from(FORMS))) for start, end in zip([0, *cuts], [*cuts, COUNT], strict=True)]


@given(portions())
@settings(max_examples=40)
def test_any_chunking_in_any_forms_gives_the_logprobs_of_one_shot(case: Case, portions: list[tuple[int, Form]]) -> None:
    model, ids, expected = case.model, case.ids, case.expected
    cache = new_cache(model, COUNT)

    for size, form in portions:
        start = cache.length
        logprobs = read(model, cache, ids[start : start + size], form)
        assert (logprobs - expected[start : start + size]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("form", FORMS)
def test_token_by_token_gives_the_logprobs_of_one_shot(case: Case, form: Form) -> None:
    model, ids, expected = case.model, case.ids, case.expected
    cache = new_cache(model, COUNT)

    for place, token_id in enumerate(ids):
        logprobs = read(model, cache, [token_id], form)
        assert (logprobs[0] - expected[place]).abs().max() <= TOLERANCE


@given(st.integers(0, COUNT), st.integers(0, COUNT), st.sampled_from(FORMS))
def test_truncate_and_go_on_gives_the_logprobs_of_a_fresh_start(case: Case, keep: int, extra: int, form: Form) -> None:
    model, ids, expected = case.model, case.ids, case.expected
    cache = new_cache(model, 2 * COUNT + 1)
    read(model, cache, ids[:keep] + random_ids(extra + 1, model.config.vocab_size, seed=9))

    cache.truncate(keep)

    if keep < COUNT:
        assert (read(model, cache, ids[keep:], form) - expected[keep:]).abs().max() <= TOLERANCE
    assert cache.length == COUNT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("counts", [(1, 1, 1), (1, 9, 2), (16, 3, 1), (30, 1, 17)])
def test_sequences_decoded_together_get_the_logprobs_that_each_gets_alone(
    case: Case, counts: tuple[int, ...], form: Form
) -> None:
    model = case.model
    vocab_size = model.config.vocab_size
    pasts = [random_ids(past, vocab_size, seed=past) for past in (0, 5, 23)]
    news = [random_ids(count, vocab_size, seed=40 + place) for place, count in enumerate(counts)]
    caches = [new_cache(model, 64) for _ in pasts]
    for cache, past in zip(caches, pasts, strict=True):
        if past:
            read(model, cache, past)

    together = read_batch(model, list(zip(caches, news, strict=True)), form)

    for cache, past, new, logprobs in zip(caches, pasts, news, together, strict=True):
        alone = read_once(model, past + new)[len(past) :]
        assert (logprobs - alone).abs().max() <= TOLERANCE
        assert cache.length == len(past) + len(new)


@given(portions())
@settings(max_examples=40)
def test_the_last_token_alone_gets_the_logprobs_that_it_gets_with_the_others(
    case: Case, portions: list[tuple[int, Form]]
) -> None:
    model, ids, expected = case.model, torch.tensor(case.ids), case.expected
    cache = new_cache(model, COUNT)

    for size, form in portions:
        start = cache.length
        with torch.inference_mode():
            hidden = model.forward(ids[start : start + size], [Span(cache, size)], form, last_only=True)
            logprobs = model.logits(hidden).log_softmax(-1)
        assert (logprobs - expected[start + size - 1]).abs().max() <= TOLERANCE
        assert logprobs.shape[0] == 1
        assert cache.length == start + size


@pytest.mark.parametrize("counts", [(20, 9, 30), (1, 18, 1), (2, 1, 3)])
def test_the_last_token_of_each_sequence_is_computed_without_the_others_in_the_last_layer(
    case: Case, counts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = case.model
    news = [random_ids(count, model.config.vocab_size, seed=count) for count in counts]
    rows: list[int] = []
    run = MoE.__call__

    def watch(self: MoE, hidden: Tensor) -> Tensor:
        rows.append(len(hidden))
        return run(self, hidden)

    monkeypatch.setattr(MoE, "__call__", watch)
    spans = [Span(new_cache(model, 64), count) for count in counts]
    with torch.inference_mode():
        hidden = model.forward(torch.tensor([token_id for new in news for token_id in new]), spans, last_only=True)
        logprobs = model.logits(hidden).log_softmax(-1)
    alone = torch.stack([read_once(model, new)[-1] for new in news])

    assert (logprobs - alone).abs().max() <= TOLERANCE
    layers = sum(model.config.is_moe(layer) for layer in range(model.config.num_hidden_layers))
    assert rows[:layers] == [sum(counts)] * (layers - 1) + [len(counts)]


def test_a_pass_that_is_dropped_between_layers_leaves_the_cache_as_it_was(case: Case) -> None:
    model, ids, expected = case.model, case.ids, case.expected
    cache = new_cache(model, COUNT)
    read(model, cache, ids[:20])

    done: list[int] = []

    def leave(layers: int) -> None:
        done.append(layers)
        if layers == 2:
            raise InterruptedError

    more = torch.tensor(random_ids(10, model.config.vocab_size, seed=9))
    with torch.inference_mode(), pytest.raises(InterruptedError):
        model.forward(more, [Span(cache, 10)], on_layer=leave)
    assert done == [1, 2]

    assert cache.length == 20
    assert (read(model, cache, ids[20:]) - expected[20:]).abs().max() <= TOLERANCE
