"""Find a text in messages, whatever its case and wherever their lines are broken."""

import re

_GAP = r"[*_`~]*[\s>]+[*_`~]*"  # a space of the text: line breaks, and marks of Markdown around it


def find_spans(wanted: str, text: str) -> list[tuple[int, int]]:
    """Start and end of each place where a text holds the wanted words, one behind the other. None of blank words."""
    pattern = _GAP.join(map(re.escape, wanted.split()))
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)] if pattern else []


def excerpt(text: str, start: int, end: int, room: int) -> str:
    """A found place with what stands around it, on one line of about `room` characters."""
    around = max(room - (end - start), 0) // 2
    first, last = max(start - around, 0), end + around
    line = " ".join(text[first:last].split())
    return "…" * (first > 0) + line + "…" * (last < len(text))
