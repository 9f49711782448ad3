"""Which files of the cache were checked against their hash, so that a second pull need not read 31 GB again.

Kept by path, size and time of change: a file that another tool writes anew counts as unchecked.
"""

import json
import threading
from contextlib import suppress
from pathlib import Path

from dslite.runtime.paths import cache_dir, write_json

_NAME = "verified.json"


class VerifiedFiles:
    """Files whose bytes were hashed and found right."""

    def __init__(self, entries: dict[str, list[int]]) -> None:
        self._entries = entries
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

    def discard(self, file: Path) -> None:
        with self._lock:
            self._entries.pop(_key(file), None)

    def write(self) -> None:
        """Put it on record, without files that are gone. Where that cannot be written they are hashed again."""
        with self._lock:
            kept = {name: mark for name, mark in self._entries.items() if _mark(Path(name)) == mark}
        with suppress(OSError):
            write_json(cache_dir() / _NAME, kept)


def _key(file: Path) -> str:
    return str(file.resolve())


def _mark(file: Path) -> list[int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
