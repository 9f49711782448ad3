"""Limits the share of a core that drawing growing text takes."""

import time

_LONGEST_S = 0.25
BESIDE_A_CPU = 0.04
BESIDE_ANOTHER = 0.2


class RedrawThrottle:
    """Text is drawn with every tick, unless drawing would take more than its share of a core.

    Where the CPU computes the model, its threads wait for each other: the time that the screen takes on one core is
    lost on all of them. Elsewhere the limit leaves time for keys. The measure is the CPU time of the screen's thread
    since it last drew.
    """

    def __init__(self) -> None:
        self._at = self._spent = 0.0

    def due(self, share: float) -> bool:
        """Whether to draw now."""
        now, spent = time.monotonic(), time.thread_time()  # not the clock: what other programs take is not ours
        passed = now - self._at
        if passed < _LONGEST_S and spent - self._spent > share * passed:
            return False
        self._at, self._spent = now, spent
        return True
