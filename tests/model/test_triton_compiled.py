"""The GPU's kernels compile without a GPU, for every architecture: shared memory within its limit, nothing spilled."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dslite.model.kernels import gpu

pytest.importorskip("triton", reason="Triton is not here")
from dslite.model.kernels import triton_grouped

# Bytes of shared memory that a block may have. The 86 and 89 of consumers have what 120 has, the 100 what 90 has.
SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
LARGE = ("gate_up_rows 128", "down_rows 128")  # for GPUs with more shared memory, in BF16
_BOTH = ("norm_product{} q, kv_a", "norm_product{} lm_head", "add_product{}", "gate_up{}", "gate_up{} dense")
KERNELS = (
    "embed",
    "norm_product router",
    "absorb",
    "attend_splits",
    "merge_values",
    "down_combine",
    "down_combine dense",
    "down_combine, several tokens",
    "down_combine dense, several tokens",
    "down_tokens",
    "combine_entries",
    "route_tokens",
    "gate_up_slots",
    "down_slots",
    "down_slots, sixteen tokens",
    "down_slots, fetched",
    "combine_slots",
    "race",
    "finish",
    "sort_choices",
    "gate_up_rows 16",
    "gate_up_rows 64",
    "down_rows 16",
    "down_rows 64",
    "combine_parts",
    *LARGE,
    *(name.format(suffix) for name in _BOTH for suffix in ("", "_tokens")),
)


EVERY_TIME = (80, 89, 90, 120)
NOW_AND_THEN = (86, 100)  # 86 differs from 89, and 100 from 90, in what none of these kernels uses


@functools.cache
def compiled(architectures: tuple[int, ...]) -> dict[str, Any]:
    """In a process of its own: other tests of this one interpret the same kernels."""
    script = Path(__file__).parents[1] / "support" / "compile_triton.py"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, architectures)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def check_limits(kernel: str, architecture: int, architectures: tuple[int, ...]) -> None:
    if kernel in LARGE and SHARED_LIMITS[architecture] < triton_grouped.MANY_SHARED_MEMORY:
        return  # it is not launched there
    result = compiled(architectures)[f"{kernel} bf16 sm_{architecture}"]
    assert result["shared"] <= SHARED_LIMITS[architecture]
    if kernel == "embed":
        return  # it reads four kilobytes, and sine and cosine have a table of digits of pi on their stack
    assert result["stack"] == 0
    assert result["local"] == 0
    assert result["wide_loads"] > 0 or kernel in ("sort_choices", "race", "finish")  # they read little


@pytest.mark.parametrize("architecture", EVERY_TIME)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_compiles_within_its_limits_and_reads_sixteen_bytes_at_once(kernel: str, architecture: int) -> None:
    check_limits(kernel, architecture, EVERY_TIME)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NOW_AND_THEN)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_compiles_for_the_other_architectures(kernel: str, architecture: int) -> None:
    check_limits(kernel, architecture, NOW_AND_THEN)


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel not in LARGE])
def test_float32_finds_room_on_every_architecture(kernel: str) -> None:
    assert compiled(EVERY_TIME)[f"{kernel} fp32 sm_89"]["shared"] <= min(SHARED_LIMITS.values())


def test_every_kernel_that_is_launched_is_compiled() -> None:
    files = Path(gpu.__file__).parent.glob("triton_*.py")
    launched = {
        name for file in files for name in re.findall(r"^ +(\w+)\[(?:\(|grid\])", file.read_text(), re.MULTILINE)
    }
    assert launched == {re.split(r"[ ,]", name)[0] for name in KERNELS}
