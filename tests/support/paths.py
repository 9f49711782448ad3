"""The folders in which a test's dslite keeps its own files."""

from pathlib import Path


def path_variables(home: Path) -> dict[str, str]:
    """Environment variables that put configuration, data, cache and sockets below `home`."""
    return {f"DSLITE_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "CACHE", "RUNTIME")}
