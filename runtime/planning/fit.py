"""The plan of this machine for a model that is to be loaded."""

from dataclasses import replace

from dslite.model.config import ModelConfig
from dslite.runtime.errors import ModelUnavailableError
from dslite.runtime.planning import hardware, machine
from dslite.runtime.planning.device_plan import DevicePlan, PlanRequest
from dslite.runtime.planning.placement import plan


def fit(config: ModelConfig, device: str, request: PlanRequest) -> DevicePlan:
    """The placement. Where no context was asked for and the default one does not fit, a shorter one is used.

    Raises UsageError, and ModelUnavailableError with what would fit. Bandwidths are measured, which takes seconds,
    only where they decide whether a GPU fetches misses.
    """
    here = replace(hardware.unmeasured(), device=device)
    made = plan(here, config, request)
    if device == "cuda" and made.source != "resident" and request.miss == "auto":
        made = plan(replace(machine.machine(), device=device), config, request)
    nearest = made.nearest
    free = request.context is None and request.expert_slots is None
    if not made.fits and nearest is not None and nearest.device == device and free:
        made = nearest
    if made.reason is not None:
        raise ModelUnavailableError(made.reason, _remedy(nearest, request))
    return made


def _remedy(nearest: DevicePlan | None, request: PlanRequest) -> str:
    if nearest is not None:
        return f"what fits: --device {nearest.device} --expert-slots {nearest.slots} --ctx-size {nearest.context}"
    limits = [f"--{name}" for name in ("vram", "ram") if getattr(request, name) is not None]
    if limits:
        return f"raise {' and '.join(limits)}, or leave the limit out"
    return "close other programs, or use a machine with more memory"
