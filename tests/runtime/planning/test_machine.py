"""This machine as the planner sees it."""

from pathlib import Path

import pytest
import torch

from dslite.runtime.planning import bandwidth
from dslite.runtime.planning.bandwidth import Bandwidths
from dslite.runtime.planning.machine import machine
from dslite.runtime.system.processors import processors

GIB = 2**30


@pytest.mark.usefixtures("hub_home")
def test_a_machine_is_put_together_from_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = Bandwidths(ram=50e9, disk=3e9, pcie=0.0, gpu=0.0)
    monkeypatch.setattr(bandwidth, "bandwidths", lambda *_, refresh: speeds)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    here = machine()
    assert (here.device, here.vram_total, here.ram_bandwidth, here.disk_bandwidth) == ("cpu", 0, 50e9, 3e9)
    assert 0 < here.ram_free <= here.ram_total
    assert here.cores == processors().threads


@pytest.mark.usefixtures("hub_home")
def test_a_gpu_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def measured(name: str, device: str, *, refresh: bool) -> Bandwidths:
        seen.append(name)
        return Bandwidths(1.0, 2.0, 3.0, 4.0)

    monkeypatch.setattr(bandwidth, "bandwidths", measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A card")
    here = machine(refresh=True)
    assert (here.device, here.device_name) == ("cuda", "A card")
    assert (here.vram_free, here.vram_total) == (20 * GIB, 24 * GIB)
    assert (here.pcie_bandwidth, here.gpu_bandwidth) == (3.0, 4.0)
    assert "A card" in seen[0]


def test_memory_of_a_small_group_limits_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model larger than a group's GiB is planned with experts on disk, or refused: never loaded whole."""
    from support.machines import GOLDEN
    from support.trees import linux

    from dslite.model.config import ModelConfig
    from dslite.runtime.downloads.layout import read_json
    from dslite.runtime.planning import hardware
    from dslite.runtime.planning.placement import plan
    from dslite.runtime.system.memory import host_memory

    files = {
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(GIB),
        "sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(GIB // 4),
    }
    root = linux(tmp_path, group="4:memory:/box\n", files=files)
    monkeypatch.setattr(hardware, "host_memory", lambda: host_memory(root, system="linux"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    here = hardware.unmeasured()
    assert (here.ram_total, here.ram_free) == (GIB, GIB * 3 // 4)
    made = plan(here, ModelConfig.from_dict(read_json(GOLDEN / "deepseek-v2-lite.config.json")))
    assert not made.fits or made.ram_bytes <= GIB
