"""Checking a model's bytes against their hashes, as fast as they can be hashed."""

import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag
from typing import Literal

from dslite.runtime.downloads.fetch import hash_file
from dslite.runtime.downloads.hub import HASH, ModelRef, blob_hash
from dslite.runtime.downloads.jobs import Cancelled, Job, ProgressReporter, run
from dslite.runtime.downloads.layout import files_of
from dslite.runtime.downloads.verified import VerifiedFiles
from dslite.runtime.errors import DsliteError, ModelUnavailableError
from dslite.runtime.events import Downloading

_AT_ONCE = 4


@dataclass(frozen=True)
class CheckedFile:
    """A file of a model: good, damaged, missing, or unknown where no record says which hash it should have."""

    name: str
    state: Literal["good", "damaged", "missing", "unknown"]
    size: int
    expected: str | None = None
    actual: str | None = None


def verify(
    ref: ModelRef, folder: Path, checked: list[CheckedFile], *, offline: bool = False, cancel: Flag | None = None
) -> Generator[Downloading, None, None]:
    """Hash every file of a model's folder: yields progress, and puts what was found into `checked`, by name.

    Hashes come from the cache's own names, from what a download into a folder left beside it, or from the Hub.
    Raises CheckpointError for an index that cannot be read.
    """
    cancel = cancel or Flag()
    names = sorted(files_of(folder))
    here = [name for name in names if (folder / name).is_file()]
    try:
        expected = _expected_hashes(ref, folder, here, offline, cancel)
    except Cancelled:
        return
    jobs = {name: Job(name, (folder / name).stat().st_size) for name in here if name in expected}
    actual: dict[str, str] = {}

    def check(job: Job) -> None:
        actual[job.name] = hash_file(folder / job.name, expected[job.name], job)

    ordered = sorted(jobs.values(), key=lambda job: -job.total)  # the largest first: the threads end together
    yield from run(check, ordered, ProgressReporter(ordered), workers=min(_AT_ONCE, os.cpu_count() or 1), cancel=cancel)
    if cancel.is_set():
        return
    checked += [_judge(folder, name, expected.get(name), actual.get(name)) for name in names]
    _note(folder, checked)


def _judge(folder: Path, name: str, expected: str | None, actual: str | None) -> CheckedFile:
    file = folder / name
    if not file.is_file():
        return CheckedFile(name, "missing", 0, expected)
    state: Literal["good", "damaged", "unknown"] = "unknown"
    if actual is not None:
        state = "good" if actual == expected else "damaged"
    return CheckedFile(name, state, file.stat().st_size, expected, actual)


def _note(folder: Path, checked: list[CheckedFile]) -> None:
    """Record the good files for the next pull, and remove the damaged ones from the record."""
    verified = VerifiedFiles.read()
    for found in checked:
        if found.state == "good":
            verified.add(folder / found.name)
        elif found.state == "damaged":
            verified.discard(folder / found.name)
    verified.write()


def _expected_hashes(ref: ModelRef, folder: Path, names: list[str], offline: bool, cancel: Flag) -> dict[str, str]:
    """File name → hash, of those files whose hash is known. Raises Cancelled."""
    known = {name: hash for name in names if (hash := blob_hash(folder / name) or _noted_hash(folder, name))}
    if ref.repo_id is None or len(known) == len(names):
        return known
    from dslite.runtime.downloads.repository import ask

    try:
        remote = ask(ref, offline=offline, cancel=cancel).files
    except ModelUnavailableError:
        return known  # the others are reported as unknown
    return {name: remote[name].blob for name in names if name in remote} | known


def _noted_hash(folder: Path, name: str) -> str | None:
    """What `hf download --local-dir` wrote down of a file: commit, ETag and time, a line each."""
    note = folder / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    try:
        etag = note.read_text(encoding="utf-8").splitlines()[1].strip()
    except (OSError, IndexError, UnicodeDecodeError):
        return None
    return etag if HASH.fullmatch(etag) else None


def complaint(ref: ModelRef, checked: list[CheckedFile]) -> DsliteError | None:
    """The error that a check found, with its remedy; None where every known hash agrees."""
    bad = [found for found in checked if found.state in ("damaged", "missing")]
    if not bad:
        return None
    first = bad[0]
    what = f"{first.name} is {first.state}" + (f": its hash is {first.actual}" if first.actual else "")
    more = f", and {len(bad) - 1} more files are not as they should be" if len(bad) > 1 else ""
    remedy = f"fetch it again: dslite model pull {ref.name}" if ref.repo_id else "copy the folder again"
    return ModelUnavailableError(what + more, remedy)
