"""A chat with a warm engine: what the backend in this process gives, and what happens when the engine is lost."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.warm import OPTIONS, RunningEngine, needs_engines, warm_engine

from dslite.runtime.chat.local import LocalChatBackend
from dslite.runtime.chat.protocol import ChatBackend
from dslite.runtime.chat.warm import WarmChatBackend
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine_loader import open_engine
from dslite.runtime.errors import ContextFullError, UsageError
from dslite.runtime.events import Done, Notice, Token
from dslite.runtime.text.message import Message
from dslite.runtime.warm.client import WarmClient

pytestmark = needs_engines

GREEDY = SamplingParams(temperature=0.0, max_tokens=40)
HELLO = [Message("user", "How do I save a profile?")]
NEVER = threading.Event()


class LostEngineError(AssertionError):
    """The model was loaded into this process, where it must not be."""


@pytest.fixture(scope="module")
def local() -> LocalChatBackend:
    return LocalChatBackend(open_engine("demo", OPTIONS), "demo")


@pytest.fixture
def engine(runtime_dir: Path) -> Iterator[RunningEngine]:
    with warm_engine("demo") as running:
        yield running


def backend_of(
    engine: RunningEngine,
    local: LocalChatBackend | None = None,
    *,
    private: bool = False,
    again: Sequence[WarmClient] = (),
) -> WarmChatBackend:
    """A backend that falls back to `local`, and before that to the connections of `again`."""
    waiting = list(again)

    def load_here() -> LocalChatBackend:
        if local is None:
            raise LostEngineError
        return local

    return WarmChatBackend(
        engine.connect(),
        private=private,
        connect=lambda: waiting.pop(0) if waiting else None,
        load_here=load_here,
    )


def answer(backend: ChatBackend, messages: Sequence[Message], params: SamplingParams = GREEDY, **more: bool) -> Done:
    *_, done = backend.reply(messages, params, NEVER, **more)
    assert isinstance(done, Done)
    return done


def said(done: Done) -> Message:
    return Message("assistant", done.text, done.token_ids)


def test_answers_and_turns_are_those_of_a_backend_here(engine: RunningEngine, local: LocalChatBackend) -> None:
    warm = backend_of(engine)
    talk = list(HELLO)
    for params in (GREEDY, SamplingParams(temperature=1.0, seed=3, max_tokens=40), GREEDY):
        there, here = answer(warm, talk, params), answer(local, talk, params)
        assert (there.text, there.token_ids, there.finish_reason) == (here.text, here.token_ids, here.finish_reason)
        talk += [said(there), Message("user", "And then?")]
    assert answer(warm, talk).cached_tokens > len(local.prompt_ids(HELLO))
    branch = answer(warm, [*talk[:2], Message("user", "Something else")])
    assert branch.cached_tokens >= len(local.prompt_ids(HELLO))


def test_an_answer_that_was_cut_goes_on(engine: RunningEngine, local: LocalChatBackend) -> None:
    warm = backend_of(engine)
    cut = [*HELLO, said(answer(warm, HELLO, SamplingParams(temperature=0.0, max_tokens=5)))]
    there = answer(warm, cut, continue_final_message=True)
    assert there.text == answer(local, cut, continue_final_message=True).text
    assert (cut[1].content + there.text).startswith(answer(local, HELLO).text)


def test_a_shape_is_followed_and_a_wrong_one_refused(engine: RunningEngine) -> None:
    warm = backend_of(engine)
    assert answer(warm, HELLO, SamplingParams(temperature=0.0, max_tokens=9, regex="[a-c]{3}")).text in (
        "".join((a, b, c)) for a in "abc" for b in "abc" for c in "abc"
    )
    with pytest.raises(UsageError, match="cannot be enforced"):
        warm.reply(HELLO, SamplingParams(regex="(?=x)"), NEVER)


def test_old_turns_are_left_out_as_here(runtime_dir: Path) -> None:
    talk = [Message("system", "Be brief.")]
    for number in range(20):
        talk += [Message("user", f"Question {number}?"), Message("assistant", "An answer. " * 3)]
    talk.append(Message("user", "And now?"))
    options = type(OPTIONS)(**{**vars(OPTIONS), "ctx_size": 160})
    here = LocalChatBackend(open_engine("demo", options), "demo")
    with warm_engine("demo", options=options) as engine:
        warm = backend_of(engine)
        kept = warm.trim_to_fit(talk)
        assert kept == here.trim_to_fit(talk)
        assert kept[0] == talk[0]
        assert 2 < len(kept) < len(talk)
        long = [Message("user", "x " * 1000)]
        with pytest.raises(ContextFullError):
            warm.trim_to_fit(long)
        with pytest.raises(ContextFullError):
            warm.reply(long, GREEDY, NEVER)


def test_a_saved_cache_is_read_by_another_engine(runtime_dir: Path) -> None:
    with warm_engine("demo") as engine:
        warm = backend_of(engine)
        talk = [*HELLO, said(answer(warm, HELLO)), Message("user", "And then?")]
        warm.save_cache("conversation")
    with warm_engine("demo") as engine:
        warm = backend_of(engine)
        warm.restore_cache("conversation", talk)
        assert answer(warm, talk).cached_tokens > 20


def test_a_saved_cache_is_that_of_its_own_conversation(runtime_dir: Path) -> None:
    """Another client's answer came between the reply and its saving."""
    with warm_engine("demo") as engine:
        warm, other = backend_of(engine), backend_of(engine)
        talk = [*HELLO, said(answer(warm, HELLO)), Message("user", "And then?")]
        answer(other, [Message("user", "What is a session, and where is it kept?")])
        warm.save_cache("conversation")
    with warm_engine("demo") as engine:
        warm = backend_of(engine)
        warm.restore_cache("conversation", talk)
        assert answer(warm, talk).cached_tokens > 20


def test_counters_are_known_also_in_the_middle_of_an_answer(engine: RunningEngine, local: LocalChatBackend) -> None:
    warm = backend_of(engine, again=[engine.connect()])
    before = warm.stats()
    assert (before.name, before.context, before.experts_per_layer) == ("demo", local.stats().context, 16)
    events = warm.reply(HELLO, GREEDY, NEVER)
    next(event for event in events if isinstance(event, Token))
    middle = warm.stats()
    assert middle.name == "demo"
    *_, done = events
    assert isinstance(done, Done)
    assert sum(map(sum, warm.stats().uses or ())) > sum(map(sum, before.uses or ()))
    warm.reset_expert_counts()
    assert sum(map(sum, warm.stats().uses or ())) == 0


def test_a_cancel_stops_the_answer(engine: RunningEngine) -> None:
    warm, cancel = backend_of(engine), threading.Event()
    events = warm.reply(HELLO, SamplingParams(regex="[a-z]{30000}"), cancel)
    next(event for event in events if isinstance(event, Token))
    cancel.set()
    *_, done = events
    assert isinstance(done, Done)
    assert done.finish_reason == "interrupted"


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(temperature=1.0, max_tokens=40)])
def test_an_engine_that_is_lost_in_an_answer_loses_none_of_it(
    engine: RunningEngine, local: LocalChatBackend, params: SamplingParams
) -> None:
    warm = backend_of(engine, local)
    tokens: list[Token] = []
    notices: list[Notice] = []
    for event in warm.reply(HELLO, params, NEVER):
        if isinstance(event, Token):
            tokens.append(event)
            if len(tokens) == 3:
                engine.clients[0].close()
        elif isinstance(event, Notice):
            notices.append(event)
    assert isinstance(event, Done)
    assert [token.id for token in tokens] == list(event.token_ids[: len(tokens)])
    assert "".join(token.delta for token in tokens) + event.delta == event.text
    assert "the warm engine was lost" in notices[0].message
    if params is GREEDY:
        assert event.text == answer(local, HELLO).text
    assert answer(warm, HELLO).text == answer(local, HELLO).text  # from here on it is this process


def test_an_engine_that_ended_while_idle_is_replaced_by_another(engine: RunningEngine) -> None:
    warm = backend_of(engine, again=[engine.connect()])
    warm.restore_cache("conversation", HELLO)
    engine.clients[1].close()
    assert answer(warm, HELLO).text


def test_where_none_takes_its_place_this_process_answers_and_says_so(
    engine: RunningEngine, local: LocalChatBackend
) -> None:
    warm = backend_of(engine, local)
    engine.clients[0].close()
    first, *_, done = warm.reply(HELLO, GREEDY, NEVER)
    assert isinstance(first, Notice)
    assert isinstance(done, Done)
    assert done.text == answer(local, HELLO).text
    assert warm.trim_to_fit(HELLO) == HELLO
    assert warm.stats().name == "demo"


def test_a_private_chat_keeps_its_cache_until_it_is_closed(engine: RunningEngine) -> None:
    warm = backend_of(engine, private=True)
    talk = [*HELLO, said(answer(warm, HELLO)), Message("user", "And then?")]
    assert answer(warm, talk).cached_tokens > 20
    warm.close()
    engine.wait_until_left(0)
    assert (engine.engine.prefix_cache.tokens, engine.engine.prefix_cache.newest) == (0, None)
