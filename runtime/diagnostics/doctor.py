"""Facts about this machine and this installation, and its faults with their remedies."""

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from dslite.runtime.downloads.hub import cache_root
from dslite.runtime.downloads.inventory import StoredModel, stored_models
from dslite.runtime.errors import DsliteError
from dslite.runtime.paths import cache_dir, config_dir, data_dir
from dslite.runtime.planning.hardware import MachineSpec
from dslite.runtime.planning.machine import machine
from dslite.runtime.system.files import free_disk_bytes
from dslite.runtime.system.memory import host_memory
from dslite.runtime.system.processors import cpu_features, cpu_name, processors

_PACKAGES = "torch triton safetensors tokenizers huggingface_hub httpx2 numpy textual typer rich".split()
_SPARE_BYTES = 1 << 30  # on the disks where dslite writes


class Bytes(int):
    """A count of bytes."""


class Rate(int):
    """Bytes per second."""


Fact = str | int


@dataclass(frozen=True)
class Finding:
    """Something that a user should know. A fault keeps something from working; a note explains."""

    kind: Literal["fault", "note"]
    text: str
    remedy: str = ""

    @classmethod
    def of(cls, error: DsliteError) -> "Finding":
        return cls("fault", error.message, error.remedy)


@dataclass
class Examination:
    """Facts by section, in reading order, and findings."""

    facts: dict[str, dict[str, Fact]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == "fault"]


def examine(*, refresh: bool = False) -> Examination:
    """Collect facts and findings; bandwidths are measured where no figures are kept, or with `refresh`."""
    import torch

    from dslite.model.kernels import native
    from dslite.runtime.planning.autotune import choose_products

    seen = Examination()
    here = machine(refresh=refresh)
    choose_products(refresh=refresh)
    seen.facts["versions"] = _versions()
    seen.facts["processor"] = _processor() | {
        "threads of torch": torch.get_num_threads(),
        "products": native.describe(),
    }
    seen.facts["memory"] = _memory()
    _devices(torch, seen)
    seen.facts["read bandwidth"] = _speeds(here)
    seen.facts["places"] = _places()
    models = stored_models()
    seen.facts["models"] = {model.name: Bytes(model.size_bytes) for model in models}
    seen.findings += [*_of_cpu(), *_of_places(), *_of_models(models), *_of_environment()]
    return seen


def _versions() -> dict[str, Fact]:
    found: dict[str, Fact] = {"dslite": version("dslite"), "python": platform.python_version()}
    found |= {name: version(name) for name in _PACKAGES if importlib.util.find_spec(name)}
    return found | {"system": f"{platform.system()} {platform.release()} {platform.machine()}"}


def _processor() -> dict[str, Fact]:
    """Name, cores, and what reduces them: slow ones, and a quota with the file that sets it."""
    here = processors()
    facts: dict[str, Fact] = {"name": cpu_name(), "physical cores": here.cores}
    if here.fast != here.cores:
        facts["fast cores"] = here.fast
    if here.quota is not None:
        facts["quota"] = f"{here.quota.processors:g} processors ({here.quota.source})"
    return facts | {
        "default threads": here.threads,
        "features": " ".join(cpu_features()) or "none that matter",
    }


def _memory() -> dict[str, Fact]:
    """Total and free as they are planned with, and each limit of a control group with the file that sets it."""
    here = host_memory()
    facts: dict[str, Fact] = {"total": Bytes(here.total), "free": Bytes(here.free)}
    for limit in here.limits:
        facts[f"limit of {limit.source}"] = Bytes(limit.limit)
    return facts


def _devices(torch: Any, seen: Examination) -> None:
    """GPUs with their memory; `torch` is the module, or what a test puts in its place."""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            major, minor = torch.cuda.get_device_capability(index)
            name = torch.cuda.get_device_name(index)
            native = major >= 8  # compute capability 8.0, Ampere, is the first with BF16 units
            seen.facts[f"cuda:{index}"] = {
                "name": name,
                "memory": Bytes(total),
                "free memory": Bytes(free),
                "compute capability": f"{major}.{minor}",
                "BF16": "yes" if native else "emulated",
            }
            if not native:
                seen.findings.append(_without_bf16(name, f"{major}.{minor}"))
    elif torch.backends.mps.is_available():
        seen.facts["mps"] = {"memory": Bytes(torch.mps.recommended_max_memory()), "BF16": "yes"}
    else:
        seen.facts["devices"] = {"cpu": "no GPU that torch can use"}
        if Path("/dev/nvidiactl").exists():
            seen.findings.append(
                Finding(
                    "fault",
                    f"there is an NVIDIA GPU, but torch {torch.__version__} cannot use it",
                    "install a CUDA build of torch that fits the driver (nvidia-smi names its version)",
                )
            )


def _without_bf16(name: str, capability: str) -> Finding:
    return Finding(
        "note",
        f"{name} (compute capability {capability}) has no BF16 arithmetic: weights stay BF16 and their "
        "products are emulated, so answers are right and come several times slower",
        "choose --device cpu where that is faster; float16 would overflow in this model",
    )


def _speeds(here: MachineSpec) -> dict[str, Fact]:
    speeds = {"memory": here.ram_bandwidth, "disk": here.disk_bandwidth, "pcie": here.pcie_bandwidth}
    speeds["gpu"] = here.gpu_bandwidth
    return {name: Rate(speed) for name, speed in speeds.items() if speed}


def _places() -> dict[str, Fact]:
    from huggingface_hub import constants

    return {
        "Hugging Face cache": str(cache_root()),
        "free there": Bytes(free_disk_bytes(cache_root())),
        "endpoint": constants.ENDPOINT,
        "token": "set" if os.environ.get("HF_TOKEN") or Path(constants.HF_TOKEN_PATH).is_file() else "none",
        "network": "off (HF_HUB_OFFLINE)" if constants.is_offline_mode() else "on",
        "dslite cache": str(cache_dir()),
        "size of it": Bytes(_size(cache_dir())),
        "settings": str(config_dir()),
        "conversations": str(data_dir()),
    }


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _of_cpu() -> Iterator[Finding]:
    if platform.machine() in ("x86_64", "AMD64") and not {"avx512_bf16", "amx_bf16"} & set(cpu_features()):
        yield Finding("note", "this processor has no BF16 instructions: on the CPU, products are made in float32")


def _of_places() -> Iterator[Finding]:
    variables = {"DSLITE_CACHE_DIR": cache_dir(), "DSLITE_CONFIG_DIR": config_dir(), "DSLITE_DATA_DIR": data_dir()}
    for variable, place in (variables | {"HF_HOME": cache_root()}).items():
        existing = place
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            yield Finding("fault", f"{place} cannot be written", f"change its permissions, or name another: {variable}")
        elif free_disk_bytes(place) < _SPARE_BYTES:
            yield Finding("fault", f"the disk of {place} is nearly full", f"make room, or name another: {variable}")


def _of_models(models: list[StoredModel]) -> Iterator[Finding]:
    for model in models:
        if model.complete:
            continue
        remedy = f"go on with dslite model pull {model.name}, or remove it with dslite model rm {model.name}"
        if model.repo_id is None:
            remedy = "install dslite again: the demo comes with it"
        yield Finding("fault", f"the model {model.name} is incomplete: {', '.join(model.missing[:3])}", remedy)
    if not any(model.complete and model.repo_id for model in models):
        yield Finding("note", "no DeepSeek-V2 weights are on this machine", "download them: dslite model pull chat")


def _of_environment() -> Iterator[Finding]:
    from huggingface_hub import constants

    if not constants.ENDPOINT.startswith(("http://", "https://")):
        yield Finding("fault", f"HF_ENDPOINT is {constants.ENDPOINT!r}, which is no address", "begin it with https://")
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        yield Finding("fault", f"text is written as {sys.stdout.encoding}", "set LANG=C.UTF-8 or PYTHONUTF8=1")
