"""The flags that commands share, and what they become."""

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dslite.app.terminal import console
from dslite.app.terminal.log_file import keep_log
from dslite.runtime.errors import UsageError


def flag(*names: str, **settings: Any) -> Any:
    """An option that is also read from the environment: --some-flag from DSLITE_SOME_FLAG."""
    longest = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = f"DSLITE_{longest[2:].replace('-', '_').upper()}"
    return typer.Option(*names, envvar=variable, show_envvar=False, **settings)


# Which model, where.
Model = Annotated[
    str | None,
    flag("--model", "-m", help="chat, base, coder, coder-base, demo, a Hub id[@revision], or a folder."),
]
Revision = Annotated[str | None, flag("--revision", help="Revision of a Hub id.")]
Device = Annotated[str, flag("--device", help="auto, cuda, cuda:N, mps or cpu.")]
Dtype = Annotated[str, flag("--dtype", help="bfloat16, or float32 to check numbers.")]
CtxSize = Annotated[int | None, flag("--ctx-size", help="Most tokens in the context.")]
Threads = Annotated[int | None, flag("--threads", help="CPU threads.")]
Offline = Annotated[bool, flag("--offline", help="Never touch the network.")]
Vram = Annotated[str | None, flag("--vram", metavar="SIZE", help="Most GPU memory to use, such as 12GiB.")]
Ram = Annotated[str | None, flag("--ram", metavar="SIZE", help="Most host memory to use.")]
ExpertSlots = Annotated[int | None, flag("--expert-slots", help="Routed experts per layer on the compute device.")]
Miss = Annotated[str, flag("--miss", help="auto, fetch or compute: what to do about an expert without a slot.")]
Endpoint = Annotated[str | None, flag("--endpoint", metavar="URL", help="Ask an OpenAI-compatible server instead.")]
EndpointKeyEnv = Annotated[
    str | None, flag("--endpoint-key-env", metavar="NAME", help="Environment variable with the key that it wants.")
]

# How an answer is made.
System = Annotated[str | None, flag("--system", "-s", "--system-prompt", help="System message.")]
SystemFile = Annotated[Path | None, flag("--system-file", help="System message from a file.")]
Temperature = Annotated[float | None, flag("--temperature", "-t", "--temp", help="0 is greedy.")]
TopP = Annotated[float | None, flag("--top-p", help="Keep the likeliest tokens up to this mass.")]
TopK = Annotated[int | None, flag("--top-k", help="Keep this many tokens; 0 is off.")]
MinP = Annotated[float | None, flag("--min-p", help="Drop tokens below this share of the best one.")]
RepetitionPenalty = Annotated[float | None, flag("--repetition-penalty", help="Above 1 discourages repetition.")]
Seed = Annotated[int | None, flag("--seed", help="The same answer again.")]
MaxTokens = Annotated[int | None, flag("--max-tokens", "-n", help="Most tokens of the answer.")]
Stop = Annotated[list[str] | None, flag("--stop", metavar="TEXT", help="End before this text (repeatable).")]

# Which profile, which conversation (chat, complete).
Profile = Annotated[str | None, flag("--profile", metavar="NAME", help="Use this profile.")]
SaveProfile = Annotated[str | None, flag("--save-profile", metavar="NAME", help="Keep these flags as a profile.")]
Continue = Annotated[bool, flag("--continue", "-c", help="Go on with the latest conversation.")]
Session = Annotated[str | None, flag("--session", metavar="ID", help="Go on with this conversation.")]
NoSave = Annotated[bool, flag("--no-save", help="Save no conversation.")]

# Lists.
ListOutput = Annotated[str, flag("--output", "-o", help="text or json.")]
AsJson = Annotated[bool, flag("--json", help="The same as -o json.")]

# Everywhere.
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags that work everywhere, behind its own."""

    @functools.wraps(function)
    def wrapper(*, debug: bool, quiet: bool, verbose: bool, **arguments: Any) -> Any:
        console.configure(debug=debug, quiet=quiet, verbose=verbose)
        keep_log(answers=not arguments.get("no_save", False))
        try:
            try:
                return function(**arguments)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # The reader has enough (`| head`). Python would complain again while it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    extra = {"debug": Debug, "quiet": Quiet, "verbose": Verbose}
    own = inspect.signature(function)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in extra.items()
    ]
    wrapper.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {**function.__annotations__, **extra}
    return wrapper


def wants_json(output: str, as_json: bool) -> bool:
    """Whether a list is asked for as JSON. Raises UsageError."""
    if output not in ("text", "json"):
        raise UsageError(f"--output is {output!r}; it must be text or json")
    return as_json or output == "json"


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_size(text: str) -> int:
    """Bytes of a size such as 12GiB, 9500MB or 1000. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"{text!r} is not a size", "write it as 12GiB or 9500MB")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


def placing(vram: str | None, ram: str | None, expert_slots: int | None, miss: str) -> dict[str, Any]:
    """The flags about memory as fields of EngineOptions. Raises UsageError."""
    if miss not in ("auto", "fetch", "compute"):
        raise UsageError(f"--miss is {miss!r}; it must be auto, fetch or compute")
    sizes = {name: None if text is None else parse_size(text) for name, text in (("vram", vram), ("ram", ram))}
    return {**sizes, "expert_slots": expert_slots, "miss": miss}


def read_text(file: Path, what: str) -> str:
    """The text of a file that the user named. Raises UsageError."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{what} {file} cannot be read: {error.strerror}", "check its path and permissions") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} {file} is not valid UTF-8 at byte {error.start}", "convert it to UTF-8") from None


def system_message(text: str | None, file: Path | None) -> str | None:
    """The system message of --system or --system-file; empty takes a profile's away. Raises UsageError."""
    if file is None:
        return text
    if text is not None:
        raise UsageError("the system message is given twice, with --system and --system-file", "give it once")
    return read_text(file, "the system message's file")
