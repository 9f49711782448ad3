"""The host level of the prefix cache: latent entries of a conversation's inactive branches.

A latent cache holds one path through a conversation. When a prompt leaves that path (an answer is made again, a message
is edited, another chat is opened), the entries that are cut off are copied here, and copied back when a later prompt
begins like them.
"""

# L layers  T tokens  C latent  R rope

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dslite.runtime.memory import is_out_of_memory

_WORTH_KEEPING = 16  # tokens; fewer are computed again faster than they are found


@dataclass(frozen=True)
class CachedSuffix:
    """The end of a path: entries (L, T, C+R) of tokens `start` to len(ids), valid behind ids[:start]."""

    ids: tuple[int, ...]
    start: int
    entries: Tensor

    @property
    def nbytes(self) -> int:
        return self.entries.nbytes


class BranchCache:
    """Suffixes up to `most_bytes`; the least recently used one goes first."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._suffixes: list[CachedSuffix] = []  # least recently used first

    @property
    def nbytes(self) -> int:
        return sum(suffix.nbytes for suffix in self._suffixes)

    def put(self, ids: Sequence[int], start: int, entries: Tensor) -> None:
        """Copy the entries (L, T, C+R) of the tokens ids[start:], or as many of them as fit."""
        per_token = entries.nbytes // max(entries.shape[1], 1)
        count = min(entries.shape[1], self._most // max(per_token, 1))
        if count < _WORTH_KEEPING:
            return
        try:
            copy = entries[:, :count].to("cpu", copy=True)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return  # they can be computed again
        self._suffixes.append(CachedSuffix(tuple(ids[: start + count]), start, copy))
        while self.nbytes > self._most:
            del self._suffixes[0]

    def take(self, ids: Sequence[int], known: int) -> Tensor | None:
        """Entries (L, T, C+R) that continue the `known` first tokens of a path; None where there are none."""
        best, most = None, known
        for suffix in self._suffixes:
            end = common_prefix(suffix.ids, ids)
            if suffix.start <= known and end > most:
                best, most = suffix, end
        if best is None:
            return None
        self._suffixes.remove(best)
        self._suffixes.append(best)
        return best.entries[:, known - best.start : most - best.start]

    def clear(self) -> None:
        self._suffixes.clear()


def common_prefix(known: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = 0
    for left, right in zip(known, wanted, strict=False):
        if left != right:
            break
        count += 1
    return count
