"""Many answers at once are the answers that each would get alone."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache, kv_bytes_per_token
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import Scheduler, cache_budget
from dslite.runtime.engine.sequence import Request
from dslite.runtime.errors import ContextFullError, DsliteError, OutOfMemoryError
from dslite.runtime.events import Done, Prefilling, Token


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("scheduler"), tiny_config())


@pytest.fixture
def engine(folder: Path) -> Engine:
    return load_engine(folder, context=1500)


def greedy(ids: list[int], max_tokens: int) -> Request:
    return Request(ids, SamplingParams(temperature=0, max_tokens=max_tokens))


def requests_with_shared_beginnings(count: int, seed: int) -> list[Request]:
    rng = random.Random(seed)
    common = [rng.randrange(200) for _ in range(700)]
    return [
        greedy(
            common[: rng.randrange(1, 700)] + [rng.randrange(200) for _ in range(rng.randrange(1, 40))],
            rng.randrange(0, 24),
        )
        for _ in range(count)
    ]


def answers(scheduler: Scheduler) -> dict[object, Done]:
    return {key: event for key, event in scheduler.run() if isinstance(event, Done)}


def alone(engine: Engine, request: Request) -> Done:
    (done,) = [event for event in engine.generate(request) if isinstance(event, Done)]
    return done


def test_answers_made_together_equal_those_made_alone(engine: Engine) -> None:
    requests = requests_with_shared_beginnings(20, seed=1)
    scheduler = Scheduler(engine, max_sequences=6)
    for number, request in enumerate(requests):
        scheduler.add(number, request)
    together = answers(scheduler)
    for number, request in enumerate(requests):
        expected = alone(engine, request)
        assert together[number].token_ids == expected.token_ids
        assert together[number].finish_reason == expected.finish_reason


def test_a_shared_beginning_is_computed_once(engine: Engine) -> None:
    beginning = [7] * 600
    scheduler = Scheduler(engine, max_sequences=4)
    for number in range(4):
        scheduler.add(number, greedy([*beginning, number], 2))
    together = answers(scheduler)
    assert [together[number].cached_tokens for number in range(4)] == [0, 600, 600, 600]


def test_sequences_join_and_leave_between_steps(engine: Engine) -> None:
    first, second, third = requests_with_shared_beginnings(3, seed=5)
    first, second = greedy(list(first.prompt_ids), 20), greedy(list(second.prompt_ids), 20)
    third = greedy(list(third.prompt_ids), 20)
    scheduler = Scheduler(engine, max_sequences=3)
    scheduler.add("first", first)
    for _ in range(6):
        scheduler.step()
    scheduler.add("second", second)
    scheduler.add("third", third)
    for _ in range(3):
        scheduler.step()
    scheduler.remove("third")
    together = answers(scheduler)
    assert set(together) == {"first", "second"}
    assert together["first"].token_ids == alone(engine, first).token_ids
    assert together["second"].token_ids == alone(engine, second).token_ids


def test_an_echoed_prompt_is_scored_as_if_alone(engine: Engine) -> None:
    request = Request([5, 9, 3, 9, 5], SamplingParams(temperature=0, max_tokens=3), logprobs=2, echo=True)
    scheduler = Scheduler(engine)
    scheduler.add(0, greedy([5, 9, 3, 9], 4))
    scheduler.add(1, request)
    together = [event for key, event in scheduler.run() if key == 1]
    scores = [getattr(event, "logprob", None) for event in together if hasattr(event, "logprob")]
    expected = [event.logprob for event in engine.generate(request) if hasattr(event, "logprob")]
    assert len(scores) == 8
    assert scores == pytest.approx(expected, abs=2e-5)


def test_a_prompt_over_the_context_is_refused_at_the_door(engine: Engine) -> None:
    with pytest.raises(ContextFullError, match=r"1,600 tokens.*1,500"):
        Scheduler(engine).add(0, greedy([1] * 1600, 1))


def test_one_broken_answer_leaves_the_others_whole(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from dslite.runtime.engine import scheduler as module

    checks = iter([None, None, None, DsliteError("broken")])

    def check(_: object) -> None:
        error = next(checks, None)
        if error:
            raise error

    monkeypatch.setattr(module, "check_finite", check)
    scheduler = Scheduler(engine)
    scheduler.add("breaks", greedy([1, 2, 3], 9))
    scheduler.add("holds", greedy([4, 5, 6], 9))
    ends = dict(pair for pair in scheduler.run() if isinstance(pair[1], Done | DsliteError))
    kinds = sorted(type(end).__name__ for end in ends.values())
    assert kinds == ["Done", "DsliteError"]
    (whole,) = [key for key, end in ends.items() if isinstance(end, Done)]
    prompt = {"breaks": [1, 2, 3], "holds": [4, 5, 6]}[str(whole)]
    monkeypatch.undo()
    assert ends[whole].token_ids == alone(engine, greedy(prompt, 9)).token_ids  # type: ignore[union-attr]


def test_the_rows_of_finished_sequences_never_exceed_one_context(engine: Engine) -> None:
    scheduler = Scheduler(engine)
    for number in range(6):
        scheduler.add(number, greedy([number] * 900, 1))
    answers(scheduler)
    assert engine.prefix_cache.tokens <= engine.context


def test_an_interrupted_batch_keeps_what_came(engine: Engine) -> None:
    scheduler = Scheduler(engine, max_sequences=2)
    for number in range(3):
        scheduler.add(number, greedy([number + 1] * 5, 20))
    made = [scheduler.step() for _ in range(6)]
    ends = {key: event for key, event in scheduler.interrupt() if isinstance(event, Done)}
    assert not len(scheduler)
    assert set(ends) == {0, 1}
    for key, done in ends.items():
        tokens = [event.id for step in made for number, event in step if number == key and isinstance(event, Token)]
        assert done.finish_reason == "interrupted"
        assert list(done.token_ids) == tokens
        assert tokens == list(alone(engine, greedy([int(str(key)) + 1] * 5, 20)).token_ids)[: len(tokens)]


def test_prompts_are_read_and_answers_made_in_one_pass(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(engine)
    scheduler.add("answers", greedy([5, 6, 7], 20))
    scheduler.step()
    scheduler.add("long", greedy([8] * 600, 4))
    scheduler.add("short", greedy([9] * 30, 4))
    passes: list[int] = []
    forward = Transformer.forward

    def record(self: Transformer, ids: Tensor, spans: Sequence[Span], **options: Any) -> Tensor:
        passes.append(len(ids))
        return forward(self, ids, spans, **options)

    monkeypatch.setattr(Transformer, "forward", record)
    scheduler.step()
    scheduler.step()
    assert passes == [512 + 1, 88 + 30 + 1]


def test_a_prompt_waits_for_the_rows_that_another_is_making(engine: Engine) -> None:
    scheduler = Scheduler(engine)
    scheduler.add("first", greedy([3] * 100, 4))
    scheduler.add("second", greedy([3] * 90 + [4] * 20, 4))
    first = [key for key, event in scheduler.step() if isinstance(event, Prefilling)]
    assert first == ["first"]
    together = answers(scheduler)
    assert together["second"].cached_tokens == 90


def out_of_memory_at(engine: Engine, monkeypatch: pytest.MonkeyPatch, tokens: Callable[[int, int], bool]) -> list[int]:
    """Passes over tokens of which `tokens(count, spans)` is true fail; returns the sizes of those that went through."""
    forward, passes = Transformer.forward, []

    def fail(self: Transformer, ids: Tensor, spans: Sequence[Span], **options: Any) -> Tensor:
        if tokens(len(ids), len(spans)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        passes.append(len(ids))
        return forward(self, ids, spans, **options)

    monkeypatch.setattr(Transformer, "forward", fail)
    return passes


def test_where_memory_runs_out_prompts_are_read_in_shorter_pieces(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = greedy([11, 12] * 100, 6)
    expected = alone(engine, request).token_ids
    engine.prefix_cache.clear()
    passes = out_of_memory_at(engine, monkeypatch, lambda count, _: count > 60)
    scheduler = Scheduler(engine)
    scheduler.add(0, request)
    assert answers(scheduler)[0].token_ids == expected
    assert passes[:4] == [50, 50, 50, 50]


def test_where_nothing_else_helps_the_youngest_answer_ends_and_the_others_go_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [greedy([number + 20] * 5, 12) for number in range(3)]
    expected = [alone(engine, request).token_ids for request in requests]
    scheduler = Scheduler(engine)
    for number, request in enumerate(requests):
        scheduler.add(number, request)
    scheduler.step()
    scheduler.step()
    out_of_memory_at(engine, monkeypatch, lambda _, spans: spans > 2)
    ends = dict(pair for pair in scheduler.run() if isinstance(pair[1], Done | DsliteError))
    assert isinstance(ends[2], OutOfMemoryError)
    assert "3 answers at once" in ends[2].message
    assert [ends[number].token_ids for number in (0, 1)] == expected[:2]


def test_memory_that_runs_out_behind_the_layers_costs_no_token(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    request = greedy([31, 32, 33], 8)
    expected = alone(engine, request).token_ids
    logits, calls = Transformer.logits, iter(range(100))

    def fail(self: Transformer, hidden: Tensor) -> Tensor:
        if next(calls) < 2:
            raise MemoryError
        return logits(self, hidden)

    scheduler = Scheduler(engine)
    scheduler.add("before", greedy([40] * 20, 1))
    answers(scheduler)
    monkeypatch.setattr(Transformer, "logits", fail)
    scheduler.add(0, request)
    assert answers(scheduler)[0].token_ids == expected


def test_an_answer_for_which_no_cache_can_be_made_waits_for_the_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [greedy([number + 50] * 5, 6) for number in range(3)]
    expected = [alone(engine, request).token_ids for request in requests]
    scheduler = Scheduler(engine)
    make = LatentKVCache.__init__

    def fail(self: LatentKVCache, *args: Any, **options: Any) -> None:
        if scheduler.running == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        make(self, *args, **options)

    monkeypatch.setattr(LatentKVCache, "__init__", fail)
    for number, request in enumerate(requests):
        scheduler.add(number, request)
    together = answers(scheduler)
    assert [together[number].token_ids for number in range(3)] == expected


def test_an_answer_for_which_alone_there_is_no_memory_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: LatentKVCache, *args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    scheduler = Scheduler(engine)
    monkeypatch.setattr(LatentKVCache, "__init__", fail)
    scheduler.add(0, greedy([1, 2, 3], 6))
    ((key, error),) = list(scheduler.run())
    assert key == 0
    assert isinstance(error, OutOfMemoryError)


def test_a_limit_of_the_user_bounds_the_batch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    per_token = kv_bytes_per_token(engine.model.config, engine.model.dtype)
    assert cache_budget(engine, 4) == 4 * engine.context
    monkeypatch.setattr(engine, "memory_left", 2 * engine.context * per_token)
    assert cache_budget(engine, 4) == 2 * engine.context
    monkeypatch.setattr(engine, "memory_left", 0)
    assert cache_budget(engine, 4) == engine.context  # one answer always has its own
