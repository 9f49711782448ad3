"""The GPU's kernels compile without a GPU, for every architecture: shared memory within its limit, nothing spilled."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not here")

SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 120: 101_376}  # bytes that a block may have


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """In a process of its own: other tests of this one interpret the same kernels."""
    script = Path(__file__).parents[1] / "support" / "compile_triton.py"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    architectures = [str(architecture) for architecture in SHARED_LIMITS]
    done = subprocess.run(
        [sys.executable, str(script), *architectures], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


@pytest.mark.parametrize("architecture", SHARED_LIMITS)
@pytest.mark.parametrize("kernel", ["attend_splits", "merge_splits", "gate_up", "down_combine"])
def test_a_kernel_compiles_within_its_limits(compiled: dict[str, Any], kernel: str, architecture: int) -> None:
    result = compiled[f"{kernel} sm_{architecture}"]
    assert result["shared"] <= SHARED_LIMITS[architecture]
    assert result["stack"] == 0
    assert result["local"] == 0


@pytest.mark.parametrize("architecture", SHARED_LIMITS)
@pytest.mark.parametrize("kernel", ["gate_up", "down_combine"])
def test_experts_are_read_sixteen_bytes_at_once(compiled: dict[str, Any], kernel: str, architecture: int) -> None:
    assert compiled[f"{kernel} sm_{architecture}"]["wide_loads"] > 0
