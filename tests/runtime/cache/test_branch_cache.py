"""The cache as a conversation uses it: forks, returns, truncations, against a plain model of it."""

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import tiny_config

from dslite.model.config import ModelConfig
from dslite.runtime.cache.branch_cache import BranchCache, common_prefix
from dslite.runtime.cache.disk_cache import LatentDiskCache
from dslite.runtime.cache.latent_cache import LatentKVCache

CONFIG = ModelConfig.from_dict(tiny_config())
CAPACITY = 256


class Follower:
    """A latent cache and a branch cache, used as the engine uses them. 'Computing' a token gives known entries."""

    def __init__(self, most_bytes: int) -> None:
        self.cache = LatentKVCache(CONFIG, CAPACITY, dtype=torch.float32)
        self.branches = BranchCache(most_bytes)
        self.ids: list[int] = []
        self.computed = 0

    def go_to(self, path: list[int]) -> None:
        known = common_prefix(self.ids, path)
        self.branches.put(self.ids, known, self.cache.entries(known, self.cache.length))
        self.cache.truncate(known)
        while (entries := self.branches.take(path, known)) is not None:
            self.cache.put(entries)
            known = self.cache.length
        for place in range(known, len(path)):
            entries = true_entries(path[: place + 1])
            for layer in range(CONFIG.num_hidden_layers):
                self.cache.append(layer, entries[layer])
            self.cache.commit(1)
            self.computed += 1
        self.ids = list(path)


def true_entries(path: list[int]) -> torch.Tensor:
    """What a token's entries must be, (layers, 1, C+R): they depend on every token up to it."""
    value = 0.0
    for token in path:
        value = (value * 31 + token + 1) % 9973
    layers = torch.arange(CONFIG.num_hidden_layers, dtype=torch.float32)[:, None, None]
    return value + layers.expand(-1, 1, CONFIG.latent_width) * 10_000


def expected(path: list[int]) -> torch.Tensor:
    return torch.cat([true_entries(path[: place + 1]) for place in range(len(path))], dim=1)


paths = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(
    lambda turns: [token for turn in turns for token in [turn] * 20]
)


@settings(max_examples=100)
@given(st.lists(paths, min_size=1, max_size=12), st.sampled_from([0, 20_000, 10_000_000]))
def test_any_walk_over_branches_leaves_the_entries_of_the_path(walk: list[list[int]], most_bytes: int) -> None:
    follower = Follower(most_bytes)
    for path in walk:
        follower.go_to(path)
        assert follower.cache.length == len(path)
        assert torch.equal(follower.cache.entries(0, len(path)), expected(path))
        assert follower.branches.nbytes <= most_bytes


@settings(max_examples=150)
@given(st.lists(st.one_of(paths, st.just("restart")), min_size=2, max_size=16))
def test_any_walk_with_restarts_leaves_the_entries_of_the_path(walk: list[list[int] | str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LatentDiskCache(Path(folder), "fingerprint")
        follower = Follower(20_000)
        for step in walk:
            if isinstance(step, str):
                if follower.ids:
                    assert store.save("chat", follower.ids, follower.cache)
                saved = follower.ids
                follower = Follower(20_000)
                assert store.load("chat", saved, follower.cache) == len(saved)
                follower.ids = saved
                continue
            follower.go_to(step)
            assert torch.equal(follower.cache.entries(0, len(step)), expected(step))


def test_returning_to_a_branch_computes_only_what_is_new() -> None:
    follower = Follower(10_000_000)
    trunk, left, right = [1] * 50, [2] * 40, [3] * 60
    follower.go_to(trunk + left)
    follower.go_to(trunk + right)
    assert follower.computed == 50 + 40 + 60
    follower.go_to([*trunk, *left, 7])
    assert follower.computed == 50 + 40 + 60 + 1
    follower.go_to(trunk + right)
    assert follower.computed == 50 + 40 + 60 + 1


def test_another_conversation_and_back_costs_nothing() -> None:
    follower = Follower(10_000_000)
    follower.go_to([1] * 100)
    follower.go_to([2] * 100)
    follower.go_to([1] * 100)
    assert follower.computed == 200


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(["append", "truncate", "abandon"]), st.integers(0, 30)), max_size=40))
def test_append_and_truncate_in_any_order(operations: list[tuple[str, int]]) -> None:
    cache = LatentKVCache(CONFIG, CAPACITY, dtype=torch.float32)
    truth = torch.empty(CONFIG.num_hidden_layers, 0, CONFIG.latent_width)
    for number, (kind, size) in enumerate(operations):
        if kind == "truncate":
            size = min(size, cache.length)
            cache.truncate(size)
            truth = truth[:, :size]
        elif cache.length + size <= CAPACITY:
            entries = torch.full((CONFIG.num_hidden_layers, size, CONFIG.latent_width), float(number))
            for layer in range(CONFIG.num_hidden_layers):
                seen = cache.append(layer, entries[layer])
                assert torch.equal(seen, torch.cat([truth[layer], entries[layer]]))
            if kind == "append":  # an abandoned pass leaves entries behind the end, which are never read
                cache.commit(size)
                truth = torch.cat([truth, entries], dim=1)
        assert torch.equal(cache.entries(0, cache.length), truth)
