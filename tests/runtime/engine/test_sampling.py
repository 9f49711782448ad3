"""The drawing of tokens, against a reference that is as slow and plain as can be."""

import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.fake_cuda import CUDA, cuda_guard
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dslite.runtime.engine import sampling
from dslite.runtime.engine.sampling import Sampler, check_finite, score
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import NumericsError, UsageError

# Distances between logits keep the reference's cuts away from rounding.
LOGITS = st.lists(st.integers(-60, 60), min_size=1, max_size=40, unique=True).map(lambda ns: [n / 8 for n in ns])
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.1, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1e-6, 0.3, 0.8, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 1000]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)


def chances(params: SamplingParams, logits: Tensor, prompt_ids: Sequence[int] = ()) -> dict[int, float]:
    """Token → chance of what a sampler would draw."""
    kept, ids = Sampler(params, prompt_ids, len(logits)).candidates(logits)
    return dict(zip(ids.tolist(), (kept / kept.sum()).tolist(), strict=True))


def reference(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """Token → chance by the definitions: temperature, then top-k, then top-p of what is left, then min-p."""
    heights = [math.exp((value - max(logits)) / params.temperature) for value in logits]
    order = sorted(range(len(logits)), key=lambda token: -heights[token])
    order = order[: params.top_k or len(order)]
    total = sum(heights[token] for token in order)
    kept: dict[int, float] = {}
    before = 0.0
    for token in order:
        assume(abs(before - params.top_p) > 1e-5)
        assume(abs(heights[token] - params.min_p) > 1e-5 or params.min_p == 1.0)
        if before < params.top_p and heights[token] >= params.min_p:
            kept[token] = heights[token]
        before += heights[token] / total
    return {token: height / sum(kept.values()) for token, height in kept.items()}


@given(LOGITS, PARAMS)
def test_filters_leave_the_tokens_and_chances_of_the_definitions(logits: list[float], params: SamplingParams) -> None:
    expected = reference(logits, params)

    drawn = chances(params, torch.tensor(logits))

    # A chance that is lost in the rounding of the others may be there or not.
    likely = {token: chance for token, chance in expected.items() if chance > 1e-6}
    assert {token: chance for token, chance in drawn.items() if chance > 1e-6} == pytest.approx(likely, abs=1e-6)


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999])
def test_top_p_looks_beyond_its_first_candidates_where_the_vocabulary_is_flat(top_p: float) -> None:
    logits = torch.linspace(0, 1, 1200)
    params = SamplingParams(temperature=1, top_p=top_p)

    drawn = chances(params, logits)

    probabilities = logits.double().softmax(-1)
    assert sum(probabilities[token] for token in drawn) >= top_p
    assert sum(probabilities[token] for token in list(drawn)[:-1]) < top_p


def test_temperature_zero_takes_the_best_token() -> None:
    logits = torch.tensor([0.0, 3.0, 2.9])

    assert [Sampler(SamplingParams(temperature=0), [], 3).sample(logits) for _ in range(5)] == [1] * 5


@pytest.mark.parametrize("temperature", [1e-6, 1e-20, 1e-40, 5e-324])
def test_a_temperature_next_to_zero_takes_the_best_token_too(temperature: float) -> None:
    logits = torch.tensor([-400.0, 30.0, 29.9])

    assert Sampler(SamplingParams(temperature=temperature, seed=1), [], 3).sample(logits) == 1


@given(st.integers(1, 30), st.integers(0, 5))
def test_rows_without_a_token_are_never_drawn(n_tokens: int, padding: int) -> None:
    logits = torch.cat([torch.zeros(n_tokens), torch.full((padding,), 50.0)])

    for temperature in (0.0, 1.0):
        assert Sampler(SamplingParams(temperature=temperature, seed=0), [], n_tokens).sample(logits) < n_tokens


def test_the_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    params = SamplingParams(temperature=1, top_p=1, repetition_penalty=2)
    logits = torch.tensor([4.0, 3.0, -1.0, -1.5])

    drawn = chances(params, logits, [0, 2])

    assert drawn == pytest.approx(dict(enumerate(torch.tensor([2.0, 3.0, -2.0, -1.5]).softmax(-1).tolist())))
    assert logits.tolist() == [4.0, 3.0, -1.0, -1.5], "the caller's logits stay raw: their log-probabilities are told"


def test_the_repetition_penalty_counts_generated_tokens() -> None:
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2), [], 3)
    logits = torch.tensor([4.0, 3.0, 1.9])

    assert [sampler.sample(logits) for _ in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("params", [{"top_p": 1.0}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.2, "top_p": 1.0}])
def test_tokens_are_drawn_as_often_as_their_chances_say(params: dict[str, float]) -> None:
    """Chi-squared over 6,000 draws of one seed: 99.99 % of fair samplers stay below 26 with up to six tokens."""
    logits = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.0, -2.0])
    sampler = Sampler(SamplingParams(temperature=1.0, seed=11, **params), [], 6)  # type: ignore[arg-type]
    counts = np.bincount([sampler.sample(logits) for _ in range(6000)], minlength=6)
    expected = chances(SamplingParams(temperature=1.0, **params), logits)  # type: ignore[arg-type]
    assert {token for token in range(6) if counts[token]} == set(expected)
    assert sum((counts[token] - 6000 * p) ** 2 / (6000 * p) for token, p in expected.items()) < 26


@given(LOGITS, PARAMS, st.integers(0, 2**63 - 1), st.randoms(use_true_random=False))
def test_last_bits_that_change_the_order_of_candidates_change_no_draw(
    logits: list[float], params: SamplingParams, seed: int, random: Random
) -> None:
    """Every value stands twice, and noise below a kernel's decides which of the two sorts first."""
    drawn = SamplingParams(temperature=params.temperature, top_p=1.0, min_p=params.min_p, seed=seed)
    doubled = torch.tensor([*logits, *logits])
    noisy = doubled + torch.tensor([random.choice([-1e-6, 1e-6]) for _ in doubled])
    one, other = (Sampler(drawn, [], len(doubled)) for _ in range(2))
    assume(drawn.min_p < 1)  # which keeps the best one alone: one of two
    assert [one.sample(doubled) for _ in range(8)] == [other.sample(noisy) for _ in range(8)]


def test_an_answer_that_is_continued_draws_what_it_would_have_drawn() -> None:
    params = SamplingParams(temperature=1, seed=5)
    logits = torch.randn(64, generator=torch.Generator().manual_seed(0))
    whole = Sampler(params, [1, 2, 3], 64)
    text = [whole.sample(logits) for _ in range(12)]
    rest = Sampler(params, [1, 2, 3, *text[:5]], 64)
    assert [rest.sample(logits) for _ in range(7)] == text[5:]


def test_the_noise_of_a_token_depends_on_no_other_candidate() -> None:
    """Another filter changes who takes part: where the winner still does, it wins again."""
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 2
    for seed in range(50):
        wide = Sampler(SamplingParams(temperature=1, top_p=1.0, seed=seed), [], 500).sample(logits)
        narrow = Sampler(SamplingParams(temperature=1, top_p=0.8, seed=seed), [], 500)
        if wide in narrow.candidates(logits)[1]:
            assert narrow.sample(logits) == wide


def test_a_seed_reproduces_and_another_one_differs() -> None:
    logits = torch.zeros(1000)

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1, top_p=1, seed=seed), [], 1000)
        return [sampler.sample(logits) for _ in range(20)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, 2.1, math.nan, math.inf]),
        ("top_p", [0, -1, 1.1, math.nan]),
        ("top_k", [-1]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("repetition_penalty", [0, -1, 11, math.nan]),
        ("seed", [-1, 2**63]),
        ("max_tokens", [-1]),
    ],
)
def test_a_value_out_of_range_is_a_usage_error_that_names_the_range(name: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(UsageError, match=rf"{name} is .*; it must be (from|above|0)"):
            SamplingParams(**{name: value})  # type: ignore[arg-type]


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=5, max_size=5), min_size=1, max_size=4), st.data())
def test_scores_are_log_softmax_of_the_raw_logits(rows: list[list[float]], data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    k = data.draw(st.sampled_from([0, 1, 3, 20]))

    scores = score(torch.tensor(rows), ids, k)

    for row, token, found in zip(rows, ids, scores, strict=True):
        total = math.log(sum(math.exp(value - max(row)) for value in row)) + max(row)
        assert found.logprob == pytest.approx(row[token] - total, abs=1e-4)
        assert [value for _, value in found.top] == pytest.approx(
            [value - total for value in sorted(row, reverse=True)[:k]], abs=1e-4
        )
        assert all(row[place] - total == pytest.approx(value, abs=1e-4) for place, value in found.top)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    logits = torch.zeros(2, 8)
    check_finite(logits)
    logits[1, 3] = value
    with pytest.raises(NumericsError) as caught:
        check_finite(logits)
    assert caught.value.remedy


@pytest.mark.skipif(not cuda_guard(), reason="needs a C++ compiler")
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.3, top_p=0.95),
        SamplingParams(temperature=1.0, top_p=0.9, top_k=40, min_p=0.05),
    ],
)
def test_a_draw_brings_a_few_candidates_to_the_host_and_waits_for_nothing_else_of_a_gpu(
    params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies on the GPU that is not there has no values: whatever else waited for one would raise."""
    brought: list[int] = []

    def bring(chances: Tensor, ids: Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        assert chances.device.type == "cuda"
        brought.append(len(chances))
        falling = np.exp(-np.arange(len(chances), dtype=np.float64))
        return falling / falling.sum(), np.arange(len(ids))

    monkeypatch.setattr(sampling, "_on_host", bring)
    with FakeTensorMode():
        logits = torch.empty(102_400, device=CUDA)
    token = Sampler(params, [3, 5], 102_000).sample(logits)
    assert brought == [params.top_k or 512]
    assert 0 <= token < brought[0]
