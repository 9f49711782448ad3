"""Which files of the cache were checked against their hash, so that a second pull need not read 31 GB again.

Kept by path, size and time of change: a file that another tool writes anew counts as unchecked.
"""

import json
import threading
from contextlib import suppress
from pathlib import Path

from dslite.runtime.locked_file import LockTimeoutError, file_lock
from dslite.runtime.paths import cache_dir, write_json

_NAME = "verified.json"


class VerifiedFiles:
    """Files whose bytes were hashed and found right."""

    def __init__(self, entries: dict[str, list[int]]) -> None:
        self._entries = entries
        self._discarded: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def read(cls) -> "VerifiedFiles":
        """What is on record; nothing where the record is missing or damaged."""
        try:
            raw = json.loads((cache_dir() / _NAME).read_bytes())
        except (OSError, ValueError):
            raw = {}
        return cls(raw if isinstance(raw, dict) else {})

    def __contains__(self, file: Path) -> bool:
        mark = _mark(file)
        return mark is not None and self._entries.get(_key(file)) == mark

    def add(self, file: Path) -> None:
        mark = _mark(file)
        if mark is not None:
            with self._lock:
                self._entries[_key(file)] = mark
                self._discarded.discard(_key(file))

    def discard(self, file: Path) -> None:
        with self._lock:
            self._entries.pop(_key(file), None)
            self._discarded.add(_key(file))

    def write(self) -> None:
        """Add to the record on disk, without files that are gone. Where that fails they are hashed again."""
        file = cache_dir() / _NAME
        with suppress(OSError, LockTimeoutError), self._lock, file_lock(file):
            entries = {**VerifiedFiles.read()._entries, **self._entries}  # another process may have added to it
            kept = {
                name: mark
                for name, mark in entries.items()
                if name not in self._discarded and _mark(Path(name)) == mark
            }
            write_json(file, kept)


def _key(file: Path) -> str:
    return str(file.resolve())


def _mark(file: Path) -> list[int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
