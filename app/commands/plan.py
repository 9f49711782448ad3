"""`dslite plan`: what would live where, and the speed to expect, before anything is downloaded or loaded."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslite.app.commands import completion_values as complete
from dslite.app.commands.command import flag
from dslite.app.commands.flags import ListFlags, ModelFlags
from dslite.runtime.engine_options import WEIGHTS, check_choice
from dslite.runtime.errors import ModelUnavailableError, UsageError
from dslite.runtime.planning.expected_loss import LOSS, LOSS_SOURCE

if TYPE_CHECKING:
    from dslite.runtime.planning.bandwidth import Bandwidths
    from dslite.runtime.planning.device_plan import DevicePlan
    from dslite.runtime.planning.hardware import MachineSpec

_MOST_GBPS = 1e6
_NO_FIT = ModelUnavailableError.exit_code

_BOUNDS = {
    "gpu-bandwidth": "the GPU's memory",
    "pcie": "PCIe",
    "ram-bandwidth": "host memory",
    "disk": "the disk",
    "compute": "launching and waiting",
}


def plan(
    *,
    model: ModelFlags,
    weights: Annotated[
        str | None,
        flag("--weights", help="bfloat16, int8, int4, or all.", autocompletion=complete.values(*WEIGHTS, "all")),
    ] = None,
    pcie: Annotated[float | None, flag("--pcie", help="GB/s of PCIe.")] = None,
    gpu_bandwidth: Annotated[float | None, flag("--gpu-bandwidth", help="GB/s of the GPU's memory.")] = None,
    ram_bandwidth: Annotated[float | None, flag("--ram-bandwidth", help="GB/s of host memory.")] = None,
    disk_bandwidth: Annotated[float | None, flag("--disk-bandwidth", help="GB/s of the disk.")] = None,
    listing: ListFlags,
) -> None:
    """Show what would live where, on this machine or a described one, and the speed to expect."""
    ref, options = model.ref("chat"), model.options()
    if weights is not None:
        check_choice("--weights", weights, (*WEIGHTS, "all"))
    given = _bandwidths(pcie, gpu_bandwidth, ram_bandwidth, disk_bandwidth)

    from dslite.runtime.downloads.model_config import config_of  # its errors of the network take 20 ms to import
    from dslite.runtime.engine_loader import plan_request
    from dslite.runtime.planning import machine as this_machine
    from dslite.runtime.planning.described_machine import described_machine
    from dslite.runtime.planning.placement import plan as place

    config = config_of(ref, offline=options.offline)
    machine = described_machine(this_machine.machine(), options.device, options.vram, options.ram, given)
    request = plan_request(options)
    plans = [place(machine, config, replace(request, weights=format)) for format in WEIGHTS]
    wanted = "bfloat16" if weights in (None, "all") else weights
    result = next(made for made in plans if made.weights == wanted)
    if listing.json:
        chosen = plans if weights == "all" else [result]
        shown = [plan_object(ref.name, made) | {"machine": _machine_object(machine)} for made in chosen]
        print(json.dumps(shown if weights == "all" else shown[0], ensure_ascii=False))
    else:
        print(_text(ref.name, result), _machine_line(machine), "", *_formats(plans), sep="\n")
    raise typer.Exit(0 if any(made.fits for made in plans if weights == "all" or made is result) else _NO_FIT)


def _formats(plans: "Sequence[DevicePlan]") -> list[str]:
    """The three formats of weights side by side."""
    rows = [f"  {'weights':<10}{'fits':<6}{'experts':<11}{'GB':>6}  {'predicted':<13}expected loss"]
    for made in plans:
        experts = made.slots + made.experts_in_ram + made.experts_on_disk
        where = f"{made.slots} of {experts}"
        speed = f"{made.prediction.decode_tps:.1f} tok/s"
        rows.append(
            f"  {made.weights:<10}{'yes' if made.fits else 'no':<6}{where:<11}{made.weights_bytes / 1e9:>6.1f}  "
            f"{speed if made.fits else '-':<13}{LOSS[made.weights]}"
        )
    return [*rows, f"  loss: {LOSS_SOURCE}"]


def _bandwidths(pcie: float | None, gpu: float | None, ram: float | None, disk: float | None) -> "Bandwidths":
    """Bytes per second of what the flags say in GB/s, 0 for what they leave out. Raises UsageError."""
    from dslite.runtime.planning.bandwidth import Bandwidths

    flags = {"pcie": pcie, "gpu-bandwidth": gpu, "ram-bandwidth": ram, "disk-bandwidth": disk}
    for name, value in flags.items():
        if value is not None and not 0 < value <= _MOST_GBPS:
            raise UsageError(f"--{name} is {value}; it must be above 0, up to {_MOST_GBPS:.0f} GB/s")
    return Bandwidths(*((value or 0.0) * 1e9 for value in (ram, disk, pcie, gpu)))


def plan_object(model: str, made: "DevicePlan") -> dict[str, Any]:
    """The contract's JSON object of a plan."""
    prefill = made.prediction.prefill_tps
    shown: dict[str, Any] = {
        "model": model,
        "device": made.device,
        "weights": made.weights,
        "fits": made.fits,
        "reason": made.reason,
        "parameters": made.parameters,
        "weights_bytes": made.weights_bytes,
        "resident_bytes": made.resident_bytes,
        "kv_bytes_per_token": made.kv_bytes_per_token,
        "kv_bytes": made.kv_bytes,
        "workspace_bytes": made.workspace_bytes,
        "vram_bytes": made.vram_bytes,
        "ram_bytes": made.ram_bytes,
        "expert_slots_per_layer": made.slots,
        "experts_in_ram_per_layer": made.experts_in_ram,
        "experts_on_disk_per_layer": made.experts_on_disk,
        "max_context": made.context,
        "bytes_read_per_token": made.bytes_read_per_token,
        "predicted_decode_tps": round(made.prediction.decode_tps, 2),
        "bound": made.prediction.bound,
        "predicted_share_of_bound": round(made.prediction.share, 3),
        "launches_per_token": made.prediction.launches,
        "miss": made.miss,
        "prefill_chunk": made.prefill_chunk,
        "predicted_prefill_tps": None if prefill is None else round(prefill, 1),
    }
    if not made.fits:
        shown["nearest"] = None if made.nearest is None else plan_object(model, made.nearest)
    return shown


def _machine_object(machine: "MachineSpec") -> dict[str, int]:
    """What the plan was made for: bytes, and bytes per second."""
    fields = ("ram_free", "gpu_bandwidth", "pcie_bandwidth", "ram_bandwidth", "disk_bandwidth")
    return {field: round(getattr(machine, field)) for field in fields}


def _machine_line(machine: "MachineSpec") -> str:
    """The same as text, as a described machine has usual values where no flag gives one."""
    parts = [
        f"{machine.ram_free / 1e9:.0f} GB of host memory at {machine.ram_bandwidth / 1e9:.0f} GB/s",
        f"disk {machine.disk_bandwidth / 1e9:.1f} GB/s",
    ]
    if machine.device != "cpu":
        parts.append(f"GPU memory {machine.gpu_bandwidth / 1e9:.0f} GB/s, PCIe {machine.pcie_bandwidth / 1e9:.0f} GB/s")
    return f"  for a machine with  {', '.join(parts)}"


def _text(model: str, made: "DevicePlan") -> str:
    if made.fits:
        return "\n".join(_lines(model, made))
    nearest = ["nothing smaller fits either"] if made.nearest is None else ["nearest plan that fits:", ""]
    lines = [f"does not fit: {made.reason}", *nearest]
    return "\n".join(lines + ([] if made.nearest is None else _lines(model, made.nearest)))


def _lines(model: str, made: "DevicePlan") -> list[str]:
    experts = made.slots + made.experts_in_ram + made.experts_on_disk
    place = "in memory" if made.device == "cpu" else "on the GPU"
    rows = [
        f"{model} on {made.device}, {made.dtype}, context of {made.context:,} tokens",
        f"  weights {place:<11} {_gb(made.resident_bytes)}  {made.slots} of {experts} experts per layer",
        f"  cache               {_gb(made.kv_bytes)}  {made.kv_bytes_per_token:,} bytes a token",
        f"  workspace           {_gb(made.workspace_bytes)}  prompts are read {made.prefill_chunk:,} tokens at a time",
    ]
    if made.experts_in_ram:
        does = "computed there" if made.miss == "compute" else "fetched when wanted"
        rows.append(f"  in host memory      {made.experts_in_ram} experts per layer, {does}")
    if made.experts_on_disk:
        rows.append(f"  on disk             {made.experts_on_disk} experts per layer, read when wanted")
    if made.vram_bytes:
        rows.append(f"  GPU memory in all   {_gb(made.vram_bytes)}")
    rows.append(f"  host memory in all  {_gb(made.ram_bytes)}")
    expected = made.prediction
    launched = f"  {expected.launches} kernel launches" if expected.launches else ""
    rows.append(f"  a token reads       {_gb(made.bytes_read_per_token)}{launched}")
    rows.append(
        f"  predicted           {expected.decode_tps:.1f} tok/s, bound by {_BOUNDS[expected.bound]}: "
        f"{expected.share:.0%} of what that alone would allow"
    )
    if made.prediction.prefill_tps is not None:
        rows.append(f"                      reading prompts: at most {made.prediction.prefill_tps:,.0f} tok/s")
    return rows


def _gb(count: int) -> str:
    return f"{count / 1e9:6.2f} GB"
