"""Every test has its own places, and no clipboard of this machine."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders for dslite's own files."""
    for kind in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"DSLITE_{kind}_DIR", str(tmp_path / kind.lower()))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path
