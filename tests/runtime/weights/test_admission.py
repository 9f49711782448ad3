"""Which experts that the host computed are copied into a slot."""

from collections.abc import Iterable

import pytest
import torch
from support.checkpoints import tiny_config

from dslite.model.config import ModelConfig
from dslite.model.moe import MLP
from dslite.runtime.device import PlainDevice
from dslite.runtime.weights.admission import RecentUses
from dslite.runtime.weights.experts import ExpertCache
from dslite.runtime.weights.sources import HostSource, matrix_shapes

CONFIG = ModelConfig.from_dict(tiny_config(n_routed_experts=16, num_experts_per_tok=2))
LAYER, SLOTS = 1, 4


@pytest.fixture
def cache() -> ExpertCache:
    device = PlainDevice(torch.device("cpu"))
    expert = MLP(*(torch.zeros(shape) for shape in matrix_shapes(CONFIG)))
    source = HostSource(CONFIG, device, torch.float32, lambda *_: expert)
    return ExpertCache(CONFIG, device, source, slots=SLOTS, spare=2, slot_bytes=source.nbytes_moved, compute_below=1000)


def run(cache: ExpertCache, used: Iterable[int]) -> None:
    """A pass that computes its misses on the host."""
    cache.begin_host_pass(LAYER)
    resident = cache.resident(LAYER)
    hits = [expert for expert in used if expert in resident]
    misses = [expert for expert in used if expert not in resident]
    cache.count_uses(LAYER, hits, misses)
    if misses:
        cache.load_for_later(LAYER, misses, lambda _: 1)


def moved(cache: ExpertCache) -> int:
    return cache.stats.bytes_moved // cache.source.nbytes_moved


def test_free_slots_take_every_expert(cache: ExpertCache) -> None:
    for expert in range(SLOTS):
        run(cache, [expert])
    run(cache, [0])
    assert sorted(cache.resident(LAYER)) == [0, 1, 2, 3]


def test_an_expert_that_is_used_once_replaces_none(cache: ExpertCache) -> None:
    for expert in range(CONFIG.n_routed_experts):
        run(cache, [expert])
    assert sorted(cache.resident(LAYER)) == [0, 1, 2, 3]
    assert moved(cache) == SLOTS


def test_an_expert_that_is_used_again_and_again_replaces_the_least_used(cache: ExpertCache) -> None:
    for used in ([0, 1], [2, 3], [0, 1], [3, 0], [9], [9], [9], [9]):
        run(cache, used)
    assert sorted(cache.resident(LAYER)) == [0, 1, 3, 9]
    assert moved(cache) == SLOTS + 1


def test_experts_that_are_used_alike_are_copied_a_tenth_as_often_as_they_miss(cache: ExpertCache) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        run(cache, torch.randperm(CONFIG.n_routed_experts, generator=generator)[:2].tolist())
    assert cache.stats.misses > 500
    assert moved(cache) < cache.stats.misses / 10


def test_what_was_used_long_ago_counts_no_more() -> None:
    uses = RecentUses([LAYER], 4)
    for _ in range(20):
        uses.count(LAYER, [0])
    assert not uses.worth_replacing(LAYER, 1, 0)
    for _ in range(40):
        uses.count(LAYER, [1])
    for _ in range(5):
        uses.count(LAYER, [2])
    assert uses.worth_replacing(LAYER, 1, 0)
    assert (uses.hottest(LAYER, range(4)), uses.coldest(LAYER, range(4))) == (1, 3)
