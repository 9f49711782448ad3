"""Many answers at once are the answers that each would get alone."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache, kv_bytes_per_token
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import BatchEvent, Scheduler, cache_budget
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


def test_a_batch_reuses_what_a_conversation_computed_and_the_other_way_round(engine: Engine) -> None:
    conversation = [3, 4] * 50
    first = alone(engine, greedy(conversation, 8))
    scheduler = Scheduler(engine)
    scheduler.add("continues", greedy([*conversation, *first.token_ids, 9, 9], 4))
    scheduler.add("other", greedy([8] * 60, 4))
    together = answers(scheduler)
    assert together["continues"].cached_tokens == 107  # the token that was drawn last has no entry
    assert together["other"].cached_tokens == 0
    assert alone(engine, greedy([8] * 60 + [1], 1)).cached_tokens == 60


def test_answers_that_outgrow_the_budget_preempt_the_youngest_and_equal_those_made_alone(engine: Engine) -> None:
    requests = [greedy([number + 1] * 400, 500) for number in range(3)]
    small = load_engine_like(engine)
    scheduler = Scheduler(small, max_tokens=1500)
    for number, request in enumerate(requests):
        scheduler.add(number, request)
    most, preempted, ends = 0, False, {}
    while len(scheduler):
        running = scheduler.running
        ends |= {key: event for key, event in scheduler.step() if isinstance(event, Done)}
        preempted |= scheduler.running < running and len(scheduler) == 3
        most = max(most, sum(len(cached.ids) for cached in scheduler._caches()))
    assert preempted
    assert most <= 1500
    for number, request in enumerate(requests):
        assert ends[number].token_ids == alone(load_engine_like(engine), request).token_ids
        assert ends[number].completion_tokens == 500


def load_engine_like(engine: Engine) -> Engine:
    """Another engine over the same network, with nothing cached."""
    return Engine(engine.model, engine.tokenizer, context=engine.context, eos_token_ids=[])


def test_a_preempted_answer_keeps_its_seed_and_tells_no_token_twice(engine: Engine) -> None:
    requests = [
        Request([number + 1] * 500, SamplingParams(temperature=1.0, seed=number, max_tokens=400), logprobs=0)
        for number in range(2)
    ]
    scheduler = Scheduler(load_engine_like(engine), max_tokens=1500)
    for number, request in enumerate(requests):
        scheduler.add(number, request)
    told: dict[object, list[int | None]] = {0: [], 1: []}
    for key, event in scheduler.run():
        if isinstance(event, Token):
            told[key].append(event.id)
    for number, request in enumerate(requests):
        assert told[number] == list(alone(load_engine_like(engine), request).token_ids)


def test_an_answer_without_a_limit_does_not_reserve_a_whole_context(engine: Engine) -> None:
    scheduler = Scheduler(engine, max_tokens=engine.context)
    for number in range(4):
        scheduler.add(number, Request([number + 1] * 20, SamplingParams(temperature=0)))
    scheduler.step()
    assert scheduler.running == 4


def test_prefill_chunks_grow_again_after_a_shortage(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = engine.runner.prefill_chunk
    with monkeypatch.context() as patch:
        out_of_memory_at(engine, patch, lambda count, _: count > 60)
        alone(engine, greedy([11, 12] * 100, 1))
    assert engine.runner.prefill_chunk < planned
    for number in range(400):
        alone(engine, greedy([number % 190 + 1, number // 190 + 1, *([5] * 3)], 1))
    assert engine.runner.prefill_chunk == planned


def test_cancelling_one_of_several_ends_it_alone(engine: Engine) -> None:
    cancel = Flag()
    scheduler = Scheduler(engine)
    scheduler.add("kept", greedy([5, 6, 7], 12))
    scheduler.add("cancelled", greedy([8, 9, 10], 12), cancel)
    made = [event for _ in range(4) for event in scheduler.step()]
    cancel.set()
    ends = {key: event for key, event in [*made, *scheduler.run()] if isinstance(event, Done)}
    assert (ends["cancelled"].finish_reason, ends["kept"].finish_reason) == ("interrupted", "length")
    assert ends["kept"].token_ids == alone(engine, greedy([5, 6, 7], 12)).token_ids


@settings(max_examples=25)
@given(st.data())
def test_any_order_of_joining_and_leaving_leaves_each_answer_as_if_alone(folder: Path, data: st.DataObject) -> None:
    check_orders(folder, data, steps=25)


@pytest.mark.long
@settings(max_examples=150)
@given(st.data())
def test_any_long_order_of_joining_and_leaving_leaves_each_answer_as_if_alone(
    folder: Path, data: st.DataObject
) -> None:
    check_orders(folder, data, steps=80)


def check_orders(folder: Path, data: st.DataObject, steps: int) -> None:
    """Requests join, leave, fork from earlier answers and run out of memory, in any order; each answer is right."""
    engine = load_engine(folder, context=300, eos_token_ids=[])
    reference = load_engine_like(engine)
    scheduler = Scheduler(engine, max_sequences=3, max_tokens=data.draw(st.sampled_from([300, 450, 900])), chunk=24)
    asked: dict[int, Request] = {}
    known = [[1, 2, 3]]
    for number in range(steps):
        action = data.draw(st.sampled_from(["add", "step", "step", "step", "remove", "evict", "short", "chat"]))
        if action == "add":
            prefix = data.draw(st.sampled_from(known))
            cut = data.draw(st.integers(0, len(prefix)))
            prompt = [*prefix[:cut], *data.draw(st.lists(st.integers(0, 190), min_size=1, max_size=60))][:200]
            params = SamplingParams(
                temperature=data.draw(st.sampled_from([0.0, 1.0])),
                seed=number,
                max_tokens=data.draw(st.integers(0, 40)),
            )
            asked[number] = Request(prompt, params)
            scheduler.add(number, asked[number])
        elif action == "remove" and asked:
            key = data.draw(st.sampled_from(sorted(asked)))
            del asked[key]
            scheduler.remove(key)
        elif action == "evict":
            engine.prefix_cache.evict(drop=data.draw(st.booleans()))
        elif action == "chat":
            prompt = data.draw(st.sampled_from(known))
            known.append([*prompt, *alone(engine, greedy(prompt, 5)).token_ids][:200])
        else:
            events = step_with_shortage(scheduler) if action == "short" else scheduler.step()
            settle(events, asked, known, reference)
    for event in scheduler.run():
        settle([event], asked, known, reference)
    assert not asked


def step_with_shortage(scheduler: Scheduler) -> list[BatchEvent]:
    """A step whose first pass runs out of memory; with several tokens or sequences in it nothing is lost."""
    forward, failures = Transformer.forward, iter([True])

    def fail(self: Transformer, ids: Tensor, *args: Any, **options: Any) -> Tensor:
        if len(ids) > 1 and next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, ids, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "forward", fail)
        return scheduler.step()


def settle(events: list[BatchEvent], asked: dict[int, Request], known: list[list[int]], reference: Engine) -> None:
    """Compare what ended with the same request alone, in an engine of its own."""
    for key, event in events:
        assert isinstance(key, int)
        if isinstance(event, OutOfMemoryError):
            del asked[key]  # the youngest of several, where nothing else could be freed
        elif isinstance(event, Done):
            request = asked.pop(key)
            reference.prefix_cache.clear()
            assert event.token_ids == alone(reference, request).token_ids
            known.append([*request.prompt_ids, *event.token_ids][:200])
