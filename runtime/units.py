"""Bytes and seconds as short texts, and sizes from such texts."""

import re
from decimal import Decimal

from dslite.runtime.errors import UsageError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SIZE = re.compile(r"\s*([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([KMGT]I?)?B?\s*", re.IGNORECASE)
_TIME = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([smhd]?)\s*")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
MAX_SIZE = 2**63 - 1  # bytes
MAX_TIME = 365 * 86_400  # seconds


def size_text(count: float) -> str:
    """Bytes in decimal units, as disks and the Hub count: 31.4 GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def parse_size(text: str, flag: str | None = None) -> int:
    """Bytes of a size such as 12GiB, 9500MB or 1000. Raises UsageError, which names `flag`."""
    what = repr(text) if flag is None else f"{flag} is {text!r}, which"
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"{what} is not a size", "write it as 12GiB or 9500MB")
    count = int(Decimal(match[1]) * _UNITS[(match[2] or "").upper()])
    if not 1 <= count <= MAX_SIZE:
        raise UsageError(f"{what} is out of range: a size is from 1 byte to 2^63 - 1 bytes", "write it as 12GiB")
    return count


def parse_time(text: str, flag: str | None = None) -> float:
    """Seconds of a time such as 30s, 10m, 2h, 1d, or 600. Raises UsageError, which names `flag`."""
    what = repr(text) if flag is None else f"{flag} is {text!r}, which"
    match = _TIME.fullmatch(text)
    if not match:
        raise UsageError(f"{what} is not a time", "write it as 30s, 10m or 2h")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > MAX_TIME:
        raise UsageError(f"{what} is more than a year", "write it as 30s, 10m or 2h")
    return seconds


def time_text(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
