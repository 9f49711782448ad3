"""The results of a batch: one object a line, in the order of the lines or as they come."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from dslite.app.completion.batch_progress import BatchProgress
from dslite.app.completion.output import compact, error_object
from dslite.model.errors import DsliteError


@dataclass(frozen=True)
class BatchLine:
    """A line of the input. `number` counts from 0; `identity` is its `id`, or its number from 1."""

    number: int
    data: bytes
    identity: object

    @property
    def mark(self) -> dict[str, object]:
        """What stands in its answer, so that an interrupted batch can be resumed: its number from 1, and its hash."""
        return {"line": self.number + 1, "input": hashlib.sha256(self.data).hexdigest()[:16]}


class BatchResults:
    """Takes a result for every line that was added, and writes it: at once, or behind those of all lines before it."""

    def __init__(self, file: TextIO, progress: BatchProgress, *, ordered: bool = True) -> None:
        self.added = 0  # lines
        self.failed = 0
        self._file = file
        self._progress = progress
        self._ordered = ordered
        self._pending: dict[int, BatchLine] = {}
        self._ready: dict[int, str | None] = {}
        self._written = 0  # lines before the first one without a result; ordered alone

    def add(self, line: BatchLine) -> None:
        """A line whose result comes later."""
        self.added += 1
        self._pending[line.number] = line

    @property
    def pending(self) -> list[int]:
        """The lines without a result, in order."""
        return sorted(self._pending)

    @property
    def waiting(self) -> int:
        """Results that wait for an earlier line's."""
        return len(self._ready)

    def answer(self, number: int, answer: Mapping[str, Any]) -> None:
        line = self._pending[number]
        self._finish(line, compact({"id": line.identity, **line.mark, **answer}))

    def fail(self, number: int, error: DsliteError) -> None:
        line = self._pending[number]
        self.failed += 1
        self._finish(line, compact(error_object(line.identity, error)))

    def copy(self, number: int, result: str | None) -> None:
        """The result of an earlier run; None: the output has it already."""
        line = self._pending[number]
        self._finish(line, result, computed=False)

    def _finish(self, line: BatchLine, result: str | None, *, computed: bool = True) -> None:
        del self._pending[line.number]
        self._progress.finished(len(line.data) + 1, computed=computed)
        if not self._ordered:
            self._write(result)
            return
        self._ready[line.number] = result
        while self._written in self._ready:
            self._write(self._ready.pop(self._written))
            self._written += 1

    def _write(self, result: str | None) -> None:
        if result is not None:
            with self._progress.cleared():
                self._file.write(f"{result}\n")
                self._file.flush()
