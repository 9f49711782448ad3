"""Host memory registered for fast copies: in chunks, as far as the system allows, until it is returned."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import load_model, tiny_config, write_checkpoint
from support.fake_torch_cuda import FakeTorchCuda
from support.forward import new_cache, random_ids, read
from support.machines import machine

from dslite.runtime import pinned_memory
from dslite.runtime.device import CudaDevice, PlainDevice, anonymous_memory
from dslite.runtime.pinned_memory import HostRegistration
from dslite.runtime.planning.device_plan import PlanRequest
from dslite.runtime.planning.placement import plan
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.loader import expert_cache, load

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
PIECE = 3 * 4096


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeTorchCuda:
    """CUDA's runtime, with chunks of two pieces."""
    fake = FakeTorchCuda().install(monkeypatch)
    monkeypatch.setattr(pinned_memory, "_CHUNK_BYTES", 2 * PIECE + 4096)
    monkeypatch.setattr(pinned_memory, "_launch", fake.launch)
    return fake


def test_memory_is_registered_in_chunks_of_whole_pieces(cuda: FakeTorchCuda) -> None:
    memory = anonymous_memory(5 * PIECE)
    pinned = HostRegistration(memory, PIECE, CUDA)
    assert pinned.whole
    start = memory.data_ptr()
    assert cuda.registered == {start: 2 * PIECE, start + 2 * PIECE: 2 * PIECE, start + 4 * PIECE: PIECE}
    pinned.close()
    assert cuda.registered == {}
    assert not pinned.whole


def test_what_the_system_does_not_pin_stays_as_it_is_and_leaves_no_error(cuda: FakeTorchCuda) -> None:
    """A failed registration leaves an error that torch's next launch would report as its own."""
    cuda.most_registered = 3 * PIECE
    pinned = HostRegistration(anonymous_memory(5 * PIECE), PIECE, CUDA)
    assert (pinned.nbytes, pinned.whole) == (2 * PIECE, False)
    cuda.launch()


def test_memory_of_a_dropped_registration_can_be_registered_again(cuda: FakeTorchCuda) -> None:
    memory = anonymous_memory(PIECE)
    HostRegistration(memory, PIECE, CUDA).close()
    assert HostRegistration(memory, PIECE, CUDA).whole
    assert not HostRegistration(memory, PIECE, CUDA).whole, "it is registered already"
    cuda.launch()


class PinningDevice(PlainDevice):
    """The CPU, whose memory is pinned as a GPU's driver would."""

    def pin(self, memory: Any, piece: int) -> HostRegistration:
        return HostRegistration(memory, piece, CUDA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(n_routed_experts=16))


def loaded(folder: Path, *, host: float = 70, pcie: float = 25) -> Any:
    """A network whose experts lie in host memory, three slots on the device."""
    checkpoint = Checkpoint.open(folder)
    made = plan(machine(24, host=host, pcie=pcie), checkpoint.config, PlanRequest(dtype="float32", expert_slots=3))
    assert made.source == "host"
    return load(checkpoint, device=CPU, dtype=torch.float32, plan=made, backend=PinningDevice(CPU)), made


def test_the_arena_of_a_dropped_model_is_unregistered_behind_its_copies(folder: Path, cuda: FakeTorchCuda) -> None:
    model, _ = loaded(folder)
    assert cuda.registered
    source = weakref.ref(expert_cache(model).source)  # type: ignore[union-attr]
    del model
    assert source() is None
    assert cuda.registered == {}
    assert cuda.log[-2:] == ["synchronize", "unregister"]


def test_a_second_model_in_the_process_is_pinned_too(folder: Path, cuda: FakeTorchCuda) -> None:
    for _ in range(3):
        model, _ = loaded(folder)
        assert sum(cuda.registered.values()) == expert_cache(model).source._take.__self__.nbytes  # type: ignore[union-attr]
        del model


@pytest.mark.parametrize("pinned", [0, 4 * PIECE, 1 << 60])
def test_answers_are_the_same_however_much_is_pinned(folder: Path, cuda: FakeTorchCuda, pinned: int) -> None:
    cuda.most_registered = pinned
    prompt = random_ids(40, 288)
    resident = load_model(folder)
    wanted = read(resident, new_cache(resident, 64), prompt)
    model, _ = loaded(folder)
    torch.testing.assert_close(read(model, new_cache(model, 64), prompt), wanted, rtol=0, atol=1e-4)


def test_where_memory_is_not_pinned_misses_are_decided_by_the_slower_copies(folder: Path, cuda: FakeTorchCuda) -> None:
    """25 GB/s of PCIe beat host memory of 30 GB/s (80 % of it), half of them do not."""
    model, made = loaded(folder, host=30)
    assert made.miss == "fetch"
    assert expert_cache(model).compute_below == 0  # type: ignore[union-attr]
    del model
    cuda.most_registered = 0
    model, made = loaded(folder, host=30)
    assert expert_cache(model).compute_below == made.compute_unpinned > 0  # type: ignore[union-attr]
    model, made = loaded(folder, host=10)
    assert expert_cache(model).compute_below == 0  # type: ignore[union-attr]


def test_pinned_memory_that_is_refused_is_replaced_by_other_memory(
    cuda: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty

    def refusing(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            cuda.latched = 2
            raise torch.AcceleratorError("CUDA error: out of memory")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", refusing)
    device = CudaDevice(CUDA)
    ring = device.staging(10_000)
    assert (ring.nbytes, ring.data_ptr() % 4096) == (10_000, 0)
    target = empty(3)
    device.put(target, torch.tensor([1.0, 2.0, 3.0]))
    assert target.tolist() == [1, 2, 3]
    cuda.launch()
