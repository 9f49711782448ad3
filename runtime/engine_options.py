"""What a user may ask of the engine. No torch here: a wrong flag must not cost the import of torch."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from dslite.runtime.errors import UsageError
from dslite.runtime.units import MAX_SIZE

Dtype = Literal["bfloat16", "float32"]
Weights = Literal["bfloat16", "int8", "int4"]
MissPolicy = Literal["auto", "fetch", "compute"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
MISS_POLICIES: tuple[MissPolicy, ...] = get_args(MissPolicy)

MAX_THREADS = 1024  # more than any machine has processors; native code allocates a stack for each thread
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,4})?")


@dataclass(frozen=True)
class EngineOptions:
    """Where and how to run; sizes in bytes. None means: decide by the machine and the model.

    Raises UsageError that names the flag and its range. The upper limits of `ctx_size` and `expert_slots` depend on the
    model: `open_engine` checks them before it allocates anything.
    """

    device: str = "auto"
    dtype: Dtype = "bfloat16"  # of activations, cache and the weights that are not quantized
    weights: Weights = "bfloat16"
    pack: bool = True  # quantized weights come from a packed file; else they are quantized while the model is loaded
    ctx_size: int | None = None
    threads: int | None = None
    offline: bool = False
    vram: int | None = None
    ram: int | None = None
    expert_slots: int | None = None
    miss: MissPolicy = "auto"
    disk_cache: int = 0  # most bytes of latent entries on disk that belong to no saved conversation; 0: none

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise UsageError(f"--device is {self.device!r}; it must be auto, cuda, cuda:N, mps or cpu")
        if str(self.dtype) == "float16":
            raise UsageError("float16 overflows in this model", "use bfloat16, or float32 to check numbers")
        check_choice("--dtype", self.dtype, DTYPES)
        check_choice("--weights", self.weights, WEIGHTS)
        check_choice("--miss", self.miss, MISS_POLICIES)
        check_whole("--threads", self.threads, 1, MAX_THREADS)
        check_whole("--ctx-size", self.ctx_size)
        check_whole("--expert-slots", self.expert_slots)
        check_whole("--vram", self.vram, 1, MAX_SIZE)
        check_whole("--ram", self.ram, 1, MAX_SIZE)
        check_whole("--disk-cache", self.disk_cache, 0, MAX_SIZE)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise UsageError for a value that is not one of the choices."""
    if value not in choices:
        raise UsageError(f"{name} is {value!r}; it must be {', '.join(choices[:-1])} or {choices[-1]}")


def check_whole(name: str, value: object, low: int | None = None, high: int | None = None) -> None:
    """Raise UsageError for what is not a whole number from `low` to `high`; None, a value not given, passes."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; it must be a whole number")
    if (low is not None and value < low) or (high is not None and value > high):
        shown = value if abs(value) < 10**20 else f"a number of {len(str(abs(value)))} digits"
        limits = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UsageError(f"{name} is {shown}; it must be {limits}")
