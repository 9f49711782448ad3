"""The work of the first-run screen apart from its widgets: the download, the plan for this machine, a folder."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING

from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.errors import CheckpointError, UsageError
from dslite.runtime.system.folders import expand_home
from dslite.runtime.units import size_text

if TYPE_CHECKING:
    from dslite.runtime.events import PullEvent
    from dslite.runtime.planning.device_plan import DevicePlan

Pull = Callable[[ModelRef, Flag], "Generator[PullEvent]"]


def pull_from_hub(ref: ModelRef, cancel: Flag, *, offline: bool = False) -> "Generator[PullEvent]":
    """Download a model. Imported late: the first paint does not need it."""
    from dslite.runtime.downloads.download import pull

    return pull(ref, offline=offline, cancel=cancel)


def describe_machine(ref: ModelRef, *, offline: bool = False) -> list[str]:
    """Lines about this machine and the plan for a model, from its config alone.

    Imports torch and, the first time, measures for seconds: call it in a thread. Raises DsliteError.
    """
    from dslite.runtime.downloads.model_config import config_of
    from dslite.runtime.planning.machine import machine
    from dslite.runtime.planning.placement import plan

    found = machine()
    gpu = f"{found.device_name}, {size_text(found.vram_free)} free of {size_text(found.vram_total)}"
    best = plan(found, config_of(ref, offline=offline))
    return [
        "GPU: " + (gpu if found.device != "cpu" else "none found; the processor computes"),
        f"memory: {size_text(found.ram_free)} free of {size_text(found.ram_total)}, {found.cores} cores",
        *_plan_lines(best if best.fits or best.nearest is None else best.nearest, best),
    ]


def _plan_lines(best: "DevicePlan", wanted: "DevicePlan") -> list[str]:
    lines = [] if wanted.fits else [f"as it is, the model does not fit: {wanted.reason}"]
    if not best.fits:
        return [*lines, "the demo model runs everywhere"]
    experts = best.slots + best.experts_in_ram + best.experts_on_disk
    places = [f"{best.slots} of {experts} experts a layer {'in memory' if best.device == 'cpu' else 'on the GPU'}"]
    places += [f"{best.experts_in_ram} in host memory"] if best.experts_in_ram else []
    places += [f"{best.experts_on_disk} on disk"] if best.experts_on_disk else []
    speed = f"about {best.prediction.decode_tps:.1f} tokens a second"
    return [*lines, f"plan: {', '.join(places)}; a context of {best.context:,} tokens", f"speed to expect: {speed}"]


def model_folder(text: str) -> Path:
    """The folder whose path the user entered, which holds a complete model. Raises DsliteError."""
    from dslite.runtime.downloads.layout import missing_files, read_config

    path = text.strip().strip("'\"")  # terminals quote what is dropped into them
    if not path:
        raise UsageError("no folder was written", "write its path, or leave with Esc")
    folder = expand_home(path)
    read_config(folder)
    if missing := missing_files(folder):
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}", "give a folder with all files of the model")
    return folder.absolute()


@dataclass(frozen=True)
class FirstRun:
    """The functions of the first-run screen that tests replace."""

    pull: Pull = field(default=pull_from_hub)
    describe: Callable[[ModelRef], list[str]] = field(default=describe_machine)

    @classmethod
    def of(cls, *, offline: bool) -> "FirstRun":
        """The real functions. `offline` opens no socket."""
        return cls(partial(pull_from_hub, offline=offline), partial(describe_machine, offline=offline))
