"""What this process holds in memory."""

from pathlib import Path

import pytest

_SMAPS = Path("/proc/self/smaps_rollup")


def anonymous_bytes() -> int:
    """Resident bytes that belong to no file: what a mapped checkpoint must not add to. Skips the test off Linux."""
    if not _SMAPS.exists():
        pytest.skip("only Linux tells anonymous memory apart")
    lines = dict(line.split(":", 1) for line in _SMAPS.read_text().splitlines()[1:])
    return int(lines["Anonymous"].split()[0]) * 1024
