"""A lock between processes for a file that is read, changed and replaced.

Replacing a file whole protects its readers, not two writers: each would replace what the other has just written. The
lock is a file of its own in the cache folder, so that no folder of the user gets one: config.toml may lie among other
dotfiles, and a file that is replaced cannot hold its own lock.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dslite.runtime.paths import cache_dir

LOCK_S = 20.0  # a change takes milliseconds

log = logging.getLogger(__name__)


class LockTimeoutError(Exception):
    """Another process has held the lock for too long."""


@contextmanager
def file_lock(file: Path, *, timeout: float = LOCK_S) -> Iterator[None]:
    """Hold the lock of a file, in seconds at most waited for. Raises LockTimeoutError.

    Where no lock can be made (a read-only cache folder, a file system without locks) the work goes on without it.
    """
    from filelock import FileLock, Timeout

    name = hashlib.sha256(str(file.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    folder = cache_dir() / "locks"
    lock = FileLock(folder / f"{name}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=timeout)
    except Timeout:
        raise LockTimeoutError from None
    except (OSError, NotImplementedError) as error:
        log.warning("%s is changed without a lock: %s", file, error)
    try:
        yield
    finally:
        lock.release()
