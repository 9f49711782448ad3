"""`--resume FILE`: what an earlier run of a batch has answered is not run again.

An answer carries the number of its line and a hash of it (`BatchLine.mark`). Where the file is the output too, what is
no whole answer is first taken out of it in one atomic step: errors, interrupted answers, a last line that was cut. The
rest is appended result by result, so that a kill loses no more than the answers that were not finished.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from dslite.app.completion.batch_results import BatchLine
from dslite.model.errors import DsliteError
from dslite.runtime.atomic_file import replacing
from dslite.runtime.errors import UsageError
from dslite.runtime.locked_file import LockTimeoutError, file_lock
from dslite.runtime.system.folders import expand_home


class EarlierOutput:
    """The answers of an earlier output. `is_output`: this run's output is appended to it."""

    def __init__(self, file: Path, stream: IO[bytes] | None, *, is_output: bool) -> None:
        """`stream` None: there is no such file yet. Raises UsageError where it holds what no batch writes."""
        self.file = file
        self.is_output = is_output
        self.models: set[str] = set()
        self._stream = stream
        self._places: dict[int, tuple[str, int]] = {}  # of a line's number: its hash, and where its answer begins
        self._dropped = False
        if stream is not None:
            self._read(stream)

    def find(self, line: BatchLine) -> bool:
        """Whether a line is answered."""
        mark = line.mark
        found = self._places.get(line.number + 1)
        return found is not None and found[0] == mark["input"]

    def copy(self, line: BatchLine) -> str | None:
        """The answer of a line that `find` found, word for word; None where the output has it already."""
        if self.is_output:
            return None
        assert self._stream is not None
        self._stream.seek(self._places[line.number + 1][1])
        return self._stream.readline().decode("utf-8").rstrip("\r\n")

    def clean(self) -> None:
        """Leave nothing but answers in the file. Raises UsageError."""
        if self._stream is None or not self._dropped:
            return
        try:
            with replacing(self.file) as kept:
                for _, place in sorted(self._places.values(), key=lambda found: found[1]):
                    self._stream.seek(place)
                    kept.write(self._stream.readline())
        except OSError as error:
            raise _cannot(self.file, "written", error) from None

    def _read(self, stream: IO[bytes]) -> None:
        place = 0
        for number, line in enumerate(stream, 1):
            self._add(line, place, number)
            place += len(line)

    def _add(self, line: bytes, place: int, number: int) -> None:
        """A line of the file, which begins at `place`."""
        result = _parsed(line)
        if not line.endswith(b"\n"):  # a write was cut, and may by chance be whole
            self._dropped = True
        elif result is None or not ("error" in result or _is_answer(result)):
            raise UsageError(
                f"{self.file} cannot be resumed: its line {number} is no result of --batch",
                "name an output that --batch has written",
            )
        elif "error" in result or result["finish_reason"] == "interrupted":
            self._dropped = True
        else:
            if result["line"] in self._places:
                self._dropped = True
            self._places[result["line"]] = result["input"], place
            self.models.add(str(result.get("model")))


@contextmanager
def resuming(resume: Path | None, output: Path | None) -> Iterator[EarlierOutput | None]:
    """The output to resume; None where none is named. Where it is the output too, it is locked and cleaned.

    Raises UsageError where it cannot be read, DsliteError where another process writes to it.
    """
    if resume is None:
        yield None
        return
    file = expand_home(resume).resolve()
    is_output = output is not None and expand_home(output).resolve() == file
    with ExitStack() as stack:
        if is_output:
            try:
                stack.enter_context(file_lock(file, timeout=0))
            except LockTimeoutError:
                raise DsliteError(f"another dslite is writing to {file}", "wait until it has ended") from None
        try:
            stream = stack.enter_context(file.open("rb"))
        except FileNotFoundError as error:
            if not is_output:
                raise _cannot(file, "read", error) from None
            yield EarlierOutput(file, None, is_output=True)
            return
        except OSError as error:
            raise _cannot(file, "read", error) from None
        if not is_output and _is_stdout(stream):
            raise UsageError(f"stdout goes to {file}, which is resumed", "name it with --output-file instead")
        earlier = EarlierOutput(file, stream, is_output=is_output)
        if is_output:
            earlier.clean()
        yield earlier


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_answer(result: dict[str, Any]) -> bool:
    kinds = {"line": int, "input": str, "text": str, "finish_reason": str}
    return all(isinstance(result.get(key), kind) for key, kind in kinds.items())


def _is_stdout(stream: IO[bytes]) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


def _cannot(file: Path, what: str, error: OSError) -> UsageError:
    return UsageError(f"{file} cannot be {what}: {error.strerror}", "choose another file for --resume")
