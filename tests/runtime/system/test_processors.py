"""Processors: hyperthreads, affinity, quotas, fast and slow cores, on prepared trees and answers of each system."""

import struct
from pathlib import Path

import pytest
from support.trees import linux, write_tree

from dslite.runtime.system.processors import Processors, cpu_features, cpu_name, processors

CPU = "sys/devices/system/cpu/cpu{}/"


def topology(cores: dict[int, int], **more: dict[int, str]) -> dict[str, str]:
    """Logical processor → core, and other files of each processor by name."""
    files = {}
    for cpu, core in cores.items():
        files[CPU.format(cpu) + "topology/physical_package_id"] = "0\n"
        files[CPU.format(cpu) + "topology/core_id"] = f"{core}\n"
    for name, values in more.items():
        for cpu, text in values.items():
            files[CPU.format(cpu) + name.replace("__", "/")] = text + "\n"
    return files


def counted(root: Path, allowed: set[int]) -> tuple[int, int, int]:
    found = processors(root, system="linux", allowed=allowed)
    return found.cores, found.fast, found.threads


def test_hyperthreads_count_once(tmp_path: Path) -> None:
    write_tree(tmp_path, topology({cpu: cpu % 4 for cpu in range(8)}))
    assert counted(tmp_path, {0, 1, 4, 5, 6}) == (3, 3, 3)


def test_cores_of_two_packages_are_told_apart(tmp_path: Path) -> None:
    files = topology(dict.fromkeys(range(2), 0))
    files[CPU.format(1) + "topology/physical_package_id"] = "1\n"
    assert counted(write_tree(tmp_path, files), {0, 1}) == (2, 2, 2)


def test_equal_core_numbers_of_two_clusters_are_told_apart_by_their_siblings(tmp_path: Path) -> None:
    files = topology(dict.fromkeys(range(4), 0), topology__core_cpus_list={0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"})
    assert counted(write_tree(tmp_path, files), {0, 1, 2, 3}) == (2, 2, 2)


def test_a_system_without_topology_counts_logical_processors(tmp_path: Path) -> None:
    assert counted(tmp_path, {0, 1, 7}) == (3, 3, 3)


EIGHT = {cpu: cpu for cpu in range(8)}
CLASSES = {
    "Arm's capacities": (
        topology(EIGHT, cpu_capacity={cpu: "1024" if cpu >= 4 else "446" for cpu in EIGHT}),
        set(EIGHT),
        (8, 4),
    ),
    "equal capacities": (topology(EIGHT, cpu_capacity=dict.fromkeys(EIGHT, "1024")), set(EIGHT), (8, 8)),
    "frequencies": (
        topology(EIGHT, cpufreq__cpuinfo_max_freq={cpu: "5100000" if cpu < 2 else "3300000" for cpu in EIGHT}),
        set(EIGHT),
        (8, 2),
    ),
    "turbo steps of equal cores": (
        topology(EIGHT, cpufreq__cpuinfo_max_freq={cpu: f"{5_800_000 - 100_000 * (cpu // 2)}" for cpu in EIGHT}),
        set(EIGHT),
        (8, 8),
    ),
    "Intel's hybrid": (
        topology({0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5})
        | {"sys/devices/cpu_core/cpus": "0-3\n", "sys/devices/cpu_atom/cpus": "4-7\n"},
        set(EIGHT),
        (6, 2),
    ),
    "Intel's hybrid, bound to a list": (
        topology({0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 3, 6: 4, 7: 5}) | {"sys/devices/cpu_core/cpus": "0,2-3\n"},
        {2, 4, 5},
        (3, 1),
    ),
    "bound to slow cores": (
        topology(EIGHT) | {"sys/devices/cpu_core/cpus": "0-3\n", "sys/devices/cpu_atom/cpus": "4-7\n"},
        {4, 5},
        (2, 2),
    ),
    "a capacity is missing": (topology(EIGHT, cpu_capacity={0: "1024", 1: "446"}), set(EIGHT), (8, 8)),
}


@pytest.mark.parametrize("case", CLASSES)
def test_threads_are_the_fast_cores(tmp_path: Path, case: str) -> None:
    files, allowed, (cores, fast) = CLASSES[case]
    assert counted(write_tree(tmp_path, files), allowed) == (cores, fast, fast)


@pytest.mark.parametrize(("quota", "threads"), [("200000", 2), ("350000", 3), ("50000", 1), ("max", 4), ("900000", 4)])
def test_threads_stay_within_the_quota(tmp_path: Path, quota: str, threads: int) -> None:
    files = topology({cpu: cpu for cpu in range(4)}) | {"sys/fs/cgroup/box/cpu.max": f"{quota} 100000\n"}
    assert counted(linux(tmp_path, group="0::/box\n", files=files), {0, 1, 2, 3}) == (4, 4, threads)


def macos(values: dict[str, int]) -> Processors:
    return processors(
        system="macos", read_sysctl=lambda name: values[name].to_bytes(4, "little") if name in values else None
    )


def test_a_mac_s_performance_level_0_is_the_fast_one() -> None:
    assert macos({"hw.physicalcpu": 10, "hw.perflevel0.physicalcpu": 8}) == Processors(10, 8)
    assert macos({"hw.physicalcpu": 6}) == Processors(6, 6)  # Intel's have no levels


def cpu_set(logical: int, core: int, efficiency: int, *, group: int = 0, size: int = 32) -> bytes:
    """SYSTEM_CPU_SET_INFORMATION of winnt.h: 32 bytes on today's Windows."""
    head = struct.pack("<IIIHBBBBB", size, 0, 256 + logical, group, logical, core, 0, 0, efficiency)
    return head + bytes(size - len(head))


HYBRID = b"".join(
    [*(cpu_set(cpu, cpu // 2 * 2, 1) for cpu in range(4)), *(cpu_set(cpu, cpu, 0) for cpu in range(4, 8))]
)


@pytest.mark.parametrize(
    ("sets", "allowed", "expected"),
    [
        (HYBRID, range(8), Processors(6, 2)),
        (HYBRID, {0, 1, 4}, Processors(2, 1)),
        (HYBRID, {5, 6}, Processors(2, 2)),
        (b"".join(cpu_set(cpu, cpu, 0, size=40) for cpu in range(4)), range(4), Processors(4, 4)),
        (cpu_set(0, 0, 0) + cpu_set(0, 0, 0, group=1), {0}, Processors(2, 2)),
        (b"", range(6), Processors(6, 6)),
        (bytes(32), range(3), Processors(3, 3)),
    ],
)
def test_windows_cores_are_read_from_its_cpu_sets(sets: bytes, allowed: set[int], expected: Processors) -> None:
    assert processors(system="windows", allowed=allowed, read_cpu_sets=lambda: sets) == expected


def test_this_machine_has_processors() -> None:
    here = processors()
    assert 1 <= here.threads <= here.fast <= here.cores


def test_processor_features_are_those_that_matter(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"proc/cpuinfo": "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 sse\n"})
    assert cpu_features(root, system="linux") == ["avx2", "avx512f", "avx512_bf16"]
    assert cpu_features(tmp_path / "none", system="linux") == []
    arm = write_tree(tmp_path / "arm", {"proc/cpuinfo": "processor : 0\nFeatures : fp asimd bf16 i8mm sve\n"})
    assert cpu_features(arm, system="linux") == ["asimd", "bf16", "sve", "i8mm"]
    assert cpu_features(system="windows") == []
    flags = {"hw.optional.AdvSIMD": b"\1\0\0\0", "hw.optional.arm.FEAT_BF16": b"\1\0\0\0", "hw.optional.fma": b"\0"}
    assert cpu_features(system="macos", read_sysctl=flags.get) == ["asimd", "bf16"]


def test_a_processor_s_name_comes_from_its_system(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"proc/cpuinfo": "model name : A fast one\n"})
    assert cpu_name(root, system="linux") == "A fast one"
    assert cpu_name(system="macos", read_sysctl={"machdep.cpu.brand_string": b"Apple M2\0"}.get) == "Apple M2"
    assert cpu_name(tmp_path / "none", system="linux")
