"""Steps with experts in slots on a GPU that is not there: how much is launched, when the host waits, in which order."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.fake_cuda import CUDA, OrderError, cuda_guard
from support.machines import lite_config
from support.recorded_step import RecordingGpu, Step, Tape
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="Triton is not here")
from dslite.model import decode_cuda
from dslite.model.kernels import gpu, gpu_limits, triton_experts
from dslite.model.moe import MLP
from dslite.runtime.planning import launch_count
from dslite.runtime.weights import expert_outputs
from dslite.runtime.weights.experts import ExpertCache
from dslite.runtime.weights.slot_bank import SlotExperts
from dslite.runtime.weights.sources import HostSource, matrix_shapes

pytestmark = pytest.mark.skipif(not cuda_guard(), reason="no C++ compiler for the guard of fake CUDA tensors")

CONFIG = replace(lite_config(), num_hidden_layers=4)
MOE_LAYERS, CHOSEN = 3, 6
DTYPE = torch.bfloat16


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fake tensors have no addresses: those that the device is told of are made up."""

    def table(routed: Any, shared: Any) -> torch.Tensor:
        return torch.empty(len(routed) + (len(shared[0]) // len(routed[0][0]) if routed else 1), 4, device=CUDA)

    monkeypatch.setattr(gpu, "usable", lambda device: device.type == "cuda")
    monkeypatch.setattr(gpu_limits, "multiprocessors", lambda device: 108)
    monkeypatch.setattr(triton_experts, "address_table", table)
    monkeypatch.setattr(decode_cuda, "address", lambda tensor: 4096)
    monkeypatch.setattr(expert_outputs, "suits_rows", lambda rows: False)  # the compiled kernel reads no fake memory
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        yield


def route_to(first: int) -> Any:
    """Every token to the same experts, then the shared ones."""

    def route(tokens: int, entries: int) -> NDArray[np.int64]:
        return np.arange(first, first + entries)[None].repeat(tokens, 0)

    return route


class Hybrid:
    """Lite's layers with experts in slots over fake host memory; experts 0 to 9 are resident."""

    def __init__(self, first: int, *, compute_below: int) -> None:
        self.gpu = RecordingGpu(route_to(first))
        mlp = MLP(*(torch.empty(shape, dtype=DTYPE) for shape in matrix_shapes(CONFIG)))
        source = HostSource(CONFIG, self.gpu, DTYPE, lambda *_: mlp)
        self.cache = ExpertCache(
            CONFIG, self.gpu, source, slots=10, spare=6, slot_bytes=source.nbytes_moved, compute_below=compute_below
        )
        self.gpu.know_buffers(source.nbytes_moved)
        for layer in self.cache.layers:
            for expert in range(10):
                self.cache.admit(layer, expert, self.cache.load(layer, expert), tokens=1)
        self.step = Step(self.gpu, CONFIG, make_bank=lambda layer: SlotExperts(self.cache, layer))

    def token(self, count: int = 1) -> Tape:
        self.gpu.log.clear()
        return self.step.tokens(torch.arange(count), [30] * count)

    def launched(self, tape: Tape, sources: int) -> int:
        """Kernels and small copies of a step; a layer brings so many tensors to the host."""
        own_put = 1  # of the tokens
        copies = self.gpu.log.count("bring") * sources + self.gpu.log.count("put") - own_put
        return len(tape.recorded) + len(tape.between) + copies


def a_layer(launched: int) -> float:
    """Launches of a MoE layer: without embedding, dense layer, the copy of the state, and the head."""
    return (launched - 1 - 7 - 2) / MOE_LAYERS


@pytest.mark.parametrize("count", [1, 2, 16])
def test_a_layer_takes_eleven_launches_where_every_expert_is_in_a_slot(count: int) -> None:
    hybrid = Hybrid(0, compute_below=0)
    hybrid.token(count)  # writes the tables
    launched = hybrid.launched(hybrid.token(count), 1)
    assert a_layer(launched) == launch_count.SLOT_LAYER == 11
    assert launched == launch_count.per_token(CONFIG, slots=True)
    assert hybrid.cache.stats.misses == 0


@pytest.mark.parametrize("count", [1, 2, 16])
@pytest.mark.parametrize("first", [8, 30])
def test_a_layer_takes_thirteen_launches_where_the_host_computes_misses(count: int, first: int) -> None:
    """Four misses of six, or all six. No expert is admitted: that would be its copy and the table's."""
    hybrid = Hybrid(first, compute_below=100)
    hybrid.cache._deserves_slot = lambda *_: False  # type: ignore[method-assign]
    hybrid.token(count)
    launched = hybrid.launched(hybrid.token(count), 2)
    assert a_layer(launched) == launch_count.SLOT_LAYER + launch_count.HOST_MISSES == 13
    assert launched == launch_count.per_token(CONFIG, slots=True, computed=True)
    assert hybrid.cache.stats.computed > 0


def test_a_layer_takes_fifteen_launches_and_the_experts_copies_where_misses_are_fetched() -> None:
    hybrid = Hybrid(0, compute_below=0)
    hybrid.token()
    hybrid.gpu._route = route_to(20)
    hybrid.token()  # records the fetched ones
    hybrid.gpu._route = route_to(40)
    before = hybrid.cache.stats.misses
    launched = hybrid.launched(hybrid.token(), 1)
    assert hybrid.cache.stats.misses - before == CHOSEN * MOE_LAYERS
    # The table with the experts of the step before, the addresses of the fetched ones, two kernels for them.
    assert a_layer(launched) == launch_count.SLOT_LAYER + launch_count.FETCHED_MISSES == 15


@pytest.mark.parametrize("compute_below", [0, 100])
def test_the_host_waits_for_the_ids_alone_and_launches_the_hits_before(compute_below: int) -> None:
    """A layer: its router, the way of the ids to the host, the hits; then the host waits for what left before them."""
    hybrid = Hybrid(0, compute_below=compute_below)
    hybrid.token()
    hybrid.token()
    layer = ["launch", "bring", "launch", "brought"]
    assert hybrid.gpu.log == ["put", *layer * MOE_LAYERS, "launch"]


def test_the_host_begins_its_misses_as_soon_as_it_has_the_ids() -> None:
    hybrid = Hybrid(30, compute_below=100)
    hybrid.cache._deserves_slot = lambda *_: False  # type: ignore[method-assign]
    source = hybrid.cache.source
    take = source.in_host_memory
    source.in_host_memory = lambda *args: (hybrid.gpu.log.append("miss"), take(*args))[1]  # type: ignore[method-assign]
    hybrid.token()
    hybrid.token()
    layer = ["launch", "bring", "launch", "brought", *["miss"] * CHOSEN, "put"]
    assert hybrid.gpu.log == ["put", *layer * MOE_LAYERS, "launch"]


def test_every_token_replays_the_same_recordings() -> None:
    hybrid = Hybrid(0, compute_below=0)
    first = hybrid.token().recorded
    recorded = hybrid.gpu.recorded
    assert hybrid.token().recorded == first
    assert hybrid.gpu.recorded == recorded == 2 * MOE_LAYERS + 1


@pytest.mark.parametrize("compute_below", [0, 100])
def test_a_fetch_waits_for_the_hits_that_read_its_buffer(compute_below: int) -> None:
    """FakeGpu raises OrderError where a copy could overwrite what was marked as read, or comes too early."""
    hybrid = Hybrid(0, compute_below=compute_below)
    for first in (0, 20, 30, 8, 40, 20):
        hybrid.gpu._route = route_to(first)
        try:
            hybrid.token()
        except OrderError as error:
            pytest.fail(str(error))
    assert hybrid.step.model.step_recorder is not None
    assert hybrid.step.model.step_recorder.segments, "a step failed and was computed by torch's layers"
