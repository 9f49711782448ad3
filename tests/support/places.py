"""Where a test's dslite keeps its own files."""

from pathlib import Path


def places(home: Path) -> dict[str, str]:
    """The variables that put all of them below a folder."""
    return {f"DSLITE_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "CACHE")}
