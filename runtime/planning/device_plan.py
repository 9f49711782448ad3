"""The request to the planner, and the plan that it returns."""

from dataclasses import dataclass
from typing import Literal

from dslite.runtime.engine_options import Dtype, MissPolicy, Weights
from dslite.runtime.planning.prediction import Prediction

Miss = Literal["fetch", "compute"]
# resident: every expert is on the compute device. host: in one arena of host memory. mapped: in the mapped files, of
# which the system keeps pages in memory. disk: read from the files on a miss.
Source = Literal["resident", "host", "mapped", "disk"]


@dataclass(frozen=True)
class PlanRequest:
    """What the user asks for, in bytes and tokens; None leaves it to the planner."""

    dtype: Dtype = "bfloat16"
    context: int | None = None
    vram: int | None = None
    ram: int | None = None
    expert_slots: int | None = None
    miss: MissPolicy = "auto"
    weights: Weights = "bfloat16"


@dataclass(frozen=True)
class DevicePlan:
    """The placement, in bytes and experts per layer, and the speed to expect.

    `spare` are buffers of the arena beside the slots, for experts that are being loaded. Where misses are computed
    on the host, passes of `compute_below` tokens or more fetch them instead. `compute_unpinned` is this number where
    the system does not pin the host memory, 0 where misses are fetched then too. Where `fits` is false, `reason` says
    what is missing, the figures are what was asked, and `nearest` is the nearest plan that fits, if any does.
    """

    device: str
    dtype: str
    weights: Weights
    context: int
    prefill_chunk: int
    source: Source
    miss: Miss
    compute_below: int
    compute_unpinned: int
    slots: int
    spare: int
    slot_bytes: int
    experts_in_ram: int
    experts_on_disk: int
    embedding_on_device: bool
    parameters: int
    weights_bytes: int
    resident_bytes: int
    kv_bytes_per_token: int
    kv_bytes: int
    workspace_bytes: int
    vram_bytes: int
    ram_bytes: int
    bytes_read_per_token: int
    prediction: Prediction
    reason: str | None = None
    nearest: "DevicePlan | None" = None

    @property
    def fits(self) -> bool:
        return self.reason is None

    def computed_below(self, *, pinned: bool) -> int:
        """Tokens of a pass below which the host computes misses; 0: it computes none."""
        if not pinned:
            return self.compute_unpinned
        return self.compute_below if self.miss == "compute" else 0
