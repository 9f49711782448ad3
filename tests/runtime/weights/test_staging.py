"""Loading through the ring of staging buffers: the right bytes, in the order of the files, and never too early."""

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.checkpoints import tiny_config, write_checkpoint
from support.fake_cuda import CUDA, FakeGpu, OrderError, cuda_guard, fake_gpu
from support.machines import lite_config, machine
from torch import Tensor

from dslite.model.parameters import parameter_shapes
from dslite.runtime.device import PlainDevice
from dslite.runtime.errors import OutOfMemoryError
from dslite.runtime.planning.device_plan import PlanRequest
from dslite.runtime.planning.placement import plan
from dslite.runtime.weights import staging
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.disk import Reader
from dslite.runtime.weights.loader import expert_cache, load
from dslite.runtime.weights.packed_layout import PAGE
from dslite.runtime.weights.page_cache import PageCache
from dslite.runtime.weights.safetensors_file import TensorEntry
from dslite.runtime.weights.staging import Staging

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model")
    return Checkpoint.open(write_checkpoint(folder, tiny_config(), dtype=torch.bfloat16, shards=3))


class LateDevice(PlainDevice):
    """Copies run as late as they may: when somebody waits for them."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.late: list[Sequence[tuple[Tensor, Tensor]]] = []
        self.staged = 0

    def copy(self, copies: Sequence[tuple[Tensor, Tensor]], after: Any = None) -> int:
        self.late.append(copies)
        return len(self.late)

    def staging(self, nbytes: int) -> Tensor:
        self.staged += nbytes
        return super().staging(nbytes)

    def reach(self, event: int | None) -> None:
        for number in range(event or 0):
            for target, source in self.late[number]:
                target.copy_(source)
            self.late[number] = []


class HastyDevice(LateDevice):
    """Does not wait for copies before a buffer is written again."""

    def reach(self, event: int | None) -> None:
        pass


def loaded(checkpoint: Checkpoint, device: LateDevice, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, as a ring brings it."""
    reader = Reader(checkpoint)
    ring = Staging(reader, device, lambda _: None)
    targets = {name: torch.zeros(entry.shape, dtype=dtype) for name, entry in checkpoint.entries.items()}
    for name in sorted(targets, reverse=True):  # whatever the order of asking
        ring.add(checkpoint.entries[name], targets[name])
    ring.run()
    reader.close()
    return targets


@pytest.mark.parametrize("buffer_bytes", [PAGE, 5 * PAGE, 2**20])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_tensor_arrives_as_the_file_has_it(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(staging, "BUFFER_BYTES", buffer_bytes)
    for name, tensor in loaded(checkpoint, LateDevice(), dtype).items():
        assert torch.equal(tensor, checkpoint.tensor(name).to(dtype)), name


def test_a_ring_that_does_not_wait_for_its_copies_is_found(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "BUFFER_BYTES", 5 * PAGE)
    device = HastyDevice()
    tensors = loaded(checkpoint, device)
    LateDevice.reach(device, len(device.late))
    assert any(not torch.equal(tensor, checkpoint.tensor(name)) for name, tensor in tensors.items())


def test_a_load_stages_no_more_than_the_ring(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "BUFFER_BYTES", 4 * PAGE)
    device = LateDevice()
    loaded(checkpoint, device)
    assert checkpoint.nbytes > 20 * 4 * PAGE
    assert device.staged == staging.BUFFERS * 4 * PAGE


def test_the_ring_is_far_below_2_gb() -> None:
    assert staging.BUFFERS * staging.BUFFER_BYTES <= 256 * 2**20


def test_files_are_read_from_front_to_back(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "BUFFER_BYTES", 4 * PAGE)
    seen: list[tuple[str, int]] = []
    read = Reader.read

    def watched(self: Reader, extents: Any, buffer: Tensor, **kwargs: Any) -> Any:
        seen.extend((str(run.file.path), run.first_page) for run in extents.runs)
        return read(self, extents, buffer, **kwargs)

    monkeypatch.setattr(Reader, "read", watched)
    loaded(checkpoint, LateDevice())
    assert seen == sorted(seen)
    assert len({file for file, _ in seen}) == 3


def test_a_resident_network_is_copied_to_a_device_that_is_not_the_host(checkpoint: Checkpoint) -> None:
    """On 'meta', which takes copies and keeps no bytes: every weight is allocated by the device, exactly once."""
    meta = torch.device("meta")
    allocated: list[int] = []

    class MetaDevice(PlainDevice):
        def allocate(self, nbytes: int) -> Tensor:
            allocated.append(nbytes)
            return super().allocate(nbytes)

    told: list[int] = []
    model = load(
        checkpoint,
        device=meta,
        dtype=torch.bfloat16,
        backend=MetaDevice(meta),
        report=lambda event: told.append(event.done_bytes),
    )
    assert model.device == meta
    assert sum(allocated) == checkpoint.nbytes
    assert told[-1] == checkpoint.nbytes
    assert told == sorted(told)


class NoRoom(PlainDevice):
    """A device whose n-th allocation and all behind it fail."""

    def __init__(self, first: int) -> None:
        super().__init__(torch.device("meta"))
        self.left = first

    def allocate(self, nbytes: int) -> Tensor:
        if self.left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.left -= 1
        return super().allocate(nbytes)


@pytest.mark.parametrize("first", [0, 1, 20])
def test_weights_that_do_not_fit_are_told_before_a_byte_is_read(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(Reader, "read", lambda *_, **__: pytest.fail("nothing may be read"))
    with pytest.raises(OutOfMemoryError, match="weights of") as told:
        load(checkpoint, device=torch.device("meta"), dtype=torch.bfloat16, backend=NoRoom(first))
    assert "dslite plan" in told.value.remedy


def test_what_is_in_the_page_cache_is_read_from_there(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 64)
    with file.open("rb") as stream:
        cached = PageCache.of(stream.fileno())
        if cached is None:
            pytest.skip("the system does not tell what is in its page cache")
        assert cached.holds(0, 4 * PAGE)
        assert cached.holds(PAGE, 10**9)
        assert not cached.holds(10 * PAGE, PAGE)
    reader = Reader(checkpoint)
    held = next(iter(reader.files.values())).page_cache
    assert held is not None
    assert held.holds(0, PAGE), "the header was just read"
    reader.close()


class FakeReader:
    """Reads nothing, and says when it writes into a buffer."""

    def __init__(self, gpu: FakeGpu, entries: Sequence[TensorEntry]) -> None:
        self._gpu = gpu
        self.files = {entry.file: SimpleNamespace(path=entry.file, check=lambda: None) for entry in entries}

    def read(self, extents: Any, buffer: Tensor, **_: Any) -> list["Future[None]"]:
        self._gpu.host_writes(buffer)
        return []


class Forgetful(FakeGpu):
    """Does not wait for copies."""

    def reach(self, event: Any) -> None:
        pass


def stage_lite(gpu: FakeGpu) -> int:
    """Load two layers of Lite into fake GPU memory; return the bytes."""
    config = lite_config()
    wanted = [
        (name, shape)
        for name, shape in parameter_shapes(config).items()
        if not name.startswith("model.layers.") or name.startswith(("model.layers.0.", "model.layers.1."))
    ]
    place = 8
    entries = []
    for name, shape in wanted:
        count = 2 * torch.Size(shape).numel()
        entries.append(TensorEntry(name, Path("model.safetensors"), torch.bfloat16, shape, place, count))
        place += count
    with fake_gpu(gpu):
        ring = Staging(FakeReader(gpu, entries), gpu, lambda _: None)  # type: ignore[arg-type]
        for entry in entries:
            ring.add(entry, torch.empty(entry.shape, dtype=torch.bfloat16, device=CUDA))
        ring.run()
    return place - 8


@pytest.mark.skipif(not cuda_guard(), reason="no C++ compiler for the guard of fake CUDA tensors")
def test_no_staging_buffer_is_written_before_its_copy_to_the_gpu_is_done() -> None:
    gpu = FakeGpu(lambda *_: pytest.fail("nothing is routed here"))
    assert stage_lite(gpu) > 2**31
    assert gpu.log == [f"staging {staging.BUFFER_BYTES}"] * staging.BUFFERS
    with pytest.raises(OrderError, match="before it has been copied"):
        stage_lite(Forgetful(lambda *_: pytest.fail("nothing is routed here")))


@pytest.mark.parametrize(("left", "slots"), [(-1, 3), (0, 3), (1, 4), (2, 5), (9, 6)])
def test_slots_are_sized_by_what_is_free_once_all_else_is_allocated(
    checkpoint: Checkpoint, left: int, slots: int
) -> None:
    """Six slots are planned, three are the fewest; `left` slots fit beside the latent cache and the workspace."""
    made = plan(machine(0, 64), checkpoint.config, PlanRequest(dtype="bfloat16", expert_slots=6))

    class Free(PlainDevice):
        def free_bytes(self) -> int:
            beside = made.kv_bytes + made.workspace_bytes - made.spare * made.slot_bytes
            return beside + left * made.slot_bytes * (checkpoint.config.num_hidden_layers - 1) + made.slot_bytes // 2

    cache = expert_cache(load(checkpoint, device=CPU, dtype=torch.bfloat16, plan=made, backend=Free(CPU)))
    assert cache is not None
    assert cache.slots == cache.stats.slots == slots


PEAK = """
import sys
from pathlib import Path
import torch
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.device import PlainDevice
from dslite.runtime.system.memory import peak_rss
from dslite.runtime.weights.loader import load

class Far(PlainDevice):
    def copy(self, copies, after=None):
        for _, source in copies:
            source.view(torch.uint8).sum()  # as a copy reads it

checkpoint, meta = Checkpoint.open(Path(sys.argv[1])), torch.device("meta")
before = peak_rss()
load(checkpoint, device=meta, dtype=torch.bfloat16, backend=Far(meta))
print(checkpoint.nbytes, peak_rss() - before)
"""


@pytest.mark.slow
def test_a_resident_load_takes_little_host_memory_beside_the_file(tmp_path: Path) -> None:
    """Half a gigabyte to a device that is not the host: what the process grows by is the ring, and small things."""
    config = tiny_config(
        hidden_size=1024, moe_intermediate_size=512, n_routed_experts=32, num_hidden_layers=6, intermediate_size=1024
    )
    write_checkpoint(tmp_path, config, dtype=torch.bfloat16)
    run = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    size, grown = map(int, run.stdout.split())
    assert size > 500e6
    assert grown < 1.5 * staging.BUFFERS * staging.BUFFER_BYTES
