"""Work on several files at once in threads, reported as a stream of events, and ended within a second by a flag."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import TypeVar

from dslite.runtime.events import Downloading, Stage

_T = TypeVar("_T")
_POLL_S = 0.1
_REPORT_S = 0.5  # also where nothing moved: a screen shows that it is still alive
_RATE_S = 5.0
_GRACE_S = 0.5


class Cancelled(Exception):
    """The work was cancelled by its flag."""


@dataclass(eq=False)
class Job:
    """One file. Its worker writes, the reporter reads: each field is assigned at once, so there is nothing to lock."""

    name: str
    total: int
    stage: Stage = "waiting"
    note: str = ""
    done: int = 0  # bytes of the file that are in place
    moved: int = 0  # bytes that were fetched or read in this run, for the rate
    cancel: Flag = field(default_factory=Flag)
    abort: Callable[[], None] | None = None  # wakes a worker that waits for a silent server
    error: Exception | None = None

    def check_cancel(self) -> None:
        """Raises Cancelled."""
        if self.cancel.is_set():
            raise Cancelled


def interruptible(call: Callable[[], _T], cancel: Flag) -> _T:
    """The result of a call that waits for the network, made in a thread of its own, so that a signal ends the wait.

    Raises what the call raises, and Cancelled soon after `cancel` is set; the thread then ends by its own time-out.
    """
    outcome: Future[_T] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # raised again by the thread that waits
            outcome.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    while not cancel.is_set():
        with suppress(TimeoutError):
            return outcome.result(_POLL_S)
        if outcome.done():
            return outcome.result()  # the call itself raised TimeoutError
    raise Cancelled


class ProgressReporter:
    """Turns the state of jobs into events with totals and rate."""

    def __init__(self, jobs: Sequence[Job], *, done: int = 0, total: int | None = None) -> None:
        """`done` bytes are in place besides the jobs', and `total` is of everything; default: of the jobs."""
        self._jobs = jobs
        self._done = done
        self._total = sum(job.total for job in jobs) if total is None else total
        self._reported = {job: (job.stage, job.done, job.note) for job in jobs}
        self._last = time.perf_counter()
        self._rates = deque([(self._last, 0)])

    def events(self) -> list[Downloading]:
        """One event for each job that moved since the last call; where none did for a while, one all the same."""
        moved = [job for job in self._jobs if self._reported[job] != (job.stage, job.done, job.note)]
        now = time.perf_counter()
        if not moved and now - self._last > _REPORT_S:
            moved = [job for job in self._jobs if job.stage not in ("waiting", "done")][:1] or list(self._jobs[:1])
        if moved:
            self._last = now
        all_done = self._done + sum(job.done for job in self._jobs)
        rate = self._rate(now)
        events = []
        for job in moved:
            stage, done, note = self._reported[job] = (job.stage, job.done, job.note)
            events.append(Downloading(stage, job.name, done, job.total, all_done, self._total, rate, note))
        return events

    def _rate(self, now: float) -> float:
        """Bytes per second over the last seconds."""
        self._rates.append((now, sum(job.moved for job in self._jobs)))
        while now - self._rates[0][0] > _RATE_S and len(self._rates) > 2:
            self._rates.popleft()
        (then, before), (_, after) = self._rates[0], self._rates[-1]
        return (after - before) / (now - then) if now > then else 0.0


def run(
    work: Callable[[Job], None], jobs: Sequence[Job], reporter: ProgressReporter, *, workers: int, cancel: Flag
) -> Iterator[Downloading]:
    """Do the work of all jobs in threads and yield events; raise the first error once the others have stopped.

    Ends early and without an error when `cancel` is set. A caller that drops the generator stops the work too.
    """
    queue, changed, ended = deque(jobs), Flag(), deque[None]()
    threads = [
        threading.Thread(target=_worker, args=(queue, work, changed, ended), daemon=True)
        for _ in range(min(workers, len(jobs)))
    ]
    for thread in threads:
        thread.start()
    try:
        while len(ended) < len(threads) and not cancel.is_set():
            changed.wait(_POLL_S)
            changed.clear()
            yield from reporter.events()
            if any(job.error for job in jobs):
                break
    finally:
        _stop(threads, jobs)
    yield from reporter.events()
    if error := next((job.error for job in jobs if job.error), None):
        raise error


def _worker(queue: deque[Job], work: Callable[[Job], None], changed: Flag, ended: deque[None]) -> None:
    while queue:
        try:
            job = queue.popleft()
        except IndexError:
            break  # another worker took the last one
        try:
            job.check_cancel()
            work(job)
            job.stage, job.note = "done", ""
        except Cancelled:
            pass
        except Exception as error:  # raised again by the thread that asked for the work
            job.error = error
        changed.set()
    ended.append(None)
    changed.set()


def _stop(threads: Sequence[threading.Thread], jobs: Sequence[Job]) -> None:
    """Cancel what still runs and wait a moment for it; a thread that no signal reaches ends by its own time-out."""
    if not any(thread.is_alive() for thread in threads):
        return
    for job in jobs:
        job.cancel.set()
        if (abort := job.abort) is not None:
            abort()
    end = time.perf_counter() + _GRACE_S
    for thread in threads:
        thread.join(max(0.0, end - time.perf_counter()))
