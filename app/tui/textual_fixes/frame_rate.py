"""How often growing text is drawn."""

import time

_LONGEST_S = 0.25
BESIDE_A_CPU = 0.04
BESIDE_ANOTHER = 0.2


class RedrawThrottle:
    """Text is drawn with every tick, unless drawing would take more than its share of a core.

    Where the CPU computes the model, its threads wait for each other: what the screen takes of one core, all of them
    lose. Elsewhere the share keeps time for keys. StatsUpdated is all that the screen's thread did since it last drew.
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
