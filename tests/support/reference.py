"""Published data about DeepSeek-V2-Lite that lies beside the checkout and is too large, or not ours, to carry along."""

import json
from pathlib import Path
from typing import Any

import pytest

REFERENCE = Path(__file__).parents[3] / "shared" / "deepseek-v2-lite"
GOLDEN = Path(__file__).parents[1] / "golden"


def reference_file(name: str) -> Path:
    """A file of the reference folder; skips the test where it is absent."""
    file = REFERENCE / name
    if not file.is_file():
        pytest.skip(f"no reference data beside the checkout: {name}")
    return file


def golden(name: str) -> Any:
    """A JSON value of tests/golden."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))
