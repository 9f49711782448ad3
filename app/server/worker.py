"""The one thread that drives the network, and the way of its events to the event loop.

The event loop only puts commands into a queue and takes events out of queues: it never waits for the network, and the
network never waits for a reader. All answers under way decode together (runtime/engine/batch.py).
"""

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from queue import SimpleQueue

from dslite.app.server.errors import ApiError, busy, from_runtime, internal
from dslite.app.server.limits import Limits
from dslite.runtime.engine.batch import Batch, BatchEvent
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.sequence import Request
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import Done, Event

_log = logging.getLogger("dslite.server")

Key = tuple[int, int]  # the asking, and which of its choices
Command = Callable[[Batch], None]


class GenerationStream:
    """The choices of one HTTP request, being made. All of it belongs to the event loop."""

    def __init__(self, worker: "Worker", number: int, count: int, most: int) -> None:
        """`most` events may wait for a reader."""
        self.number = number
        self.running = set(range(count))
        self._worker = worker
        self._most = most
        self._events: asyncio.Queue[tuple[int, Event | DsliteError]] = asyncio.Queue()

    def put(self, choice: int, happening: Event | DsliteError) -> None:
        if isinstance(happening, Done | DsliteError):
            self.running.discard(choice)
        if self._events.qsize() >= self._most:
            happening = ApiError(408, "the answer was read too slowly", code="slow_reader")
        self._events.put_nowait((choice, happening))
        if isinstance(happening, DsliteError):
            self.close()

    def fail(self, error: ApiError) -> None:
        """End all choices with an error."""
        self.put(0, error)

    @property
    def waits(self) -> bool:
        """Whether the next event is still to come."""
        return self._events.empty()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(choice, event) as they come, until all choices are done. Raises ApiError."""
        while self.running or not self._events.empty():
            choice, happening = await self._events.get()
            if isinstance(happening, DsliteError):
                raise from_runtime(happening)
            yield choice, happening

    def close(self) -> None:
        """Nobody wants the rest: it is not computed any further."""
        self._worker.forget(self)


class Worker:
    """Drives a batch in a thread of its own. Its methods are called in the event loop."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._limits = limits
        self._engine = engine
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._open: dict[int, GenerationStream] = {}
        self._numbers = itertools.count(1)
        self._closing: ApiError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="dslite-worker", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the step it is in."""
        self._commands.put(None)
        self._thread.join()

    @property
    def pending(self) -> int:
        """Answers under way and waiting."""
        return sum(len(answering.running) for answering in self._open.values())

    def ask(self, requests: Sequence[Request]) -> GenerationStream:
        """Begin to answer. Raises ApiError where too many wait, or the server ends."""
        if self._closing is not None:
            raise self._closing
        if self.pending + len(requests) > self._limits.queue:
            raise busy(f"{self.pending} answers are under way or waiting; this server takes {self._limits.queue}")
        answering = GenerationStream(self, next(self._numbers), len(requests), self._limits.buffered)
        self._open[answering.number] = answering
        for choice, request in enumerate(requests):
            self._commands.put(self._joining((answering.number, choice), request))
        return answering

    def forget(self, answering: GenerationStream) -> None:
        """Stop what is still running of an asking."""
        if self._open.pop(answering.number, None) is None:
            return
        for choice in sorted(answering.running):
            self._commands.put(self._leaving((answering.number, choice)))
        answering.running.clear()

    def close(self, error: ApiError) -> None:
        """Take nothing more."""
        self._closing = error

    def end_all(self, error: ApiError) -> None:
        """Take nothing more, and end with an error what is running."""
        self.close(error)
        for answering in list(self._open.values()):
            answering.fail(error)

    def _joining(self, key: Key, request: Request) -> Command:
        def join(batch: Batch) -> None:
            try:
                batch.join(key, request)
            except DsliteError as error:
                self._tell([(key, error)])

        return join

    @staticmethod
    def _leaving(key: Key) -> Command:
        return lambda batch: batch.leave(key)

    def _new_batch(self) -> Batch:
        return Batch(self._engine, most=self._limits.parallel)

    def _run(self) -> None:
        batch = self._new_batch()
        while True:
            while not len(batch) or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    return
                command(batch)
            try:
                happenings = batch.step()
            except Exception:  # whatever broke, memory that ran out above all: the next request deserves its chance
                _log.exception("a step of the network failed")
                batch = self._new_batch()
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._fail_all)
            else:
                self._tell(happenings)

    def _tell(self, happenings: list[BatchEvent]) -> None:
        assert self._loop is not None
        if happenings:
            self._loop.call_soon_threadsafe(self._deliver, happenings)

    def _deliver(self, happenings: list[BatchEvent]) -> None:
        for key, happening in happenings:
            assert isinstance(key, tuple)
            answering = self._open.get(key[0])
            if answering is not None:
                answering.put(key[1], happening)
                if not answering.running:
                    self._open.pop(answering.number, None)

    def _fail_all(self) -> None:
        for answering in list(self._open.values()):
            answering.fail(internal())
