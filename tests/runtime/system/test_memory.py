"""Host memory on each system: Linux from prepared trees, the others from prepared answers of psutil."""

import mmap
from pathlib import Path

import pytest
from support.trees import GIB, linux, write_tree

from dslite.runtime.system import SystemName, system_name
from dslite.runtime.system.memory import PAGE_SIZE, HostMemory, anonymous_map, host_memory, peak_rss


def no_psutil() -> tuple[int, int]:
    raise ImportError("psutil")


def test_memory_is_what_the_system_says_is_available(tmp_path: Path) -> None:
    assert host_memory(linux(tmp_path), system="linux") == HostMemory(32 * GIB, 20 * GIB)


def test_a_container_s_limit_counts_and_pages_of_files_are_free(tmp_path: Path) -> None:
    group = {
        "memory.max": str(8 * GIB),
        "memory.current": str(6 * GIB),
        "memory.stat": f"anon {GIB}\ninactive_file {4 * GIB}\n",
    }
    files = {f"sys/fs/cgroup/box/{name}": text for name, text in group.items()}
    files["sys/fs/cgroup/box/inner/memory.max"] = "max\n"
    memory = host_memory(linux(tmp_path, group="0::/box/inner\n", files=files), system="linux")
    assert (memory.total, memory.free) == (8 * GIB, 6 * GIB)


def test_a_kernel_without_memavailable_counts_free_and_cached(tmp_path: Path) -> None:
    meminfo = "MemTotal: 4194304 kB\nMemFree: 1048576 kB\nBuffers: 524288 kB\nCached: 524288 kB\n"
    root = write_tree(tmp_path, {"proc/meminfo": meminfo})
    assert host_memory(root, system="linux") == HostMemory(4 * GIB, 2 * GIB)


@pytest.mark.parametrize("system", ["macos", "windows"])
def test_other_systems_are_read_by_psutil_and_have_no_groups(tmp_path: Path, system: SystemName) -> None:
    files = {"sys/fs/cgroup/memory.max": "1", "sys/fs/cgroup/memory.current": "1"}
    root = linux(tmp_path, files=files)
    assert host_memory(root, system=system, reader=lambda: (16 * GIB, 9 * GIB)) == HostMemory(16 * GIB, 9 * GIB)


def test_without_proc_and_psutil_half_of_the_memory_may_be_taken(tmp_path: Path) -> None:
    memory = host_memory(tmp_path, system="other", reader=no_psutil)
    assert memory.free == memory.total // 2 > 0


def test_this_machine_has_memory() -> None:
    memory = host_memory()
    assert 0 < memory.free <= memory.total
    assert all(limit.limit < 2**60 for limit in memory.limits)


@pytest.mark.skipif(system_name() == "windows", reason="getrusage is of Unix")
def test_the_peak_is_in_bytes_on_each_system() -> None:
    kib, plain = peak_rss("linux"), peak_rss("macos")
    assert kib >= 10 * 2**20  # Python with torch
    assert kib // 1024 <= plain + 2**20


@pytest.mark.parametrize("nbytes", [0, 1, PAGE_SIZE + 1])
def test_anonymous_memory_is_zero_and_can_be_written(nbytes: int) -> None:
    memory = anonymous_map(nbytes)
    assert len(memory) == max(nbytes, 1)
    assert memory[0] == 0
    memory[0] = 1
    assert PAGE_SIZE == mmap.PAGESIZE
