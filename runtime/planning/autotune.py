"""Picks the GEMM for CPU prefill: the AVX kernels of dslite or oneDNN (torch).

The kernels win for few tokens per weight (no repacking); oneDNN wins for many on CPUs with AMX. The crossover is
measured once per machine (0.2 s) and kept in `products.json`.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from dslite.model.kernels import native
from dslite.model.moe import MLP
from dslite.runtime.paths import cache_dir, write_json
from dslite.runtime.system.processors import cpu_name

_NAME = "products.json"
_ROWS = (32, 128, 256)
_RUNS = 3
_HIDDEN, _WIDTH, _EXPERTS = 2048, 1408, 4  # experts of Lite's size, more of them than a cache holds
_WIN = 1.05  # a smaller gain may be noise


def choose_products(*, refresh: bool = False) -> None:
    """Set native.thresholds to what was measured of this machine, or is now: in a fifth of a second."""
    if (products := native.products()) is None:
        return
    file = cache_dir() / _NAME
    machine = f"{cpu_name()} | {products.level} | {torch.get_num_threads()} threads | torch {torch.__version__}"
    kept = None if refresh else _read(file, machine)
    if kept is None:
        kept = native.KernelThresholds(torch_from(_measure(products)))
        with suppress(OSError):  # without the file it is measured each time
            write_json(file, {"machine": machine, "torch_from": kept.torch_from})
    native.thresholds.torch_from = kept.torch_from


def _read(file: Path, machine: str) -> native.KernelThresholds | None:
    try:
        raw = json.loads(file.read_bytes())
        rows = raw["torch_from"]
        return native.KernelThresholds(None if rows is None else int(rows)) if raw["machine"] == machine else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def torch_from(seconds: dict[int, tuple[float, float]]) -> int | None:
    """For each number of rows the time of our own products and of torch's: the rows from which torch's win."""
    least = None
    for rows in sorted(seconds, reverse=True):
        ours, theirs = seconds[rows]
        if ours < theirs * _WIN:
            return least
        least = rows
    return native.MOST_TOKENS + 1


@torch.inference_mode()
def _measure(products: native.NativeProducts) -> dict[int, tuple[float, float]]:
    """Seconds of our own products and of torch's, the best of some runs in turns, for each number of rows."""
    shapes = (_WIDTH, _HIDDEN), (_WIDTH, _HIDDEN), (_HIDDEN, _WIDTH)
    experts = [MLP(*(torch.full(shape, 0.01, dtype=torch.bfloat16) for shape in shapes)) for _ in range(_EXPERTS)]
    found = {}
    for rows in _ROWS:
        hidden = torch.ones(rows, _HIDDEN, dtype=torch.bfloat16)
        some = experts[: max(1, _EXPERTS * _ROWS[0] // rows)]

        expert_ids, weights = torch.zeros(rows, 1, dtype=torch.int64), torch.ones(rows, 1)
        ours = [partial(products.experts, hidden, expert_ids, weights, expert.table) for expert in some]
        theirs = [partial(expert.reference, hidden) for expert in some]
        turns = [(_seconds(ours), _seconds(theirs)) for _ in range(_RUNS)]
        found[rows] = min(turn[0] for turn in turns), min(turn[1] for turn in turns)
    return found


def _seconds(works: Sequence[Callable[[], object]]) -> float:
    start = time.perf_counter()
    for work in works:
        work()
    return time.perf_counter() - start
