"""The prefix cache: what was computed of earlier sequences, found again by token ids on three levels.

Device: the latent caches of finished sequences. A sequence that begins like one takes it over without a copy.
Host: the suffixes that were cut off when a cache was taken over at a shorter prefix, such as the inactive branches of a
conversation (branch_cache.py).
Disk: saved conversations (disk_cache.py), read into a device entry when one is resumed; of a server that was given
room for it also prompts, found by their tokens alone.
The longest common prefix is searched over all of them. Losing an entry costs a prefill, never an answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from dslite.runtime.cache.branch_cache import BranchCache, common_prefix
from dslite.runtime.cache.disk_cache import LatentDiskCache
from dslite.runtime.cache.latent_cache import LatentKVCache


@dataclass(eq=False)
class CachedTokens:
    """A latent cache and the tokens whose entries it holds, in order."""

    cache: LatentKVCache
    ids: list[int] = field(default_factory=list)
    written: bool = False  # the disk holds it by its tokens

    def copy(self, other: "CachedTokens", count: int) -> None:
        """Begin anew with the first `count` tokens of another sequence."""
        self.cache.copy_prefix(other.cache, count)
        self.ids = other.ids[:count]


class PrefixCache:
    """Entries of finished sequences, the least recently used first; the newest are kept up to `most_tokens` in all."""

    def __init__(
        self,
        make_cache: Callable[[], LatentKVCache],
        *,
        most_tokens: int,
        host_bytes: int,
        open_disk: Callable[[], LatentDiskCache] | None = None,
        prompts: LatentDiskCache | None = None,
    ) -> None:
        """`make_cache` gives an empty latent cache and raises OutOfMemoryError.

        `open_disk` opens the saved conversations; `prompts` keeps entries by their tokens; None: they are not kept.
        """
        self._make_cache = make_cache
        self._most_tokens = most_tokens
        self._finished: list[CachedTokens] = []
        self.newest: CachedTokens | None = None  # the entry that was acquired or released last
        self._host = BranchCache(host_bytes)
        self._open_disk = open_disk
        self._prompts = prompts
        self._saved: tuple[str, tuple[int, ...]] | None = None  # a conversation and its tokens as the disk holds them

    @property
    def tokens(self) -> int:
        """Tokens that the device level holds."""
        return sum(len(entry.ids) for entry in self._finished)

    def acquire(self, ids: Sequence[int], running: Iterable[CachedTokens] = ()) -> CachedTokens:
        """A cache that holds as many of `ids` as are known. Raises OutOfMemoryError.

        A finished entry is taken over where most of it is wanted; what it holds behind the common prefix goes to the
        host level. Of an entry with little in common, and of one of `running`, the prefix is copied.
        """
        best, known = _longest(self._finished, ids)
        source, shared = _longest(running, ids)
        if best is not None and known >= shared and 2 * known < len(best.ids):
            source, shared, best = best, known, None
        if source is not None and (best is None or shared > known):
            entry = CachedTokens(self._make_cache())
            entry.copy(source, shared)
        elif best is not None:
            self._finished.remove(best)
            self._host.put(best.ids, known, best.cache.entries(known, best.cache.length))
            best.cache.truncate(known)
            best.ids = list(ids[:known])
            entry = best
        else:
            entry = CachedTokens(self._make_cache())
        entry.written = False
        self.extend(entry, ids)
        if self._prompts is not None and self._prompts.load_longest(ids, entry.cache):
            entry.ids = list(ids[: entry.cache.length])
        self.newest = entry
        return entry

    def copy_longest(self, running: Iterable[CachedTokens], ids: Sequence[int], entry: CachedTokens) -> bool:
        """Copy the prefix of `ids` that a running sequence holds, where it is longer than what `entry` has."""
        source, shared = _longest(running, ids)
        if source is None or shared <= len(entry.ids):
            return False
        entry.copy(source, shared)
        return True

    def extend(self, entry: CachedTokens, ids: Sequence[int]) -> None:
        """Append what the host level holds of `ids` behind the tokens of an entry."""
        while (found := self._host.take(ids, len(entry.ids))) is not None:
            entry.cache.put(found)
            entry.ids = list(ids[: entry.cache.length])

    def release(self, entry: CachedTokens) -> None:
        """Take the cache of a finished sequence; the oldest entries are evicted."""
        if not entry.ids:
            return
        self._finished.append(entry)
        self.newest = entry
        while self.tokens > self._most_tokens and len(self._finished) > 1:
            self.evict()

    def evict(self, *, drop: bool = False) -> bool:
        """Move the oldest entry of the device level to the host level, or `drop` it. False where there is none."""
        if not self._finished:
            return False
        entry = self._finished.pop(0)
        if not drop:
            self._host.put(entry.ids, 0, entry.cache.entries(0, entry.cache.length))
        return True

    def clear(self) -> None:
        """Forget the device and the host level."""
        self._finished.clear()
        self._host.clear()
        self.newest = None

    def write_prompt(self) -> bool:
        """Write an entry of the device level that is not on disk yet; False where there is none. For idle times."""
        entry = next((entry for entry in self._finished if not entry.written), None)
        if self._prompts is None or entry is None:
            return False
        entry.written = True
        self._prompts.save_by_tokens(entry.ids, entry.cache)
        return True

    # ---- saved conversations ----

    def resume(self, conversation: str, ids: Sequence[int]) -> int:
        """Bring what is known of a saved conversation's prompt to the device level; returns how many tokens that is."""
        entry = self.acquire(ids)
        if self._open_disk is not None:
            disk = self._open_disk()
            entry.ids = list(ids[: disk.load(conversation, ids, entry.cache)])
            if disk.token_ids(conversation) == entry.ids:  # not where the device level knew more, or a block is damaged
                self._saved = (conversation, tuple(entry.ids))
        self.release(entry)
        return len(entry.ids)

    def save(self, conversation: str, ids: Sequence[int] | None = None) -> None:
        """Write the newest entry to disk as that of a conversation, unless the disk holds just that.

        With `ids`: what is known of these tokens, where others may have computed since.
        """
        entry = self.newest
        known = 0 if entry is None else len(entry.ids)
        if ids is not None:
            entry, known = _longest(self._finished, ids)
        if self._open_disk is None or entry is None or not known:
            return
        now = (conversation, tuple(entry.ids[:known]))
        if self._saved != now and self._open_disk().save(conversation, entry.ids[:known], entry.cache):
            self._saved = now

    def known(self, ids: Sequence[int]) -> int:
        """How many of the tokens one entry of the device level holds."""
        return _longest(self._finished, ids)[1]


def _longest(entries: Iterable[CachedTokens], ids: Sequence[int]) -> tuple[CachedTokens | None, int]:
    """The entry with the longest common prefix, of equals the newest, and its length."""
    best, known = None, 0
    for entry in entries:
        shared = common_prefix(entry.ids, ids)
        if shared and shared >= known:
            best, known = entry, shared
    return best, known
