"""Showing a download or a check on stderr: bars where a terminal can draw them, else a line when a file is done."""

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

from dslite.app.terminal.console import settings, unfiltered, visible
from dslite.app.terminal.signals import Interruption
from dslite.runtime.events import Downloading, Found, Present
from dslite.runtime.units import size_text, time_text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from dslite.runtime.events import PullEvent

_NAME_WIDTH = 36


class DownloadProgress:
    """Takes Downloading events. A context: its bars are gone when something goes wrong."""

    def __init__(self, verb: str = "fetched") -> None:
        self._verb = verb
        self._bars = _bars() if _can_draw() else None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "DownloadProgress":
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, event: Downloading) -> None:
        if self._bars is not None:
            self._draw(self._bars, event)
        elif event.stage == "done" and not settings.quiet:
            done, total = size_text(event.all_done_bytes), size_text(event.all_total_bytes)
            print(f"{self._verb} {visible(event.file)} ({done} of {total})", file=sys.stderr)

    def _draw(self, bars: "Progress", event: Downloading) -> None:
        rate = f"{size_text(event.bytes_per_s)}/s" if event.bytes_per_s else ""
        left = f", {time_text(event.left_s)} left" if event.left_s is not None else ""
        self._bar(bars, "all", event.all_done_bytes, event.all_total_bytes, rate + left)
        note = event.note or ("" if event.stage == "fetching" else event.stage)
        task = self._bar(bars, event.file, event.done_bytes, event.total_bytes, note)
        bars.update(task, visible=event.stage != "done")

    def _bar(self, bars: "Progress", name: str, done: int, total: int, note: str) -> "TaskID":
        if name not in self._tasks:
            self._tasks[name] = bars.add_task(visible(name)[-_NAME_WIDTH:], total=total, note="", sizes="")
        sizes = f"{size_text(done)} of {size_text(total)}"
        bars.update(self._tasks[name], completed=done, total=total, sizes=sizes, note=visible(note))
        return self._tasks[name]


def _can_draw() -> bool:
    return sys.stderr.isatty() and not settings.quiet and os.environ.get("TERM") != "dumb"


def _bars() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    texts = [
        TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[sizes]", "fields[note]")
    ]
    return Progress(
        texts[0], BarColumn(bar_width=20), *texts[1:], console=Console(file=unfiltered(sys.stderr)), transient=True
    )


def show_found(found: Found) -> None:
    """What is about to be fetched, from whom, and under which terms, on stderr."""
    if settings.quiet:
        return
    print(
        f"{found.repo_id} at {found.commit[:12]}\n"
        f"  licence  {visible(found.licence)}: {visible(found.licence_url)}\n"
        f"  size     {size_text(found.total_bytes)}, {size_text(found.missing_bytes)} of it to fetch\n"
        f"  place    {visible(str(found.place))} ({size_text(found.free_bytes)} free)",
        file=sys.stderr,
    )


def show_pull(events: "Generator[PullEvent, None, None]", interruption: Interruption) -> Present | None:
    """Show a pull, which `interruption.flag` cancels, to its end; None where it was cancelled."""
    present = None
    for event in show_downloads(events, interruption):
        if isinstance(event, Found):
            show_found(event)
        elif isinstance(event, Present):
            present = event
    return present


def show_downloads(
    events: "Generator[PullEvent, None, None] | Generator[Downloading, None, None]",
    interruption: Interruption,
    *,
    verb: str = "fetched",
) -> "Iterator[PullEvent]":
    """Show Downloading events as they come, and yield the others; `interruption.flag` cancels them.

    With the first event the grace of `interruption` ends: until then the Hub is asked, and nothing was fetched.
    """
    with closing(events), interruption:
        first = next(events, None)
        interruption.protect()
        if first is None:
            return
        with DownloadProgress(verb) as display:
            for event in chain([first], events):
                if isinstance(event, Downloading):
                    display.show(event)
                else:
                    yield event
