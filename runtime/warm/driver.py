"""The thread of an engine that computes: it alone touches the scheduler and the prefix cache.

`dslite serve --warm` has such a thread already (app/server/worker.py), which runs the same commands.

Requests of all clients decode together. Prompts are read in the chunks of a process of their own, not in the smaller
ones of a server, so that results are the same.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.scheduler import DEFAULT_SEQUENCES, Scheduler
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import Done, Event, Prefilling

_log = logging.getLogger(__name__)
_logger = logging.getLogger("dslite")
_T = TypeVar("_T")


@dataclass(frozen=True)
class AnswerEnd:
    """The end of an answer, with the memory and the experts' counters that belong to it."""

    done: Done
    memory: Mapping[str, int]
    experts: Mapping[str, int]


@dataclass(eq=False)
class ActiveRequest:
    """A request that is being answered.

    `put` takes its events in the driver's thread and must not wait; the last one is an AnswerEnd or an error. A
    `private` request is not logged.
    """

    request: Request
    put: Callable[[Event | AnswerEnd | DsliteError], None]
    private: bool = False
    cancel: threading.Event = field(default_factory=threading.Event)
    experts: Mapping[str, int] = field(default_factory=dict)  # the counters when it began


class RequestDriver(ABC):
    """What connections ask of the thread that computes. `submit`, `call` and `forget` are for any thread, what stands
    below them for that one.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._active: list[ActiveRequest] = []
        self._level = logging.INFO

    @abstractmethod
    def put(self, command: Callable[[Scheduler], None]) -> None:
        """Have a command run between two steps. Raises DsliteError where no step will come."""

    def submit(self, active: ActiveRequest) -> None:
        """Begin to answer."""
        self.put(lambda scheduler: self._add(scheduler, active))

    def call(self, function: Callable[[Engine], _T]) -> _T:
        """Call a function between two steps, and wait for what it returns. Raises what it raises."""
        return self._wait_for(lambda _: function(self._engine))

    def forget(self, active: ActiveRequest | None) -> None:
        """Drop a request that may be under way, and all that is in memory of it and of earlier ones."""

        def forget(scheduler: Scheduler) -> None:
            if active in self._active:
                self._remove(active)
                scheduler.remove(active)
            self._engine.forget()

        self._wait_for(forget)

    def _wait_for(self, function: Callable[[Scheduler], _T]) -> _T:
        result: Future[_T] = Future()

        def run(scheduler: Scheduler) -> None:
            try:
                result.set_result(function(scheduler))
            except Exception as error:
                result.set_exception(error)

        self.put(run)
        return result.result()

    # ---- the thread that computes ----

    def take(self, active: ActiveRequest, event: Event | DsliteError) -> None:
        """An event that a step gave."""
        if isinstance(event, Done | DsliteError):
            end = self._answer_end(active, event) if isinstance(event, Done) else event
            self._remove(active)
            active.put(end)
        else:
            active.put(event)

    def fail(self, error: DsliteError) -> None:
        """The scheduler is gone, and with it all requests."""
        for active in list(self._active):
            self._remove(active)
            active.put(error)

    def _add(self, scheduler: Scheduler, active: ActiveRequest) -> None:
        active.experts = self._engine.expert_stats()
        self._active.append(active)
        if active.private:  # as with --no-save in a process of its own, which logs no answers
            self._level = _logger.level if _logger.level != logging.WARNING else self._level
            _logger.setLevel(logging.WARNING)
        try:
            scheduler.add(active, active.request, active.cancel)
        except DsliteError as error:
            self.take(active, error)

    def _remove(self, active: ActiveRequest) -> None:
        self._active.remove(active)
        if active.private and not any(other.private for other in self._active):
            _logger.setLevel(self._level)

    def _answer_end(self, active: ActiveRequest, done: Done) -> AnswerEnd:
        memory, experts = self._engine.memory(), self._engine.expert_stats()
        known = self._engine.prefix_cache.known([*active.request.prompt_ids, *done.token_ids])
        memory["kv_bytes"] = known * memory["kv_bytes_per_token"]
        counted = {name: value - active.experts[name] for name, value in experts.items() if name != "slots"}
        return AnswerEnd(done, memory, {"slots": experts["slots"], **counted})


class EngineDriver(RequestDriver):
    """Runs a scheduler of its own."""

    def __init__(self, engine: Engine, *, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called, once, where a step fails in an unforeseen way: the engine is of no use then."""
        super().__init__(engine)
        self._on_failure = on_failure
        self._commands: SimpleQueue[Callable[[Scheduler], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="dslite-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step it is in."""
        self._commands.put(None)
        self._thread.join()

    def put(self, command: Callable[[Scheduler], None]) -> None:
        self._commands.put(command)

    def _run(self) -> None:
        try:
            self._drive(Scheduler(self._engine, max_sequences=DEFAULT_SEQUENCES, chunk=None, on_progress=_report))
        except BaseException:
            _log.exception("a step of the network failed: the engine ends, and its clients compute by themselves")
            self._on_failure()

    def _drive(self, scheduler: Scheduler) -> None:
        while True:
            while not len(scheduler) or not self._commands.empty():
                command = self._commands.get()
                if command is None:
                    return
                command(scheduler)
            for key, event in scheduler.step():
                assert isinstance(key, ActiveRequest)
                self.take(key, event)


def _report(key: Any, event: Prefilling) -> None:
    assert isinstance(key, ActiveRequest)
    key.put(event)
