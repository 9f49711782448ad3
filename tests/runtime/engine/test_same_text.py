"""A seed gives the same text alone, in a batch and behind a cached prefix, in float32 on the CPU.

The last bits of logits may differ between those cases: how many tokens share a product decides the order of its sums,
and a cached prefix the form of attention. So log-probabilities agree to 2e-5, and greedy and drawn tokens unless two
candidates are as close as that.
"""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import load_engine, tiny_config, write_checkpoint

from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.events import Done, Token

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.5, 0.9, 0.95, 1.0]),
    top_k=st.sampled_from([0, 0, 5, 40]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    seed=st.integers(0, 2**63 - 1),
    max_tokens=st.integers(1, 12),
)
PROMPTS = st.lists(st.integers(0, 200), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(), seed=4)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load_engine(folder, context=400, eos_token_ids=[])


@pytest.fixture(scope="module")
def in_small_chunks(folder: Path) -> Engine:
    return load_engine(folder, context=400, eos_token_ids=[], prefill_chunk=7)


def answer(engine: Engine, prompt: list[int], params: SamplingParams) -> Done:
    """The answer to a prompt of which nothing is cached."""
    engine.prefix_cache.clear()
    return end(list(engine.generate(Request(prompt, params))))


def end(events: list[object]) -> Done:
    (done,) = [event for event in events if isinstance(event, Done)]
    return done


@given(PROMPTS, PARAMS, st.data())
def test_a_cached_prefix_changes_no_token(
    engine: Engine, prompt: list[int], params: SamplingParams, data: st.DataObject
) -> None:
    alone = answer(engine, prompt, params)
    for count in {0, len(prompt) - 1, data.draw(st.integers(0, len(prompt) - 1))}:
        engine.prefix_cache.clear()
        if count:
            list(engine.generate(Request(prompt[:count], SamplingParams(max_tokens=0))))
        again = end(list(engine.generate(Request(prompt, params))))
        assert again.cached_tokens == count
        assert again.token_ids == alone.token_ids


@given(st.lists(st.tuples(PROMPTS, PARAMS), min_size=2, max_size=9), st.integers(1, 300))
def test_a_batch_gives_each_answer_the_tokens_that_it_has_alone(
    engine: Engine, asked: list[tuple[list[int], SamplingParams]], shared: int
) -> None:
    beginning = [random.Random(shared).randrange(200) for _ in range(shared)]
    requests = [Request([*beginning, *prompt], params) for prompt, params in asked]
    scheduler = Scheduler(engine, max_sequences=4)
    for number, request in enumerate(requests):
        scheduler.add(number, request)
    together = {key: event for key, event in scheduler.run() if isinstance(event, Done)}
    for number, request in enumerate(requests):
        assert together[number].token_ids == answer(engine, list(request.prompt_ids), request.params).token_ids


@given(PROMPTS, PARAMS)
def test_the_length_of_prefill_chunks_changes_no_token(
    engine: Engine, in_small_chunks: Engine, prompt: list[int], params: SamplingParams
) -> None:
    assert answer(in_small_chunks, prompt, params).token_ids == answer(engine, prompt, params).token_ids


@given(PROMPTS, st.integers(0, 2**63 - 1), st.integers(1, 11))
def test_a_cut_answer_that_is_continued_is_the_whole_one(
    engine: Engine, prompt: list[int], seed: int, cut: int
) -> None:
    params = SamplingParams(temperature=1.0, seed=seed, max_tokens=12)
    whole = answer(engine, prompt, params).token_ids
    rest = answer(engine, [*prompt, *whole[:cut]], SamplingParams(temperature=1.0, seed=seed, max_tokens=12 - cut))
    assert whole[:cut] + rest.token_ids == whole


@given(PROMPTS)
def test_log_probabilities_of_cached_and_uncached_prompts_agree(engine: Engine, prompt: list[int]) -> None:
    request = Request(prompt, SamplingParams(temperature=0, max_tokens=4), logprobs=3)
    engine.prefix_cache.clear()
    runs = [list(engine.generate(request)) for _ in range(2)]
    fresh, cached = ([event for event in run if isinstance(event, Token)] for run in runs)
    assert end(runs[1]).cached_tokens == len(prompt) - 1
    for before, after in zip(fresh, cached, strict=True):
        assert after.logprob == pytest.approx(before.logprob, abs=2e-5)
