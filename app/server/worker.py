"""The thread that drives the network, and the queues between it and the event loop.

The event loop only puts commands into a queue and takes events out of queues: it never waits for the network, and the
network never waits for a reader. All running sequences decode together (runtime/engine/scheduler.py).

Any exception in the thread, of whatever type, fails every open request with a 500. The next requests get a new
scheduler; where that cannot be made, the worker is dead and refuses all further requests at once.
"""

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from dslite.app.server.errors import ApiError, busy, from_runtime, internal
from dslite.app.server.limits import Limits
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.scheduler import BatchEvent, Scheduler
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import Done, Event
from dslite.runtime.warm.driver import ActiveRequest, RequestDriver

_log = logging.getLogger("dslite.server")

Key = tuple[int, int]  # the stream's number, and the choice in it
Command = tuple[int, Callable[[Scheduler], None]]  # of a stream with this number
T = TypeVar("T")


class GenerationStream:
    """The events of one HTTP request's choices. It belongs to the event loop."""

    def __init__(self, worker: "Worker", number: int, count: int, capacity: int) -> None:
        """`capacity`: events that may wait for a slow reader."""
        self.number = number
        self.running = set(range(count))
        self._worker = worker
        self._capacity = capacity
        self._events: asyncio.Queue[tuple[int, Event | DsliteError]] = asyncio.Queue()

    def put(self, choice: int, event: Event | DsliteError) -> None:
        if isinstance(event, Done | DsliteError):
            self.running.discard(choice)
        if self._events.qsize() >= self._capacity:
            event = ApiError(408, "the answer was read too slowly", code="slow_reader")
        self._events.put_nowait((choice, event))
        if isinstance(event, DsliteError):
            self.close()

    def fail(self, error: ApiError) -> None:
        """End all choices with an error."""
        self.put(0, error)

    @property
    def is_empty(self) -> bool:
        """Whether no event waits to be read."""
        return self._events.empty()

    async def next(self, silence: float | None = None) -> tuple[int, Event] | None:
        """The next (choice, event), or None after `silence` seconds without one. Raises ApiError."""
        try:
            async with asyncio.timeout(silence):
                choice, event = await self._events.get()
        except TimeoutError:
            return None
        if isinstance(event, DsliteError):
            raise from_runtime(event)
        return choice, event

    @property
    def ended(self) -> bool:
        return not self.running and self._events.empty()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(choice, event) until all choices are done. Raises ApiError."""
        while not self.ended:
            if (item := await self.next()) is not None:
                yield item

    def close(self) -> None:
        """Stop computing what has not been read."""
        self._worker.cancel(self)


class Worker:
    """Drives a scheduler in a thread of its own. Its methods are called in the event loop."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._limits = limits
        self._engine = engine
        self._commands: SimpleQueue[Command | None] = SimpleQueue()
        self._open: dict[int, GenerationStream] = {}
        self._numbers = itertools.count(1)
        self._closing: ApiError | None = None
        self.guests: RequestDriver | None = None  # whose requests come from commands of this user (warm.py)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="dslite-worker", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, seconds: float | None = None) -> bool:
        """End the thread after the step it is in; return whether it has ended within the time."""
        self._commands.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether requests can be answered."""
        return self._thread.is_alive()

    @property
    def pending(self) -> int:
        """Answers under way and waiting."""
        return sum(len(stream.running) for stream in self._open.values())

    def submit(self, requests: Sequence[Request]) -> GenerationStream:
        """Begin to answer. Raises ApiError where too many wait, or the worker takes no more."""
        if self._closing is not None:
            raise self._closing
        if self.pending + len(requests) > self._limits.queue:
            raise busy(f"{self.pending} answers are under way or waiting; this server takes {self._limits.queue}")
        stream = GenerationStream(self, next(self._numbers), len(requests), self._limits.buffered)
        self._open[stream.number] = stream
        for choice, request in enumerate(requests):
            self._commands.put((stream.number, self._add((stream.number, choice), request)))
        return stream

    def put(self, command: Callable[[Scheduler], None]) -> None:
        """Have a command run between two steps. May be called by any thread."""
        self._commands.put((next(self._numbers), command))

    def cancel(self, stream: GenerationStream) -> None:
        """Stop what is still running of a stream."""
        if self._open.pop(stream.number, None) is None:
            return
        for choice in sorted(stream.running):
            self._commands.put((stream.number, partial(Scheduler.remove, key=(stream.number, choice))))
        stream.running.clear()

    def close(self, error: ApiError) -> None:
        """Take no more requests."""
        self._closing = error

    def end_all(self, error: ApiError) -> None:
        """Take no more requests, and end the running ones with an error."""
        self.close(error)
        self._fail_open(error)

    def _fail_open(self, error: ApiError, last: int | None = None) -> None:
        """End the open streams, or those with a number up to `last`, with an error."""
        for stream in list(self._open.values()):
            if last is None or stream.number <= last:
                stream.fail(error)

    def _add(self, key: Key, request: Request) -> Callable[[Scheduler], None]:
        def add(scheduler: Scheduler) -> None:
            try:
                scheduler.add(key, request)
            except DsliteError as error:
                self._send([(key, error)])

        return add

    def _run(self) -> None:
        """The thread. A failure that leaves no scheduler to go on with ends it; requests then fail at once."""
        failed: int | None = 0
        try:
            while failed is not None:
                failed = self._drive(Scheduler(self._engine, max_sequences=self._limits.parallel), failed)
        except BaseException:
            _log.exception("the engine cannot go on: all further requests fail until the server is started again")
            self._call(self.end_all, ApiError(500, "the engine has failed; start the server again", code="engine_dead"))

    def _drive(self, scheduler: Scheduler, failed: int) -> int | None:
        """Run commands and steps until the worker is stopped (None), or until one of them raises.

        A failure ends the streams seen so far; returns the number of the last one. Streams up to `failed` have been
        ended by the failure before, and their commands that still wait are skipped.
        """
        last = failed
        while True:
            try:
                while not len(scheduler) or not self._commands.empty():
                    while self._commands.empty() and self._engine.prefix_cache.write_prompt():
                        pass  # while nothing runs: a request that comes waits for one entry at most
                    command = self._commands.get()
                    if command is None:
                        while self._engine.prefix_cache.write_prompt():
                            pass
                        return None
                    number, run = command
                    last = max(last, number)
                    if number > failed:
                        run(scheduler)
                events = scheduler.step()
            except BaseException:
                _log.exception("a step of the network failed")
                self._call(partial(self._fail_open, last=last), internal())
                if self.guests is not None:
                    self.guests.fail(internal())
                return last
            self._send(events)

    def _send(self, events: list[BatchEvent]) -> None:
        streamed = [event for event in events if not self._is_of_guest(*event)]
        if streamed:
            self._call(self._deliver, streamed)

    def _is_of_guest(self, key: Hashable, event: Event | DsliteError) -> bool:
        """Whether an event belongs to a guest's request, which then has it."""
        if not isinstance(key, ActiveRequest) or self.guests is None:
            return False
        self.guests.take(key, event)
        return True

    def _call(self, function: Callable[[T], None], argument: T) -> None:
        """Call a function in the event loop, unless that has ended."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:
            _log.debug("the event loop has ended")

    def _deliver(self, events: list[BatchEvent]) -> None:
        for key, event in events:
            assert isinstance(key, tuple)
            stream = self._open.get(key[0])
            if stream is not None:
                stream.put(key[1], event)
                if not stream.running:
                    self._open.pop(stream.number, None)
