"""Ids and titles of conversations, and text that a database can hold."""

import secrets
import threading
import unicodedata

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: what a ULID is written in
_TITLE_LENGTH = 60

_lock = threading.Lock()
_last = 0  # the number of the newest id


def clean(text: str) -> str:
    """Text that UTF-8 can carry: a lone surrogate becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def new_id(now: float) -> str:
    """A ULID: 48 bits of milliseconds and 80 random ones in 26 characters, so that ids sort by age.

    Within one millisecond a process counts up from its last id (the specification's monotonic ULIDs).
    """
    global _last
    with _lock:
        number = int(now * 1000) << 80 | secrets.randbits(80)
        if number >> 80 == _last >> 80:
            number = _last + 1
        _last = number
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def title_of(text: str) -> str:
    """The first words of a message, on one line."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    words = " ".join("".join(" " if unicodedata.category(char) == "Cc" else char for char in clean(line)).split())
    if len(words) <= _TITLE_LENGTH:
        return words
    cut = words[:_TITLE_LENGTH].rpartition(" ")[0]
    return (cut if len(cut) > _TITLE_LENGTH // 2 else words[: _TITLE_LENGTH - 1]) + "…"
