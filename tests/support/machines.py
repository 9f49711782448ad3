"""Machines as a planner sees them, described by hand."""

import json
from pathlib import Path

from dslite.model.config import ModelConfig
from dslite.runtime.planning.hardware import MachineSpec

GIB = 2**30
GOLDEN = Path(__file__).resolve().parent.parent / "golden"


def lite_config() -> ModelConfig:
    """The published config of DeepSeek-V2-Lite."""
    return ModelConfig.from_dict(json.loads((GOLDEN / "deepseek-v2-lite.config.json").read_text(encoding="utf-8")))


def machine(
    vram: float = 0, ram: float = 64, *, gpu: float = 936, pcie: float = 25, host: float = 70, disk: float = 2.3
) -> MachineSpec:
    """A machine of so many GiB, all of them free, and GB/s; without GPU memory it computes on the CPU."""
    return MachineSpec(
        device="cuda" if vram else "cpu",
        device_name="described",
        vram_total=int(vram * GIB),
        vram_free=int(vram * GIB),
        ram_total=int(ram * GIB),
        ram_free=int(ram * GIB),
        gpu_bandwidth=gpu * 1e9,
        pcie_bandwidth=pcie * 1e9,
        ram_bandwidth=host * 1e9,
        disk_bandwidth=disk * 1e9,
        cores=8,
    )
