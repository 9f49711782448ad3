"""Permissions that also hold for root, whom tests in containers often run as."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_VERSION_3 = 0x20080522  # of linux/capability.h: two words of 32 capabilities each
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1 << 1, 1 << 2


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A tree in which this thread, and those that it starts, may read and not write, root's too."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]
    modes = {path: path.stat().st_mode for path in folders}
    for path in folders:
        path.chmod(0o555)
    effective = _without_override()
    try:
        yield
    finally:
        _set_effective(effective)
        for path, mode in modes.items():
            with suppress(FileNotFoundError):
                path.chmod(mode & 0o7777)


def _without_override() -> int | None:
    """Give up overruling permissions for now; what this thread had, or None where it is not root of a Linux."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    header, data = struct.pack("<Ii", _VERSION_3, 0), ctypes.create_string_buffer(24)
    if ctypes.CDLL(None).capget(header, data):
        return None
    effective = struct.unpack_from("<I", data.raw)[0]
    _set_effective(effective & ~(_DAC_OVERRIDE | _DAC_READ_SEARCH))
    return int(effective)


def _set_effective(effective: int | None) -> None:
    if effective is None:
        return
    libc, header, data = ctypes.CDLL(None), struct.pack("<Ii", _VERSION_3, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, data) == 0
    struct.pack_into("<I", data, 0, effective)
    assert libc.capset(header, data) == 0
