"""One line in the log for every answer: its speed, and the hits, misses and transfers of its experts."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from dslite.model.config import ModelConfig
from dslite.model.quantized_layout import Weights
from dslite.runtime.events import Done
from dslite.runtime.planning.bandwidth import note_read_rate
from dslite.runtime.planning.footprint import Footprint
from dslite.runtime.planning.hardware import unmeasured
from dslite.runtime.planning.machine import machine_key
from dslite.runtime.weights.expert_stats import ExpertStats

_LEAST_READ_BYTES = 256 << 20  # what a token reads must not come from the processor's cache
_LEAST_TOKENS = 16  # the time of fewer is too uneven

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


def _note_ram_rate(rate: float) -> None:
    note_read_rate(machine_key(unmeasured()), "ram", rate)


class ReadRateLog:
    """Compares how fast answers read weights with the kept bandwidth of memory, which may be of a busy machine."""

    def __init__(
        self,
        config: ModelConfig,
        device: str,
        dtype: str,
        weights: Weights = "bfloat16",
        *,
        note: Callable[[float], object] = _note_ram_rate,
    ) -> None:
        """`device` is a torch device type, `dtype` a key of ITEM_BYTES; `note` takes bytes per second."""
        self._bytes = Footprint(config, dtype, weights).read_per_token if device == "cpu" else 0
        self._best = 0.0
        self._note = note

    def __call__(self, done: Done) -> None:
        """Note the rate of an answer if it is the highest of this process.

        Answers of one batch share their reads, so a rate is never more than what was read.
        """
        tokens, seconds = done.completion_tokens - 1, done.timing.decode_s  # the first comes of the prompt
        if self._bytes < _LEAST_READ_BYTES or tokens < _LEAST_TOKENS or seconds <= 0:
            return
        rate = self._bytes * tokens / seconds
        if rate > self._best:
            self._best = rate
            self._note(rate)
