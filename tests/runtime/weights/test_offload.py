"""Experts in fewer slots than there are experts: the same answers as with every expert resident, never nearly the same.

On the CPU a host source stands for a GPU's: the policy, the waves and the slots are the same code.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import tiny_config, write_checkpoint
from support.forward import greedy, new_cache, random_ids, read, read_once
from support.machines import machine
from torch import Tensor

from dslite.model.moe import MLP
from dslite.model.transformer import Transformer
from dslite.runtime.planning.device_plan import DevicePlan, Miss, PlanRequest, Source
from dslite.runtime.planning.placement import plan
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.experts import BufferState, ExpertCache
from dslite.runtime.weights.loader import expert_cache, load
from dslite.runtime.weights.sources import ExpertSource, Fetch

EXPERTS, PER_TOKEN, LAYERS = 16, 3, 4
CPU = torch.device("cpu")
DEMO = Path(__file__).resolve().parents[3] / "assets" / "demo"
TOLERANCE = 2e-5

# all, half, seven and the fewest allowed
SLOTS = (EXPERTS, EXPERTS // 2, 7, PER_TOKEN)
# source, miss policy, tokens from which misses are fetched all the same
WAYS: tuple[tuple[Source, Miss, int], ...] = (
    ("disk", "fetch", 1),
    ("host", "fetch", 1),
    ("mapped", "compute", 8),
    ("host", "compute", 1000),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model")
    config = tiny_config(n_routed_experts=EXPERTS, num_experts_per_tok=PER_TOKEN, num_hidden_layers=LAYERS)
    return Checkpoint.open(write_checkpoint(folder, config, shards=3))


@pytest.fixture(scope="module")
def resident(checkpoint: Checkpoint) -> Transformer:
    return load(checkpoint, device=CPU, dtype=torch.float32)


def planned(
    checkpoint: Checkpoint, slots: int, source: Source, miss: Miss = "fetch", compute_below: int = 1, spare: int = 4
) -> DevicePlan:
    """A plan with just these slots, whatever the memory of the machine."""
    request = PlanRequest(dtype="float32", expert_slots=checkpoint.config.num_experts_per_tok)
    made = plan(machine(0, 64), checkpoint.config, request)
    return replace(made, slots=slots, source=source, miss=miss, compute_below=compute_below, spare=spare)


def offloaded(checkpoint: Checkpoint, made: DevicePlan, dtype: torch.dtype = torch.float32) -> Transformer:
    return load(checkpoint, device=CPU, dtype=dtype, plan=made)


def cache_of(model: Transformer) -> ExpertCache:
    cache = expert_cache(model)
    assert cache is not None
    return cache


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize(("source", "miss", "compute_below"), WAYS)
def test_slots_change_neither_tokens_nor_logprobs(
    checkpoint: Checkpoint, resident: Transformer, slots: int, source: Source, miss: Miss, compute_below: int
) -> None:
    model = offloaded(checkpoint, planned(checkpoint, slots, source, miss, compute_below))
    prompt = random_ids(160, checkpoint.config.vocab_size)
    difference = read_once(model, prompt) - read_once(resident, prompt)
    assert difference.abs().max() <= TOLERANCE
    assert greedy(model, prompt[:24], 64) == greedy(resident, prompt[:24], 64)
    uses = cache_of(model).stats.layers
    assert all(min(layer.uses) > 0 for layer in uses.values()), "the prompt was meant to use every expert"


@pytest.mark.parametrize("spare", [1, 2, 16])
def test_a_chunk_wants_more_experts_than_there_are_buffers(
    checkpoint: Checkpoint, resident: Transformer, spare: int
) -> None:
    model = offloaded(checkpoint, planned(checkpoint, PER_TOKEN, "disk", spare=spare))
    prompt = random_ids(64, checkpoint.config.vocab_size, seed=1)
    assert (read_once(model, prompt) - read_once(resident, prompt)).abs().max() <= TOLERANCE


def test_what_is_in_the_slots_leaves_no_trace_in_the_result(checkpoint: Checkpoint) -> None:
    model = offloaded(checkpoint, planned(checkpoint, 5, "disk"))
    prompt = random_ids(40, checkpoint.config.vocab_size, seed=2)
    cold = read_once(model, prompt)
    for seed in range(3):
        read_once(model, random_ids(9, checkpoint.config.vocab_size, seed=seed))
        assert torch.equal(read_once(model, prompt), cold)


def test_bf16_answers_differ_by_rounding_only(tmp_path: Path) -> None:
    config = tiny_config(n_routed_experts=EXPERTS, num_experts_per_tok=PER_TOKEN, num_hidden_layers=LAYERS)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, config, dtype=torch.bfloat16))
    exact = load(checkpoint, device=CPU, dtype=torch.float32)
    resident = load(checkpoint, device=CPU, dtype=torch.bfloat16)
    model = offloaded(checkpoint, replace(planned(checkpoint, 4, "disk"), dtype="bfloat16"), torch.bfloat16)
    prompt = random_ids(100, checkpoint.config.vocab_size)
    truth = read_once(exact, prompt)
    own, others = read_once(model, prompt) - truth, read_once(resident, prompt) - truth
    assert own.square().mean() <= 1.2 * others.square().mean()


def test_a_bf16_checkpoint_runs_in_float32_from_disk(tmp_path: Path) -> None:
    config = tiny_config(n_routed_experts=EXPERTS, num_experts_per_tok=PER_TOKEN, num_hidden_layers=LAYERS)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, config, dtype=torch.bfloat16))
    resident = load(checkpoint, device=CPU, dtype=torch.float32)
    prompt = random_ids(50, checkpoint.config.vocab_size)
    for source in ("disk", "mapped", "host"):
        model = offloaded(checkpoint, planned(checkpoint, 5, source, "fetch"))  # type: ignore[arg-type]
        assert (read_once(model, prompt) - read_once(resident, prompt)).abs().max() <= TOLERANCE


def test_decoding_keeps_the_least_recently_used_out(checkpoint: Checkpoint) -> None:
    """Replays each layer's choices through a plain LRU: hits and misses must be the same."""
    slots = 6
    model = offloaded(checkpoint, planned(checkpoint, slots, "host", "fetch"))
    cache = cache_of(model)
    seen: dict[int, list[list[int]]] = {layer: [] for layer in cache.layers}
    count = cache.stats.count

    def recorded(layer: int, hits: list[int], misses: list[int]) -> None:
        seen[layer].append(sorted([*hits, *misses]))
        count(layer, hits, misses)

    cache.stats.count = recorded  # type: ignore[method-assign]
    greedy(model, [5], 80)
    for layer, passes in seen.items():
        kept: list[int] = []  # oldest first
        hits = 0
        for wanted in passes:
            hits += sum(expert in kept for expert in wanted)
            kept = [expert for expert in kept if expert not in wanted] + wanted
            kept = kept[-slots:]
        # Equal age is broken by nothing that matters here: only the counts can differ, and by little.
        assert cache.stats.layers[layer].hits == pytest.approx(hits, abs=0.05 * hits + 2)


def test_statistics_add_up(checkpoint: Checkpoint) -> None:
    model = offloaded(checkpoint, planned(checkpoint, 7, "disk"))
    cache = cache_of(model)
    state = new_cache(model, 64)
    read(model, state, random_ids(30, checkpoint.config.vocab_size))
    for token_id in range(3, 13):
        read(model, state, [token_id])
    stats = cache.stats
    moe_layers = LAYERS - 1
    assert stats.hits + stats.misses == sum(sum(layer.uses) for layer in stats.layers.values())
    assert len(stats.layers) == moe_layers
    assert stats.bytes_moved >= stats.misses * cache.source.nbytes_moved
    assert stats.summary() == {
        "slots": 7,
        "hits": stats.hits,
        "misses": stats.misses,
        "bytes_moved": stats.bytes_moved,
    }
    assert stats.hits + stats.misses >= 10 * PER_TOKEN * moe_layers


@pytest.mark.parametrize("slots", [PER_TOKEN, 9])
def test_the_arena_has_exactly_the_plans_bytes(checkpoint: Checkpoint, slots: int) -> None:
    made = plan(machine(0, 64), checkpoint.config, PlanRequest(dtype="float32", expert_slots=slots))
    model = offloaded(checkpoint, made)
    cache = cache_of(model)
    assert cache.arena.nbytes == (slots * (LAYERS - 1) + made.spare) * made.slot_bytes
    weights = [
        *(value for layer in model.layers for value in tensors_of(layer)),
        model.network.embed_tokens,
        model.network.norm,
        model.network.lm_head,
    ]
    held = sum(tensor.nbytes for tensor in weights)
    assert made.resident_bytes == held + slots * (LAYERS - 1) * made.slot_bytes
    assert made.kv_bytes == new_cache(model, made.context).nbytes


def tensors_of(part: object) -> list[torch.Tensor]:
    """The tensors of a layer that are not routed experts."""
    if isinstance(part, torch.Tensor):
        return [part]
    fields = getattr(part, "__dataclass_fields__", {})
    return [tensor for name in fields if name != "experts" for tensor in tensors_of(getattr(part, name))]


def test_slots_given_back_leave_the_answers_as_they_are(checkpoint: Checkpoint, resident: Transformer) -> None:
    model = offloaded(checkpoint, planned(checkpoint, 6, "disk"))
    cache = cache_of(model)
    prompt = random_ids(50, checkpoint.config.vocab_size, seed=3)
    wanted = read_once(resident, prompt)
    before = cache.arena.nbytes
    for slots in (5, 4, 3):
        read_once(model, prompt)
        assert cache.give_back()
        assert cache.slots == slots
        assert all(len(cache.resident(layer)) <= slots for layer in cache.layers)
        assert (read_once(model, prompt) - wanted).abs().max() <= TOLERANCE
    assert not cache.give_back(), "the fewest must stay"
    assert cache.arena.nbytes < before


@pytest.mark.skipif(not (DEMO / "model.safetensors").is_file(), reason="the demo model's weights are not here")
def test_the_demo_model_answers_the_same_from_any_number_of_slots() -> None:
    checkpoint = Checkpoint.open(DEMO)
    resident = load(checkpoint, device=CPU, dtype=torch.float32)
    prompt = random_ids(96, 1000, seed=6)
    wanted, answer = read_once(resident, prompt), greedy(resident, prompt[:16], 64)
    most, fewest = checkpoint.config.n_routed_experts, checkpoint.config.num_experts_per_tok
    for slots in sorted({most, most // 2, min(7, most), fewest}):
        for source in ("disk", "host"):
            model = offloaded(checkpoint, planned(checkpoint, slots, source))  # type: ignore[arg-type]
            assert (read_once(model, prompt) - wanted).abs().max() <= TOLERANCE
            assert greedy(model, prompt[:16], 64) == answer


class FailingSource:
    """Host memory whose transfers cannot begin, or cannot end, when their number comes."""

    def __init__(self, source: ExpertSource, fails: Callable[[int], bool], *, at_once: bool) -> None:
        self._source, self._fails, self._at_once = source, fails, at_once
        self.nbytes_moved = source.nbytes_moved
        self.count = 0

    def fetch(self, layer: int, expert: int, buffer: Tensor, after: Any) -> Fetch:
        self.count += 1
        if not self._fails(self.count):
            return self._source.fetch(layer, expert, buffer, after)
        if self._at_once:
            raise OSError("no transfer")
        return FailingFetch(self._source.fetch(layer, expert, buffer, after).mlp)

    def in_host_memory(self, layer: int, expert: int) -> MLP | None:
        return self._source.in_host_memory(layer, expert)

    def close(self) -> None:
        self._source.close()


@dataclass
class FailingFetch:
    mlp: MLP

    def wait(self) -> None:
        raise OSError("no transfer")

    def passed(self) -> bool:
        return False


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("failing", [1, 2, 5, 9, 20])
def test_a_transfer_that_fails_in_any_way_leaves_every_buffer_usable(
    checkpoint: Checkpoint, resident: Transformer, failing: int, at_once: bool
) -> None:
    """No error of a source is one of ours here: whatever it raises reaches the caller, and costs no buffer."""
    model = offloaded(checkpoint, planned(checkpoint, PER_TOKEN, "host"))
    cache = cache_of(model)
    source = cache.source = FailingSource(cache.source, lambda count: count == failing, at_once=at_once)
    prompt = random_ids(40, checkpoint.config.vocab_size)
    with pytest.raises(OSError, match="no transfer"):
        read_once(model, prompt)
    states = Counter(cache.states.values())
    assert not states[BufferState.LOADING]
    assert not states[BufferState.STALE]
    assert (read_once(model, prompt) - read_once(resident, prompt)).abs().max() <= TOLERANCE
    assert source.count > failing


@pytest.mark.parametrize("source", ["host", "disk"])
def test_every_buffer_is_free_loading_resident_or_stale(checkpoint: Checkpoint, source: Source) -> None:
    cache = cache_of(model := offloaded(checkpoint, planned(checkpoint, 5, source, spare=3)))
    buffers = 5 * (LAYERS - 1) + 3
    assert Counter(cache.states.values()) == {BufferState.FREE: buffers}
    for seed in range(4):
        read_once(model, random_ids(7, checkpoint.config.vocab_size, seed=seed))
        states = Counter(cache.states.values())
        assert states.total() == buffers
        assert states[BufferState.RESIDENT] == sum(len(cache.resident(layer)) for layer in cache.layers)
    cache.cancel_all()
    assert set(cache.states.values()) <= {BufferState.FREE, BufferState.RESIDENT}
