"""One line in the log for every answer: its speed, and the hits, misses and transfers of its experts."""

import logging
from dataclasses import dataclass

from dslite.runtime.events import Done
from dslite.runtime.weights.expert_stats import ExpertStats

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Totals:
    """The counters of ExpertStats at some time."""

    hits: int = 0
    misses: int = 0
    computed: int = 0
    bytes_moved: int = 0
    wait_s: float = 0.0

    @classmethod
    def of(cls, stats: ExpertStats) -> "_Totals":
        return cls(stats.hits, stats.misses, stats.computed, stats.bytes_moved, stats.wait_s)


class RequestLog:
    """Writes the line. Experts are counted since the previous answer; answers of one batch share their counts."""

    def __init__(self, stats: ExpertStats | None) -> None:
        """`stats` None: all experts are resident."""
        self._stats = stats
        self._last = _Totals()

    def __call__(self, done: Done) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        timing = done.timing
        read = done.prompt_tokens - done.cached_tokens
        log.info(
            "%s: prefill of %d tokens in %.2f s (%d cached), decode of %d in %.2f s%s",
            done.finish_reason,
            read,
            timing.prefill_s,
            done.cached_tokens,
            done.completion_tokens,
            timing.decode_s,
            self._experts(),
        )

    def _experts(self) -> str:
        stats = self._stats
        if stats is None:
            return ""
        before, now = self._last, _Totals.of(stats)
        self._last = now
        hits, misses = now.hits - before.hits, now.misses - before.misses
        return (
            f"; experts: {stats.slots} slots a layer, {hits} hits, {misses} misses ({hits / max(1, hits + misses):.0%}"
            f" hit), {now.computed - before.computed} computed in host memory,"
            f" {(now.bytes_moved - before.bytes_moved) / 1e9:.2f} GB moved,"
            f" {now.wait_s - before.wait_s:.2f} s waiting"
        )
