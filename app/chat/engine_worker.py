"""The thread that owns the model. Jobs go in, events come out of a bounded queue; both are immutable.

The front end empties the queue from a timer. When it cannot keep up, the queue fills and the thread waits: no token is
lost, and memory stays bounded.
"""

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dslite.app.chat.model_loading import LoadedModel, ModelLoader
from dslite.app.errors import shown_error
from dslite.model.errors import DsliteError
from dslite.runtime.chat.protocol import ModelStats
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import ModelUnavailableError
from dslite.runtime.events import ChatEvent, Done, LoadingEvent, Token

if TYPE_CHECKING:
    from dslite.runtime.text.message import Message

_MAX_EVENTS = 1024
_STATS_EVERY_S = 1.0
_SAVE_CACHE_AFTER_S = 3.0  # without a new question


@dataclass(frozen=True, eq=False)
class GenerationJob:
    """A reply to generate. `trim` leaves out the oldest turns that do not fit.

    `sampling` overrides the model's defaults. `conversation` is the key of the message tree; `conversation_id` the id
    of the saved conversation, None until it is saved: a later ConversationSaved has it.
    """

    messages: tuple["Message", ...]
    sampling: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    conversation: int = 0
    conversation_id: str | None = None
    continue_final_message: bool = False
    trim: bool = False
    cancel: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, eq=False)
class ScoreJob:
    """Find the log-probabilities of the last message's tokens."""

    messages: tuple["Message", ...]
    top: int
    cancel: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class ConversationSaved:
    """The conversation of some jobs was saved and has an id."""

    conversation: int
    id: str


@dataclass(frozen=True)
class ResetStats:
    """Another conversation is active: its counters start at zero."""


@dataclass(frozen=True)
class LoadingStarted:
    """The former model is freed, and another one is being loaded."""

    model: ModelRef


@dataclass(frozen=True)
class ModelReady:
    """A model is loaded."""

    model: ModelRef
    stats: ModelStats


@dataclass(frozen=True)
class ModelUnavailable:
    """A model could not be loaded. `absent`: it is not on this machine, or incomplete. `kept`: the former model is
    still loaded."""

    model: ModelRef
    error: DsliteError
    absent: bool
    kept: bool


@dataclass(frozen=True)
class PrefillStarted:
    """The engine reads the messages. `left_out` of them, the oldest, did not fit."""

    job: GenerationJob
    left_out: int = 0


@dataclass(frozen=True)
class GenerationEvent:
    """An event of the backend."""

    job: GenerationJob
    event: ChatEvent


@dataclass(frozen=True)
class GenerationFailed:
    """A reply ended in an error."""

    job: GenerationJob
    error: DsliteError


@dataclass(frozen=True)
class TokensScored:
    """The end of a ScoreJob. `tokens` is None where the backend cannot tell them, or where there was an error."""

    job: ScoreJob
    tokens: tuple[Token, ...] | None = None
    error: DsliteError | None = None


@dataclass(frozen=True)
class StatsUpdated:
    """Sizes and counters, now and then."""

    stats: ModelStats


WorkerEvent = (
    LoadingStarted
    | LoadingEvent
    | ModelReady
    | ModelUnavailable
    | PrefillStarted
    | GenerationEvent
    | GenerationFailed
    | StatsUpdated
    | TokensScored
)
_Job = ModelRef | GenerationJob | ScoreJob | ConversationSaved | ResetStats | None


class EngineWorker:
    """Loads models and generates replies, one after the other."""

    def __init__(self, load_model: ModelLoader, *, save_cache_after_s: float = _SAVE_CACHE_AFTER_S) -> None:
        self.watched = threading.Event()  # set while the counters of a running answer are on screen
        self._load_model = load_model
        self._save_cache_after_s = save_cache_after_s
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._events: queue.Queue[WorkerEvent] = queue.Queue(_MAX_EVENTS)
        self._closing = threading.Event()
        self._current: GenerationJob | ScoreJob | None = None
        # Of the thread:
        self._loaded: LoadedModel | None = None
        self._unsaved: GenerationJob | None = None  # the last one, while its cache is not on disk
        self._ids: dict[int, str] = {}
        self._thread = threading.Thread(target=self._run, name="dslite-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def load(self, ref: ModelRef) -> None:
        """Load a model in place of the loaded one, which stays where the new one is not found."""
        self._jobs.put(ref)

    def generate(self, job: GenerationJob) -> None:
        self._jobs.put(job)

    def score(self, job: ScoreJob) -> None:
        self._jobs.put(job)

    def conversation_saved(self, conversation: int, identity: str) -> None:
        self._jobs.put(ConversationSaved(conversation, identity))

    def reset_stats(self) -> None:
        self._jobs.put(ResetStats())

    def close(self, timeout: float = 2.0) -> None:
        """Cancel the running reply and end the thread. One that is loading is left behind: it is a daemon."""
        self._closing.set()
        if (job := self._current) is not None:
            job.cancel.set()
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def drain(self, timeout: float = 0.0) -> list[WorkerEvent]:
        """Events since the last call. With none, wait `timeout` seconds for the first."""
        events: list[WorkerEvent] = []
        try:
            events.append(self._events.get(timeout=timeout) if timeout else self._events.get_nowait())
            while len(events) < _MAX_EVENTS:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        return events

    @property
    def loaded(self) -> LoadedModel | None:
        """The loaded model, for tests and benchmarks that read its engine."""
        return self._loaded

    # The thread.

    def _run(self) -> None:
        while (job := self._next()) is not None:
            if isinstance(job, ConversationSaved):
                self._ids[job.conversation] = job.id
            elif self._closing.is_set():
                continue
            elif isinstance(job, ScoreJob):
                self._current = job
                self._emit(self._score(job))
                self._current = None
            elif isinstance(job, GenerationJob):
                self._current = job
                self._generate(job)
                self._current, self._unsaved = None, job
            else:
                self._save_cache()
                if isinstance(job, ModelRef):
                    self._load(job)
                else:
                    self._reset_stats()
        self._save_cache()
        self._close_backend()

    def _next(self) -> _Job:
        """The next job. If none comes for a while, write the cache of the last one to disk meanwhile."""
        if self._unsaved is not None:
            try:
                return self._jobs.get(timeout=self._save_cache_after_s)
            except queue.Empty:
                self._save_cache()
        return self._jobs.get()

    def _save_cache(self) -> None:
        job, self._unsaved = self._unsaved, None
        if job is not None and self._loaded is not None and (identity := self._id(job)) is not None:
            self._loaded.backend.save_cache(identity)

    def _close_backend(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.backend.close()

    def _id(self, job: GenerationJob) -> str | None:
        return self._ids.get(job.conversation, job.conversation_id)

    def _emit(self, event: WorkerEvent) -> None:
        while not self._closing.is_set():
            try:
                self._events.put(event, timeout=0.1)
            except queue.Full:
                continue
            return

    def _load(self, ref: ModelRef) -> None:
        """Load a model. The loaded one is freed only once the new one was found, so a mistyped name costs nothing."""
        try:
            self._load_model.check(ref)
            self._close_backend()  # its weights are freed before the new ones are read
            self._emit(LoadingStarted(ref))
            self._loaded = self._load_model.load(ref, self._emit)
            self._emit(ModelReady(ref, self._loaded.backend.stats()))
        except Exception as error:  # of any kind: the front end waits for an event
            absent = isinstance(error, ModelUnavailableError) and ref.repo_id is not None
            shown = shown_error(error)
            self._emit(ModelUnavailable(ref, shown, absent, kept=self._loaded is not None))

    def _reset_stats(self) -> None:
        if self._loaded is not None:
            self._loaded.backend.reset_expert_counts()
            self._emit(StatsUpdated(self._loaded.backend.stats()))

    def _generate(self, job: GenerationJob) -> None:
        try:
            if self._loaded is None:
                raise ModelUnavailableError("no model is loaded", "choose one with /model")
            self._reply(job, self._loaded)
        except Exception as error:  # of any kind: the front end waits for an event
            self._emit(GenerationFailed(job, shown_error(error)))

    def _score(self, job: ScoreJob) -> TokensScored:
        try:
            tokens = None if self._loaded is None else self._loaded.backend.score(job.messages, job.top, job.cancel)
            return TokensScored(job, None if tokens is None else tuple(tokens))
        except Exception as error:  # of any kind: the front end waits for an event
            return TokensScored(job, error=shown_error(error))

    def _reply(self, job: GenerationJob, loaded: LoadedModel) -> None:
        backend, more = loaded.backend, job.continue_final_message
        messages = list(job.messages)
        kept = backend.trim_to_fit(messages, continue_final_message=more) if job.trim else messages
        if (identity := self._id(job)) is not None:
            backend.restore_cache(identity, kept, continue_final_message=more)
        params = SamplingParams(**{**loaded.defaults, **job.sampling})
        events = backend.reply(
            kept,
            params,
            job.cancel,
            continue_final_message=more,
            on_prefill=lambda progress: self._emit(GenerationEvent(job, progress)),
        )
        self._emit(PrefillStarted(job, len(messages) - len(kept)))
        updated = time.perf_counter()
        for event in events:
            self._emit(GenerationEvent(job, event))
            now = time.perf_counter()
            if isinstance(event, Done) or (self.watched.is_set() and now - updated > _STATS_EVERY_S):
                updated = now
                self._emit(StatsUpdated(backend.stats()))
