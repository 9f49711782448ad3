"""How deep objects and lists of JSON lie in each other."""

from typing import Any


def is_deeper(value: Any, most: int) -> bool:
    """Whether objects and lists are nested more than `most` levels deep. Looks no deeper than that."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return bool(level)
