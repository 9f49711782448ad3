"""When an engine has been without work for long enough to end."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class IdleTimer:
    """Counts the seconds since the last work; while some is under way they are zero."""

    def __init__(self, most_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`most_s` None: an engine never ends by itself."""
        self.most_s = most_s
        self._clock = clock
        self._lock = threading.Lock()
        self._working = 0
        self._last = clock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """A context in which there is work."""
        with self._lock:
            self._working += 1
        try:
            yield
        finally:
            with self._lock:
                self._working -= 1
                self._last = self._clock()

    @property
    def idle_s(self) -> float:
        with self._lock:
            return 0.0 if self._working else max(0.0, self._clock() - self._last)

    @property
    def left_s(self) -> float | None:
        """Seconds until the engine ends if no work comes, 0 where it is to end now; None: it never does."""
        return None if self.most_s is None else max(0.0, self.most_s - self.idle_s)
