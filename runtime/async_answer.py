"""An answer for `async for`: the engine computes in a thread, and the event loop only takes what came.

Each engine has one such thread, so its answers run in the order in which they were asked. The thread never waits for
the loop. An answer that is let go of (a `break`, a cancelled task, `aclose()`) is cancelled at once, and the thread
leaves it after the token it is in.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event as Flag
from weakref import WeakKeyDictionary

from dslite.runtime.engine.engine import Engine
from dslite.runtime.events import ChatEvent, Done, Token

Start = Callable[[Flag], Iterator[ChatEvent]]

_threads: WeakKeyDictionary[Engine, ThreadPoolExecutor] = WeakKeyDictionary()


class AsyncAnswer(AsyncIterator[Token | Done]):
    """The events of one answer: a Token each, one Done at the end. It begins when it is first read."""

    def __init__(self, engine: Engine, start: Start, on_done: Callable[[Done], None] | None = None) -> None:
        """`start` makes the events, in the engine's thread; `on_done` is called in the event loop."""
        self._engine = engine
        self._start = start
        self._on_done = on_done
        self._cancel = Flag()
        self._events: asyncio.Queue[Token | Done | BaseException] | None = None
        self._ended = False

    def __aiter__(self) -> "AsyncAnswer":
        return self

    async def __anext__(self) -> Token | Done:
        if self._ended:
            raise StopAsyncIteration
        if self._events is None:
            self._events = asyncio.Queue()
            loop = asyncio.get_running_loop()
            _thread(self._engine).submit(_compute, self._start, self._cancel, loop, self._events)
        try:
            event = await self._events.get()
        except BaseException:
            self._end()
            raise
        if isinstance(event, BaseException):
            self._end()
            raise event
        if isinstance(event, Done):
            self._ended = True
            if self._on_done is not None:
                self._on_done(event)
        return event

    async def aclose(self) -> None:
        """Stop computing. A `break` out of the loop does the same once nothing else refers to the answer."""
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._cancel.set()

    def __del__(self) -> None:
        self._cancel.set()


def wait_for_async(engine: Engine) -> None:
    """Return once the engine's thread has nothing to do: an answer that was left may still be in its last token."""
    if (thread := _threads.get(engine)) is not None:
        thread.submit(lambda: None).result()


def _thread(engine: Engine) -> ThreadPoolExecutor:
    if engine not in _threads:
        _threads[engine] = ThreadPoolExecutor(1, "dslite-engine")
    return _threads[engine]


def _compute(
    start: Start,
    cancel: Flag,
    loop: asyncio.AbstractEventLoop,
    events: "asyncio.Queue[Token | Done | BaseException]",
) -> None:
    """Runs in the engine's thread: hand every event to the loop, at last a Done or what was raised."""

    def hand(event: Token | Done | BaseException) -> None:
        try:
            loop.call_soon_threadsafe(events.put_nowait, event)
        except RuntimeError:  # the loop has ended, and with it the wish for this answer
            cancel.set()

    if cancel.is_set():
        return
    try:
        for event in start(cancel):
            if isinstance(event, Token | Done):
                hand(event)
    except BaseException as error:
        hand(error)
