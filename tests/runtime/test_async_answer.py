"""Answers for `async for`: the same as without, the loop goes on meanwhile, and what is left is cancelled."""

import asyncio
import threading
from collections.abc import Iterator
from threading import Event as Flag

import pytest

from dslite.runtime import Chat, EngineOptions, SamplingParams, agenerate, astream, generate, open_engine
from dslite.runtime.async_answer import AsyncAnswer, wait_for_async
from dslite.runtime.engine.engine import Engine
from dslite.runtime.errors import ContextFullError, UsageError
from dslite.runtime.events import Done, Token

GREEDY = SamplingParams(temperature=0, max_tokens=12)
DONE = Done("stop", "a", (1,), 1, 0)
LONG = 60.0  # seconds: only a test that fails waits for so long


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_engine("demo", EngineOptions(device="cpu", dtype="float32", ctx_size=256))


def test_an_answer_is_the_one_that_comes_without_a_loop(engine: Engine) -> None:
    async def go() -> tuple[str, str]:
        streamed = "".join([event.delta async for event in astream(engine, "How do I", GREEDY)])
        return streamed, (await agenerate(engine, "How do I", GREEDY)).text

    assert asyncio.run(go()) == (generate(engine, "How do I", GREEDY).text,) * 2


def test_a_chat_has_the_same_history_as_without_a_loop(engine: Engine) -> None:
    async def go() -> Chat:
        chat = Chat(engine, system="Be brief.", params=GREEDY)
        first = await chat.asend("How do I save a profile?")
        last = [event async for event in chat.astream("And then?")][-1]
        assert isinstance(last, Done)
        assert last.cached_tokens >= first.prompt_tokens
        return chat

    plain = Chat(engine, system="Be brief.", params=GREEDY)
    plain.send("How do I save a profile?")
    plain.send("And then?")
    assert asyncio.run(go()).messages == plain.messages


def test_answers_asked_together_are_those_that_each_gets_alone(engine: Engine) -> None:
    prompts = ["How do I", "A profile is", "Use `dslite"]

    async def go() -> list[str]:
        return [one.text for one in await asyncio.gather(*(agenerate(engine, prompt, GREEDY) for prompt in prompts))]

    assert asyncio.run(go()) == [generate(engine, prompt, GREEDY).text for prompt in prompts]


def test_the_loop_runs_while_an_answer_is_computed(engine: Engine) -> None:
    released = threading.Event()
    seen: list[bool] = []

    def start(cancel: Flag) -> Iterator[Token | Done]:
        seen.append(threading.current_thread() is threading.main_thread())
        seen.append(released.wait(LONG))  # of the loop, which must be free to do so
        yield DONE

    async def go() -> None:
        answer = asyncio.create_task(anext(AsyncAnswer(engine, start)))
        await asyncio.sleep(0)
        released.set()
        assert await answer == DONE

    asyncio.run(go())
    assert seen == [False, True]


@pytest.mark.parametrize("way", ["break", "aclose", "cancel"])
def test_an_answer_that_is_left_is_cancelled(engine: Engine, way: str) -> None:
    stopped: list[bool] = []

    def start(cancel: Flag) -> Iterator[Token | Done]:
        yield Token(1, "a", "a")
        stopped.append(cancel.wait(LONG))
        yield DONE

    done: list[Done] = []

    async def read_to_the_end() -> None:
        async for _ in AsyncAnswer(engine, start, done.append):
            began.set()

    began = asyncio.Event()

    async def go() -> None:
        if way == "break":
            async for _ in AsyncAnswer(engine, start, done.append):
                break
        elif way == "aclose":
            answer = AsyncAnswer(engine, start, done.append)
            await anext(answer)
            await answer.aclose()
            assert [event async for event in answer] == []
        else:
            task = asyncio.create_task(read_to_the_end())
            await began.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        wait_for_async(engine)

    asyncio.run(go())
    assert (stopped, done) == ([True], [])


def test_a_broken_off_answer_leaves_the_history_and_the_engine_usable(engine: Engine) -> None:
    chat = Chat(engine, params=SamplingParams(temperature=0, max_tokens=100))

    async def go() -> None:
        async for _ in chat.astream("How do I save a profile?"):
            break
        assert chat.messages == []
        assert chat.send("How do I save a profile?", GREEDY).text

    asyncio.run(go())
    assert chat.messages[1].content == Chat(engine).send("How do I save a profile?", GREEDY).text


def test_errors_are_raised_in_the_loop_and_leave_the_history(engine: Engine) -> None:
    chat = Chat(engine, params=GREEDY)

    async def go() -> None:
        with pytest.raises(ContextFullError):
            await chat.asend("x " * 300)
        with pytest.raises(UsageError):
            await agenerate(engine, "x", json_schema="no JSON")

    asyncio.run(go())
    assert chat.messages == []
