"""The thread that owns the model. Jobs go in, events come out of a bounded queue; nothing else is shared.

The screen empties the queue from a timer. When it cannot keep up, the queue fills and the thread waits: no token is
lost, and memory stays bounded.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dslite.app.chat.model_loading import LoadedModel, ModelLoader
from dslite.app.chat.settings import ChatSettings
from dslite.model.errors import DsliteError
from dslite.runtime.chat.protocol import ModelStats
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.errors import ContextFullError, ModelUnavailableError
from dslite.runtime.events import ChatEvent, Done, Loading

if TYPE_CHECKING:
    from dslite.runtime.text.chat_template import Message

_MOST_EVENTS = 1024
_FACTS_EVERY_S = 1.0
_KEEP_AFTER_S = 3.0  # without a new question


@dataclass(eq=False)
class GenerationJob:
    """A reply to make. `messages` is called in the thread; `forget` leaves out the oldest turns that do not fit.

    `saved_as` tells the conversation's id, once it has one.
    """

    messages: Callable[[], Sequence["Message"]]
    settings: ChatSettings
    saved_as: Callable[[], str | None] = lambda: None
    go_on: bool = False
    forget: bool = False
    cancel: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class LoadingStarted:
    """A model is being looked for."""

    model: str


@dataclass(frozen=True)
class ModelReady:
    """The model is loaded."""

    facts: ModelStats


@dataclass(frozen=True)
class ModelUnavailable:
    """The model could not be opened. `absent`: it is not on this machine, or not whole."""

    model: ModelRef
    error: DsliteError
    absent: bool


@dataclass(frozen=True)
class PrefillStarted:
    """The messages are being read. `left_out` of them were too old for the context."""

    job: GenerationJob
    left_out: int = 0


@dataclass(frozen=True)
class GenerationEvent:
    """What the engine says about a reply."""

    job: GenerationJob
    event: ChatEvent


@dataclass(frozen=True)
class GenerationFailed:
    """A reply ended in an error."""

    job: GenerationJob
    error: DsliteError


@dataclass(frozen=True)
class StatsUpdated:
    """Sizes and counters, now and then."""

    facts: ModelStats


WorkerEvent = (
    LoadingStarted
    | Loading
    | ModelReady
    | ModelUnavailable
    | PrefillStarted
    | GenerationEvent
    | GenerationFailed
    | StatsUpdated
)


@dataclass(frozen=True)
class ResetStats:
    """Another conversation is on screen: what is counted for each begins at nothing."""


_Job = ModelRef | GenerationJob | ResetStats | None


class EngineWorker:
    """Opens models and makes replies, one after the other."""

    def __init__(self, open_model: ModelLoader) -> None:
        self.watched = False  # whether somebody looks at counters while an answer is made
        self._open_model = open_model
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._events: queue.Queue[WorkerEvent] = queue.Queue(_MOST_EVENTS)
        self._closing = threading.Event()
        self._current: GenerationJob | None = None
        self._opened: LoadedModel | None = None
        self._unkept: GenerationJob | None = None  # the last reply, while the disk does not have what it computed
        self._thread = threading.Thread(target=self._run, name="dslite-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def open(self, ref: ModelRef) -> None:
        """Load a model in place of the one before."""
        self._jobs.put(ref)

    def answer(self, job: GenerationJob) -> None:
        """Make a reply, once the model is there."""
        self._jobs.put(job)

    def count_anew(self) -> None:
        """Another conversation is on screen."""
        self._jobs.put(ResetStats())

    def close(self, timeout: float = 2.0) -> None:
        """Stop what is being made, and end. A thread in the middle of loading is left behind: it is a daemon."""
        self._closing.set()
        if (job := self._current) is not None:
            job.cancel.set()
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def drain(self) -> list[WorkerEvent]:
        """What has happened since the last call."""
        events: list[WorkerEvent] = []
        try:
            while len(events) < _MOST_EVENTS:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        return events

    # In the thread.

    def _run(self) -> None:
        while not self._closing.is_set() and (job := self._next()) is not None:
            if isinstance(job, GenerationJob):
                self._current = job
                self._answer(job)
                self._current = None
                self._unkept = job
            elif isinstance(job, ResetStats):
                self._count_anew()
            else:
                self._keep()
                self._open(job)
        self._keep()

    def _next(self) -> _Job:
        """The next job. When none comes for a while, what the last one computed goes to disk meanwhile."""
        if self._unkept is not None:
            try:
                return self._jobs.get(timeout=_KEEP_AFTER_S)
            except queue.Empty:
                self._keep()
        return self._jobs.get()

    def _keep(self) -> None:
        job, self._unkept = self._unkept, None
        if job is None or self._opened is None:
            return
        key, responder = job.saved_as(), self._opened.responder
        if key is not None:
            responder.save_cache(key)

    def _tell(self, event: WorkerEvent) -> None:
        while not self._closing.is_set():
            try:
                self._events.put(event, timeout=0.1)
            except queue.Full:
                continue
            return

    def _open(self, ref: ModelRef) -> None:
        self._tell(LoadingStarted(ref.name))
        self._opened = None  # the old weights go before the new ones come
        try:
            self._opened = self._open_model(ref, self._tell)
            self._tell(ModelReady(self._opened.responder.stats()))
        except DsliteError as error:
            absent = isinstance(error, ModelUnavailableError) and ref.folder is None
            self._tell(ModelUnavailable(ref, error, absent))
        except Exception as error:  # the screen must hear of it, whatever it is
            self._tell(ModelUnavailable(ref, _unexpected(error), absent=False))

    def _count_anew(self) -> None:
        if self._opened is not None:
            self._opened.responder.reset_expert_counts()
            self._tell(StatsUpdated(self._opened.responder.stats()))

    def _answer(self, job: GenerationJob) -> None:
        if self._opened is None:
            self._tell(GenerationFailed(job, ModelUnavailableError("no model is loaded", "choose one with /model")))
            return
        try:
            self._reply(job, self._opened)
        except DsliteError as error:
            self._tell(GenerationFailed(job, error))
        except Exception as error:  # the screen must hear of it, whatever it is
            self._tell(GenerationFailed(job, _unexpected(error)))

    def _reply(self, job: GenerationJob, opened: LoadedModel) -> None:
        messages = list(job.messages())
        kept = opened.responder.trim_to_fit(messages, continue_final_message=job.go_on) if job.forget else messages
        if (key := job.saved_as()) is not None:
            opened.responder.restore_cache(key, kept, continue_final_message=job.go_on)
        params = job.settings.params(opened.defaults)
        events = opened.responder.reply(kept, params, job.cancel, continue_final_message=job.go_on)
        self._tell(PrefillStarted(job, len(messages) - len(kept)))
        told = time.perf_counter()
        for event in events:
            self._tell(GenerationEvent(job, event))
            now = time.perf_counter()
            if isinstance(event, Done) or (self.watched and now - told > _FACTS_EVERY_S):
                told = now
                self._tell(StatsUpdated(opened.responder.stats()))


def is_overflow(error: DsliteError) -> bool:
    """Whether a reply failed because its messages do not fit."""
    return isinstance(error, ContextFullError)


def _unexpected(error: Exception) -> DsliteError:
    return DsliteError(f"unexpected {type(error).__name__}: {error}", "the log has the details")
