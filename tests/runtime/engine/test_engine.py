"""Answers as streams of events: numbers, ends, reuse of the cache, progress, cancellation."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import load_engine, write_checkpoint
from support.forward import random_ids
from support.oracle import Oracle
from support.tokenizers import BOS_ID, N_TOKENS
from torch import Tensor

from dslite.model.transformer import Transformer
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.runner import PREFILL_CHUNK
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import ContextFullError, UsageError
from dslite.runtime.events import Done, Event, Prefilling, Token
from dslite.runtime.planning.footprint import LOGIT_ROWS

TOLERANCE = 2e-5
GREEDY = SamplingParams(temperature=0, max_tokens=12)
DRAWN = SamplingParams(temperature=1.5, seed=3, max_tokens=60)
PROMPT = [BOS_ID, *random_ids(40, BOS_ID, seed=3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


@pytest.fixture
def engine(folder: Path) -> Engine:
    return load_engine(folder, eos_token_ids=[])


@pytest.fixture(scope="module")
def shared_engine(folder: Path) -> Engine:
    """One engine for many examples."""
    return load_engine(folder, eos_token_ids=[])


@pytest.fixture(scope="module")
def drawn_text(shared_engine: Engine) -> str:
    """What DRAWN answers to PROMPT."""
    return answer(shared_engine, PROMPT, DRAWN).text


def done(events: Iterator[Event] | list[Event]) -> Done:
    """The last event, which alone is Done."""
    *before, last = events
    assert not [event for event in before if isinstance(event, Done)]
    assert isinstance(last, Done)
    return last


def answer(engine: Engine, prompt_ids: list[int], params: SamplingParams = GREEDY, **options: Any) -> Done:
    return done(engine.generate(Request(prompt_ids, params, **options)))


# Numbers


def test_the_greedy_answer_is_that_of_transformers(engine: Engine, oracle: Oracle) -> None:
    expected = oracle.greedy(PROMPT, 32, n_tokens=N_TOKENS)

    assert answer(engine, PROMPT, replace(GREEDY, max_tokens=32)).token_ids == tuple(expected)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_logprobs_are_those_of_the_raw_logits_whatever_the_temperature(
    engine: Engine, oracle: Oracle, temperature: float
) -> None:
    params = SamplingParams(temperature=temperature, top_p=0.5, repetition_penalty=1.5, max_tokens=16, seed=5)
    tokens = [event for event in engine.generate(Request(PROMPT, params, logprobs=4)) if isinstance(event, Token)]
    ids = [token.id for token in tokens]
    expected = oracle.logprobs([*PROMPT, *ids])[len(PROMPT) - 1 : -1]

    assert len(tokens) == 16
    for token, row in zip(tokens, expected, strict=True):
        assert token.top is not None
        assert token.logprob == pytest.approx(row[token.id].item(), abs=TOLERANCE)
        best = row.topk(4)
        assert [candidate.id for candidate in token.top] == best.indices.tolist()
        assert [candidate.logprob for candidate in token.top] == pytest.approx(best.values.tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("chunk", [2048, 7])
def test_echo_gives_the_prompt_the_logprobs_of_transformers(
    folder: Path, oracle: Oracle, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """A prompt of 2.3 times as many tokens as are scored at once, in one chunk and in chunks of seven."""
    prompt = [BOS_ID, *random_ids(2 * LOGIT_ROWS + 20, BOS_ID, seed=3)]
    engine = load_engine(folder, eos_token_ids=[], prefill_chunk=chunk)
    chunks: list[int] = []
    forward = Transformer.forward

    def count(self: Transformer, ids: Tensor, *args: Any, **options: Any) -> Any:
        chunks.append(len(ids))
        return forward(self, ids, *args, **options)

    monkeypatch.setattr(Transformer, "forward", count)
    events = list(engine.generate(Request(prompt, SamplingParams(temperature=0, max_tokens=0), logprobs=2, echo=True)))
    tokens = [event for event in events if isinstance(event, Token)]
    expected = oracle.logprobs(prompt)

    assert chunks == [chunk] * (len(prompt) // chunk) + [len(prompt) % chunk]
    assert [token.id for token in tokens] == prompt
    assert all(token.in_prompt for token in tokens)
    assert tokens[0].logprob is None, "nothing predicts the first token"
    for place, token in enumerate(tokens[1:], 1):
        assert token.logprob == pytest.approx(expected[place - 1, token.id].item(), abs=TOLERANCE)
    assert done(events).finish_reason == "length"
    assert done(events).token_ids == ()
    assert done(events).text == "".join(token.text for token in tokens)


def test_echo_scores_a_prompt_that_is_in_the_cache_already(engine: Engine) -> None:
    scoring = Request(PROMPT, SamplingParams(temperature=0, max_tokens=0), logprobs=0, echo=True)
    fresh = list(engine.generate(scoring))
    answer(engine, PROMPT)

    again = list(engine.generate(scoring))

    def numbers(events: list[Event]) -> list[float | None]:
        return [event.logprob for event in events if isinstance(event, Token)]

    assert numbers(again)[1:] == pytest.approx(numbers(fresh)[1:], abs=TOLERANCE)


def test_no_tokens_asked_for_gives_none(engine: Engine) -> None:
    end = answer(engine, PROMPT, SamplingParams(max_tokens=0))

    assert (end.finish_reason, end.text, end.token_ids) == ("length", "", ())


def test_a_seed_reproduces_an_answer_and_another_gives_another(engine: Engine) -> None:
    def draw(seed: int) -> tuple[int, ...]:
        params = SamplingParams(temperature=1.5, top_p=1.0, seed=seed, max_tokens=24)
        return answer(engine, PROMPT, params).token_ids

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_only_ids_that_have_a_token_are_drawn(engine: Engine) -> None:
    params = SamplingParams(temperature=2, top_p=1.0, seed=0, max_tokens=100)

    assert max(answer(engine, PROMPT, params).token_ids) < N_TOKENS


# Text and ends


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_deltas_add_up_to_the_text(engine: Engine, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=60, stop=("never to be seen",))
    events = list(engine.generate(Request(PROMPT, params)))
    end = done(events)

    assert "".join(event.delta for event in events if isinstance(event, Token)) + end.delta == end.text
    assert end.text == engine.tokenizer.decode(end.token_ids)
    assert len(end.token_ids) == 60


@given(st.integers(0, 30), st.integers(1, 6))
@settings(max_examples=20)
def test_a_stop_text_ends_the_answer_wherever_it_spans_tokens(
    shared_engine: Engine, drawn_text: str, place: int, length: int
) -> None:
    stop = drawn_text[place : place + length]
    assert len(stop) == length

    events = list(shared_engine.generate(Request(PROMPT, replace(DRAWN, stop=(stop,)))))
    end = done(events)

    assert end.finish_reason == "stop"
    assert end.text == drawn_text[: drawn_text.find(stop)]
    assert "".join(event.delta for event in events if isinstance(event, Token)) + end.delta == end.text


def test_an_end_token_ends_the_answer_and_has_no_text(folder: Path, engine: Engine) -> None:
    ids = answer(engine, PROMPT).token_ids
    place = next(place for place in range(4, len(ids)) if ids[place] not in ids[:place])
    stopping = load_engine(folder, eos_token_ids=[ids[place]])

    events = list(stopping.generate(Request(PROMPT, GREEDY)))

    assert done(events).finish_reason == "stop"
    assert done(events).token_ids == ids[: place + 1]
    assert tuple(event.id for event in events if isinstance(event, Token)) == ids[:place]
    assert done(events).text == engine.tokenizer.decode(ids[:place])


def test_the_configs_end_token_counts_where_no_other_is_given(folder: Path) -> None:
    engine = load_engine(folder)

    assert engine.eos_token_ids == set(engine.model.config.eos_token_ids)


# The context


def test_a_prompt_over_the_context_is_refused_with_both_numbers(folder: Path) -> None:
    engine = load_engine(folder, context=1100)

    with pytest.raises(ContextFullError, match=r"1,234 tokens.* 1,100") as caught:
        engine.generate(Request(random_ids(1234, BOS_ID), GREEDY))
    assert caught.value.exit_code == 4
    assert caught.value.remedy


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_unless_none_is_wanted(folder: Path) -> None:
    engine = load_engine(folder, context=len(PROMPT))

    with pytest.raises(ContextFullError):
        engine.generate(Request(PROMPT, GREEDY))
    assert answer(engine, PROMPT, SamplingParams(max_tokens=0)).finish_reason == "length"


@pytest.mark.parametrize("max_tokens", [None, 30])
def test_an_answer_ends_where_the_context_does(folder: Path, engine: Engine, max_tokens: int | None) -> None:
    params = replace(GREEDY, max_tokens=max_tokens)
    short = load_engine(folder, context=len(PROMPT) + 8, eos_token_ids=[])

    end = answer(short, PROMPT, params)

    assert end.finish_reason == "context"
    assert end.token_ids == answer(engine, PROMPT).token_ids[:8]


def test_an_empty_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="empty"):
        engine.generate(Request([], GREEDY))


# The cache


def test_the_same_prompt_is_read_again_from_its_last_token_only(engine: Engine) -> None:
    first = answer(engine, PROMPT)
    second = answer(engine, PROMPT)

    assert (first.cached_tokens, second.cached_tokens) == (0, len(PROMPT) - 1)
    assert second.token_ids == first.token_ids
    assert first.prompt_tokens == second.prompt_tokens == len(PROMPT)


def test_the_next_turn_reads_nothing_that_was_read_or_written_before(engine: Engine, oracle: Oracle) -> None:
    end = answer(engine, PROMPT)
    turn = [*PROMPT, *end.token_ids, 65, 66, 67]

    following = answer(engine, turn)

    assert following.cached_tokens == len(PROMPT) + len(end.token_ids) - 1  # the last one was drawn and never read
    assert following.token_ids == tuple(oracle.greedy(turn, 12, n_tokens=N_TOKENS))


@given(st.integers(0, len(PROMPT) - 1))
@settings(max_examples=15)
def test_a_prompt_is_read_from_where_it_differs(folder: Path, oracle: Oracle, common: int) -> None:
    engine = load_engine(folder, eos_token_ids=[])
    answer(engine, PROMPT)
    other = [*PROMPT[:common], (PROMPT[common] + 1) % BOS_ID, 7, 8]

    events = list(engine.generate(Request(other, GREEDY, logprobs=0)))

    assert done(events).cached_tokens == common
    ids = list(done(events).token_ids)
    expected = oracle.logprobs([*other, *ids])[len(other) - 1 : -1]
    for token, row in zip((event for event in events if isinstance(event, Token)), expected, strict=True):
        assert token.logprob == pytest.approx(row[token.id].item(), abs=TOLERANCE)


# Progress and cancellation


@dataclass
class Clock:
    """A clock that only the fake work below moves."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class SlowLayer:
    """A layer that takes a while on the fake clock, and can do something at its end."""

    layer: Any
    clock: Clock
    seconds: float
    passes: list[int]
    cancel_in_pass: int | None = None
    cancel: Flag | None = None

    @property
    def index(self) -> int:
        index: int = self.layer.index
        return index

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.clock.now += self.seconds
        self.passes.append(self.index)
        if len(self.passes) == self.cancel_in_pass and self.cancel is not None:
            self.cancel.set()
        return self.layer(*args, **options)


@dataclass
class SlowEngine:
    """An engine whose layers take time on a fake clock. `passes` grows by one for each layer that ran."""

    engine: Engine
    clock: Clock
    passes: list[int]
    cancel: Flag


MakeSlow = Callable[..., SlowEngine]


@pytest.fixture
def slow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSlow:
    """Make a SlowEngine of a layer's seconds and the count of layer passes after which its flag is set."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def make(seconds: float, cancel_in_pass: int | None = None, prefill_chunk: int = PREFILL_CHUNK) -> SlowEngine:
        plain = load_engine(folder, eos_token_ids=[])
        passes: list[int] = []
        cancel = Flag()
        layers: Any = [SlowLayer(x, clock, seconds, passes, cancel_in_pass, cancel) for x in plain.model.layers]
        model: Transformer = replace(plain.model, network=replace(plain.model.network, layers=layers))
        engine = Engine(model, plain.tokenizer, context=plain.context, eos_token_ids=[], prefill_chunk=prefill_chunk)
        return SlowEngine(engine, clock, passes, cancel)

    return make


@pytest.mark.parametrize("seconds", [0.001, 0.03, 0.09, 0.12, 0.24])
def test_reading_reports_progress_at_least_four_times_a_second(slow: MakeSlow, seconds: float) -> None:
    """Layers of up to 250 ms: the engine can speak between them, not within."""
    making = slow(seconds, prefill_chunk=4)
    spoken, shares = [0.0], [0.0]

    def hear(event: Prefilling) -> None:
        spoken.append(making.clock.now)
        shares.append(event.done)
        assert event.total == len(PROMPT)

    for event in making.engine.generate(Request(PROMPT, replace(GREEDY, max_tokens=0)), on_prefill=hear):
        if isinstance(event, Prefilling):
            hear(event)

    assert len(making.passes) == 11 * 3, "41 tokens in 11 chunks through 3 layers"
    assert max(after - before for before, after in itertools.pairwise(spoken)) <= 0.25
    assert shares == sorted(shares)
    assert shares[-1] == len(PROMPT)
    assert len(shares) < 1 + making.clock.now / 0.05 + 2, "and not much more often"


def test_a_cancel_while_reading_stops_before_the_next_layer(slow: MakeSlow) -> None:
    for layer in range(1, 4):
        making = slow(0.2, cancel_in_pass=layer)

        end = done(making.engine.generate(Request(PROMPT, GREEDY), making.cancel))

        assert end.finish_reason == "interrupted"
        assert end.token_ids == ()
        assert len(making.passes) == layer


def test_a_cancel_while_answering_stops_before_the_next_token(slow: MakeSlow) -> None:
    making = slow(0.01, cancel_in_pass=3 + 3 * 4 + 1)  # the prompt, four tokens, a layer of the fifth

    end = done(making.engine.generate(Request(PROMPT, GREEDY), making.cancel))

    assert end.finish_reason == "interrupted"
    assert len(making.passes) == 3 + 3 * 5
    assert 5 <= len(end.token_ids) <= 6


def test_an_answer_is_the_same_after_a_cancel_at_any_layer(slow: MakeSlow, engine: Engine) -> None:
    expected = answer(engine, PROMPT).token_ids
    for place in range(1, 3 + 3 * 4):
        making = slow(0.01, cancel_in_pass=place)
        interrupted = done(making.engine.generate(Request(PROMPT, GREEDY), making.cancel))
        assert interrupted.finish_reason == "interrupted"
        assert interrupted.token_ids == expected[: len(interrupted.token_ids)]

        assert answer(making.engine, PROMPT).token_ids == expected


def test_an_answer_that_is_dropped_half_way_leaves_the_engine_usable(engine: Engine) -> None:
    expected = answer(engine, PROMPT).token_ids
    for count in range(1, 6):
        events = engine.generate(Request([*PROMPT[:20], 1, 2, 3], GREEDY))
        for _ in range(count):
            next(events)
        events.close()  # type: ignore[attr-defined]

    assert answer(engine, PROMPT).token_ids == expected


def test_a_cancel_before_the_start_answers_nothing(engine: Engine) -> None:
    cancel = Flag()
    cancel.set()

    end = done(engine.generate(Request(PROMPT, GREEDY), cancel))

    assert (end.finish_reason, end.token_ids) == ("interrupted", ())


def test_whoever_reads_the_events_is_left_out_of_inference_mode(engine: Engine) -> None:
    for _ in engine.generate(Request(PROMPT, GREEDY)):
        assert not torch.is_inference_mode_enabled()
