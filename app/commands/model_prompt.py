"""A command whose model is absent: a terminal is asked what to do, elsewhere an error names the command to run."""

import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dslite.app.terminal import console
from dslite.app.terminal.questions import can_ask, read_answer
from dslite.app.terminal.signals import Interruption
from dslite.runtime.downloads.hub import DEMO, ModelRef, parse_model
from dslite.runtime.downloads.packed import locate_weights
from dslite.runtime.engine_options import Weights
from dslite.runtime.errors import DsliteError, ModelUnavailableError
from dslite.runtime.events import Found
from dslite.runtime.units import size_text

if TYPE_CHECKING:
    from dslite.runtime.events import PullEvent

_CHOICES = {
    "d": "download it now",
    "m": "use the demo model, which ships with dslite: small, and it knows little",
    "f": "use a model in another folder",
    "q": "quit",
}


def ensure_model(ref: ModelRef, *, offline: bool, weights: Weights = "bfloat16") -> ModelRef:
    """A model that is present: `ref`, or the one that the user chooses instead.

    A present model costs no request. Raises ModelUnavailableError where it is absent and there is no terminal.
    """
    try:
        locate_weights(ref, weights)
        return ref
    except ModelUnavailableError as error:
        if offline or not can_ask():
            raise
        _say(error.message)
        return _ask(ref)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _ask(ref: ModelRef) -> ModelRef:
    """Show what a download needs, and ask: download, demo, another folder or quit."""
    from dslite.runtime.downloads.download import pull

    interruption = Interruption()
    events = pull(ref, cancel=interruption.flag)
    with closing(events):
        downloadable = _show_download(ref, events)
        _say("")
        for key, what in _CHOICES.items():
            if key != "d" or downloadable:
                _say(f"  {key}  {what}")
        while True:
            choice = _read(f"choose [{'d' if downloadable else 'm'}]: ") or ("d" if downloadable else "m")
            if choice == "d" and downloadable:
                _download(ref, events, interruption)
                return ref
            if choice == "m":
                return parse_model(DEMO)
            if choice == "f" and (folder := _other_folder()):
                return ModelRef(str(folder), folder=folder)
            if choice == "q":
                raise ModelUnavailableError("no model was chosen", f"download one: dslite model pull {ref.name}")


def _show_download(ref: ModelRef, events: "Generator[PullEvent, None, None]") -> bool:
    """Show licence, size, place, room and plan; whether the model can be downloaded."""
    from dslite.app.terminal.download_progress import show_found

    try:
        found = next(events)
        assert isinstance(found, Found)
        show_found(found)
        _say(f"  plan     {plan_line(ref)}")
    except DsliteError as error:
        console.show_error(error)
        return False
    if found.missing_bytes <= found.free_bytes:
        return True
    short = size_text(found.missing_bytes - found.free_bytes)
    _say(f"  there is not enough room: {short} more must be free, or set HF_HOME to a folder on another disk")
    return False


def plan_line(ref: ModelRef) -> str:
    """How the model would run on this machine, in one line."""
    from dslite.runtime.downloads.model_config import config_of
    from dslite.runtime.planning.machine import machine
    from dslite.runtime.planning.placement import plan

    config = config_of(ref)
    made = plan(machine(), config)
    if not made.fits:
        return f"it does not fit this machine: {made.reason}"
    where = "GPU" if made.device != "cpu" else "memory"
    rest = [f"{made.experts_in_ram} in host memory"] if made.experts_in_ram else []
    rest += [f"{made.experts_on_disk} read from disk when wanted"] if made.experts_on_disk else []
    slots = f"{made.slots} of {config.n_routed_experts} experts per layer in {where}"
    return f"{made.device}, {', '.join([slots, *rest])}; about {made.prediction.decode_tps:.1f} tok/s expected"


def _read(prompt: str) -> str:
    """A line of the terminal; the end of input quits."""
    answer = read_answer(prompt)
    return "q" if answer is None else answer


def _other_folder() -> Path | None:
    from dslite.app.chat.model_setup import model_folder

    try:
        return model_folder(_read("folder: "))
    except DsliteError as error:
        console.show_error(error)
        return None


def _download(ref: ModelRef, events: "Generator[PullEvent, None, None]", interruption: Interruption) -> None:
    from dslite.app.terminal.download_progress import show_pull

    if show_pull(events, interruption) is None:
        console.warn(f"stopped; what came is kept, and dslite model pull {ref.name} goes on from there")
        raise typer.Exit(interruption.exit_code or 1)
