"""Reading a machine: from files as Linux writes them, and by measuring."""

import json
from pathlib import Path

import pytest

from dslite.runtime.planning import bandwidth
from dslite.runtime.planning.bandwidth import Bandwidths, bandwidths, measure_disk, measure_ram
from dslite.runtime.planning.hardware import cpu_features, machine, memory, physical_cores

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def proc(tmp_path: Path, group: str = "/") -> Path:
    meminfo = f"MemTotal: {32 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {20 * 2**20} kB\n"
    return write(tmp_path / "proc", {"meminfo": meminfo, "self/cgroup": f"0::{group}\n"})


def test_memory_is_what_the_system_says_is_available(tmp_path: Path) -> None:
    assert memory(proc(tmp_path), tmp_path / "none") == (32 * GIB, 20 * GIB)


def test_a_container_s_limit_counts_and_pages_of_files_are_free(tmp_path: Path) -> None:
    group = {
        "memory.max": str(8 * GIB),
        "memory.current": str(6 * GIB),
        "memory.stat": f"anon {GIB}\ninactive_file {4 * GIB}\n",
    }
    cgroups = write(tmp_path / "cgroup", {f"box/{name}": text for name, text in group.items()})
    write(cgroups, {"box/inner/memory.max": "max\n"})
    assert memory(proc(tmp_path, "/box/inner"), cgroups) == (8 * GIB, 6 * GIB)


def test_hyperthreads_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {}
    for cpu in range(8):
        files[f"cpu{cpu}/topology/physical_package_id"] = "0\n"
        files[f"cpu{cpu}/topology/core_id"] = f"{cpu % 4}\n"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 4, 5, 6})
    assert physical_cores(write(tmp_path, files)) == 3


def test_processor_features_are_those_that_matter(tmp_path: Path) -> None:
    cpuinfo = write(tmp_path, {"cpuinfo": "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 sse\n"}) / "cpuinfo"
    assert cpu_features(cpuinfo) == ["avx2", "avx512f", "avx512_bf16"]
    assert cpu_features(tmp_path / "none") == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, hub_home: Path, tmp_path: Path) -> list[str]:
    """Measurements of a few megabytes; the list says which were made."""
    made: list[str] = []
    monkeypatch.setattr(bandwidth, "_RAM_BYTES", 8 << 20)
    monkeypatch.setattr(bandwidth, "_DISK_BYTES", 16 << 20)
    for name in ("measure_ram", "measure_disk"):
        plain = getattr(bandwidth, name)
        monkeypatch.setattr(bandwidth, name, lambda *args, plain=plain, name=name: (made.append(name), plain(*args))[1])
    return made


def test_bandwidths_are_measured_once_and_again_on_request_or_on_another_machine(
    small: list[str], tmp_path: Path
) -> None:
    first = bandwidths("this", "cpu")
    assert bandwidths("this", "cpu") == first
    assert small == ["measure_ram", "measure_disk"]
    bandwidths("this", "cpu", refresh=True)
    bandwidths("another", "cpu")
    assert len(small) == 6
    assert first.ram > 0
    assert (first.pcie, first.gpu) == (0, 0)


@pytest.mark.parametrize("damage", ["", "[]", '{"machine": "this"}', '{"machine": "this", "ram": "x"}'])
def test_a_damaged_record_is_measured_anew(small: list[str], tmp_path: Path, damage: str) -> None:
    write(tmp_path / "dslite-cache", {"bandwidths.json": damage})
    bandwidths("this", "cpu")
    assert small == ["measure_ram", "measure_disk"]
    assert json.loads((tmp_path / "dslite-cache" / "bandwidths.json").read_text())["ram"] > 0


def test_measuring_the_disk_leaves_nothing_behind(small: list[str], tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    assert measure_disk(place) > 0
    assert list(place.iterdir()) == []
    assert measure_disk(tmp_path / "nowhere") == 0


def test_a_machine_is_put_together_from_its_parts(monkeypatch: pytest.MonkeyPatch, hub_home: Path) -> None:
    speeds = Bandwidths(ram=50e9, disk=3e9, pcie=0.0, gpu=0.0)
    monkeypatch.setattr("dslite.runtime.planning.bandwidth.bandwidths", lambda *_, refresh: speeds)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    here = machine()
    assert (here.device, here.vram_total, here.ram_bandwidth, here.disk_bandwidth) == ("cpu", 0, 50e9, 3e9)
    assert 0 < here.ram_free <= here.ram_total
    assert here.cores == physical_cores()


def test_a_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch, hub_home: Path) -> None:
    seen: list[str] = []

    def measured(name: str, device: str, *, refresh: bool) -> Bandwidths:
        seen.append(name)
        return Bandwidths(1.0, 2.0, 3.0, 4.0)

    monkeypatch.setattr("dslite.runtime.planning.bandwidth.bandwidths", measured)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (20 * GIB, 24 * GIB))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A card")
    here = machine(refresh=True)
    assert (here.device, here.device_name) == ("cuda", "A card")
    assert (here.vram_free, here.vram_total) == (20 * GIB, 24 * GIB)
    assert (here.pcie_bandwidth, here.gpu_bandwidth) == (3.0, 4.0)
    assert "A card" in seen[0]


def test_memory_is_read_at_the_speed_of_memory(small: list[str]) -> None:
    assert 1e8 < measure_ram() < 1e13
