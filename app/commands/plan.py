"""`dslite plan`: what would live where, and the speed to expect, before anything is downloaded or loaded."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslite.app.commands import flags
from dslite.app.commands.flags import flag, parse_size
from dslite.runtime.downloads.hub import parse_model
from dslite.runtime.downloads.model_config import config_of
from dslite.runtime.errors import ModelUnavailableError, UsageError

if TYPE_CHECKING:
    from dslite.runtime.planning.device_plan import DevicePlan
    from dslite.runtime.planning.hardware import MachineSpec

# What a described GPU is taken for where the flags do not say.
_PCIE = 25e9  # PCIe 4 x16, as measured on pinned memory
_GPU_BANDWIDTH_PER_GIB = 39e9  # a 24 GiB card of 936 GB/s; others lie within a third of it
# And the machine around a GPU that is not here, unless this one has more.
_RAM = 64 * 2**30
_RAM_BANDWIDTH = 70e9  # read of two channels of DDR5-5600, whose data sheet says 89.6

_BOUNDS = {
    "gpu-bandwidth": "the GPU's memory",
    "pcie": "PCIe",
    "ram-bandwidth": "host memory",
    "disk": "the disk",
    "compute": "launching and waiting",
}


def plan(
    model: flags.Model = None,
    revision: flags.Revision = None,
    device: flags.Device = "auto",
    dtype: flags.Dtype = "bfloat16",
    vram: Annotated[str | None, flag("--vram", help="GPU memory to use, such as 24GiB.")] = None,
    ram: Annotated[str | None, flag("--ram", help="Host memory to use.")] = None,
    ctx_size: flags.CtxSize = None,
    expert_slots: Annotated[int | None, flag("--expert-slots", help="Routed experts per layer on the device.")] = None,
    miss: Annotated[str, flag("--miss", help="auto, fetch or compute: what a missing expert means.")] = "auto",
    pcie: Annotated[float | None, flag("--pcie", help="GB/s of PCIe.")] = None,
    gpu_bandwidth: Annotated[float | None, flag("--gpu-bandwidth", help="GB/s of the GPU's memory.")] = None,
    ram_bandwidth: Annotated[float | None, flag("--ram-bandwidth", help="GB/s of host memory.")] = None,
    disk_bandwidth: Annotated[float | None, flag("--disk-bandwidth", help="GB/s of the disk.")] = None,
    offline: flags.Offline = False,
    output: flags.ListOutput = "text",
    as_json: flags.AsJson = False,
) -> None:
    """Show what would live where, on this machine or a described one, and the speed to expect."""
    from dslite.runtime.planning.device_plan import PlanRequest
    from dslite.runtime.planning.placement import plan as place

    wants_json = flags.wants_json(output, as_json)
    if miss not in ("auto", "fetch", "compute"):
        raise UsageError(f"--miss is {miss!r}; it must be auto, fetch or compute")
    if dtype not in ("bfloat16", "float32"):
        raise UsageError(f"--dtype is {dtype!r}; it must be bfloat16 or float32")
    speeds = {"pcie": pcie, "gpu_bandwidth": gpu_bandwidth, "ram_bandwidth": ram_bandwidth}
    speeds["disk_bandwidth"] = disk_bandwidth
    for name, value in speeds.items():
        if value is not None and not 0 < value < 1e6:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be above 0, in GB/s")
    ref = parse_model(model or "chat", revision)
    vram_bytes, ram_bytes = (None if text is None else parse_size(text) for text in (vram, ram))
    config = config_of(ref, offline=offline)
    machine = _machine(device, vram_bytes, ram_bytes, speeds)
    request = PlanRequest(dtype, ctx_size, vram_bytes, ram_bytes, expert_slots, miss)  # type: ignore[arg-type]
    made = place(machine, config, request)
    if wants_json:
        print(json.dumps(plan_object(ref.name, made) | {"machine": _machine_object(machine)}, ensure_ascii=False))
    else:
        print(_text(ref.name, made), _machine_line(machine), sep="\n")
    raise typer.Exit(0 if made.fits else ModelUnavailableError.exit_code)


def _machine(device: str, vram: int | None, ram: int | None, speeds: dict[str, float | None]) -> "MachineSpec":
    """This machine, with what the flags say in place of what is here."""
    from dslite.runtime.planning.hardware import machine

    here = machine()
    kind = here.device if device == "auto" else device.partition(":")[0]
    if kind not in ("cuda", "mps", "cpu"):
        raise UsageError(f"--device is {device!r}; it must be auto, cuda, cuda:N, mps or cpu")
    if device == "auto" and vram is not None and kind == "cpu":
        kind = "cuda"  # memory of a GPU is described: so is a GPU
    memory = vram if vram is not None else here.vram_free
    if kind != "cpu" and not memory:
        raise ModelUnavailableError(
            f"this machine has no {kind} device", "describe one, for instance with --vram 24GiB"
        )
    if kind not in ("cpu", here.device):
        here = _around_a_gpu(here)
    described = replace(
        here,
        device=kind,
        vram_total=memory,
        vram_free=memory,
        ram_total=max(here.ram_total, ram or 0),
        ram_free=here.ram_free if ram is None else ram,
        gpu_bandwidth=here.gpu_bandwidth or _GPU_BANDWIDTH_PER_GIB * memory / 2**30,
        pcie_bandwidth=here.pcie_bandwidth or _PCIE,
    )
    fields = {"pcie": "pcie_bandwidth"}
    given = {fields.get(name, name): value * 1e9 for name, value in speeds.items() if value is not None}
    return replace(described, **given)  # type: ignore[arg-type]  # bandwidths all


def _around_a_gpu(here: "MachineSpec") -> "MachineSpec":
    """A GPU that this machine lacks is in another one, which is taken for no smaller and no slower than usual."""
    return replace(
        here,
        ram_total=max(here.ram_total, _RAM),
        ram_free=max(here.ram_free, _RAM),
        ram_bandwidth=max(here.ram_bandwidth, _RAM_BANDWIDTH),
    )


def plan_object(model: str, made: "DevicePlan") -> dict[str, Any]:
    """The contract's JSON object of a plan."""
    prefill = made.prediction.prefill_tps
    shown: dict[str, Any] = {
        "model": model,
        "device": made.device,
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
    """The same, told: a described machine is taken for a usual one where nothing was said."""
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
