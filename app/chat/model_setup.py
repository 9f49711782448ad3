"""What the first-run screen tells and does, apart from its widgets."""

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
    """The real download; imported when it is wanted."""
    from dslite.runtime.downloads.download import pull

    return pull(ref, offline=offline, cancel=cancel)


def describe_machine(ref: ModelRef, *, offline: bool = False) -> list[str]:
    """Lines about this machine and the plan for a model, from its config alone.

    Imports torch and, the first time, measures for seconds: call it in a thread. Raises DsliteError.
    """
    from dslite.runtime.downloads.model_config import config_of
    from dslite.runtime.planning.machine import machine
    from dslite.runtime.planning.placement import plan

    here = machine()
    gpu = f"{here.device_name}, {size_text(here.vram_free)} free of {size_text(here.vram_total)}"
    made = plan(here, config_of(ref, offline=offline))
    return [
        "GPU: " + (gpu if here.device != "cpu" else "none found; the processor computes"),
        f"memory: {size_text(here.ram_free)} free of {size_text(here.ram_total)}, {here.cores} cores",
        *_plan_lines(made if made.fits or made.nearest is None else made.nearest, made),
    ]


def _plan_lines(best: "DevicePlan", asked: "DevicePlan") -> list[str]:
    lines = [] if asked.fits else [f"as it is, the model does not fit: {asked.reason}"]
    if not best.fits:
        return [*lines, "the demo model runs everywhere"]
    experts = best.slots + best.experts_in_ram + best.experts_on_disk
    places = [f"{best.slots} of {experts} experts a layer {'in memory' if best.device == 'cpu' else 'on the GPU'}"]
    places += [f"{best.experts_in_ram} in host memory"] if best.experts_in_ram else []
    places += [f"{best.experts_on_disk} on disk"] if best.experts_on_disk else []
    speed = f"about {best.prediction.decode_tps:.1f} tokens a second"
    return [*lines, f"plan: {', '.join(places)}; a context of {best.context:,} tokens", f"speed to expect: {speed}"]


def model_folder(text: str) -> Path:
    """The folder that a user wrote, with a whole model in it. Raises DsliteError."""
    from dslite.runtime.downloads.layout import missing_files, read_config

    written = text.strip().strip("'\"")  # terminals quote what is dropped into them
    if not written:
        raise UsageError("no folder was written", "write its path, or leave with Esc")
    folder = expand_home(written)
    read_config(folder)
    if missing := missing_files(folder):
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}", "give a folder with all files of the model")
    return folder.absolute()


@dataclass(frozen=True)
class FirstRun:
    """The two things that a test replaces."""

    pull: Pull = field(default=pull_from_hub)
    describe: Callable[[ModelRef], list[str]] = field(default=describe_machine)

    @classmethod
    def of(cls, *, offline: bool) -> "FirstRun":
        """What runs outside of tests. `offline` opens no socket."""
        return cls(partial(pull_from_hub, offline=offline), partial(describe_machine, offline=offline))
