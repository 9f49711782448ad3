"""`dslite engine`: the warm engines of this user, which keep a model loaded between commands."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslite.app.commands.command import command, command_line_only, flag, handles_signals
from dslite.app.commands.flags import EngineFlags, ListFlags, model_ref
from dslite.app.commands.model_prompt import ensure_model
from dslite.app.commands.packing import ensure_packed
from dslite.app.terminal import console
from dslite.runtime.errors import DsliteError, UsageError
from dslite.runtime.units import parse_time, time_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dslite.runtime.downloads.hub import ModelRef
    from dslite.runtime.engine_options import EngineOptions
    from dslite.runtime.events import LoadingEvent
    from dslite.runtime.warm.connection import LoadedEngine
    from dslite.runtime.warm.key import EngineKey

app = typer.Typer(help="Keep a model loaded between commands: start, show and stop warm engines.", no_args_is_help=True)

_KEEP_ALIVE_S = 600.0
_STOP_S = 30.0


def start(
    *,
    keep_alive: Annotated[
        str | None, flag("--keep-alive", metavar="TIME", help="End after so long without work; default: 10m.")
    ] = None,
    engine: EngineFlags,
) -> None:
    """Start the engine of a model in the background, and wait until it is loaded."""
    from dslite.app.settings import precedence
    from dslite.app.terminal.progress_text import loading_text
    from dslite.runtime.system.local_socket import has_local_sockets
    from dslite.runtime.warm.client import EngineRefusedError
    from dslite.runtime.warm.launcher import obtain_engine

    seconds = None if keep_alive is None else parse_time(keep_alive, "--keep-alive")
    if seconds == 0:
        raise UsageError("--keep-alive is 0: the engine would end at once", "give a time such as 10m")
    if not has_local_sockets():
        raise DsliteError("warm engines need Linux or macOS", "commands compute in their own process here")
    given = precedence.AnswerSettings(engine.model, weights=engine.weights_given)
    settings = precedence.settle(given, None, None, raw=False)  # as of a chat: [defaults] and the default profile
    options = engine.options(settings.weights)
    ref = model_ref(settings.model or "chat", engine.revision)
    ref = ensure_model(ref, offline=engine.offline, weights=options.weights)
    ensure_packed(ref, options, yes=engine.yes)
    status = console.TerminalStatus()
    try:
        client = obtain_engine(
            ref,
            options,
            seconds or precedence.keep_alive() or _KEEP_ALIVE_S,
            lambda event: status.show(loading_text(event)),
        )
    except EngineRefusedError as error:
        raise DsliteError(f"an engine of {ref.name} runs and is of no use: {error}", "dslite engine stop") from None
    finally:
        status.clear()
    if client is None:
        raise DsliteError("the warm engine ended while it loaded the model", "the log has the details: dslite.log")
    print(_line(client.description))


def show_status(*, listing: ListFlags) -> None:
    """List the engines that run."""
    from dslite.app.terminal.tables import print_table
    from dslite.runtime.warm.client import running_engines

    found = [description for _, description in running_engines()]
    if listing.json:
        print(json.dumps(found))
        return
    rows = [(f"{each['pid']}", each["model"], each["weights"], _state(each)) for each in found]
    print_table(("PID", "MODEL", "WEIGHTS", "STATE"), rows)


def stop() -> None:
    """Stop the engines that run. An answer that is under way goes on in the process of its command."""
    from dslite.runtime.warm.client import running_engines, stop_engine

    stopped = 0
    for channel, description in running_engines():
        if not stop_engine(channel, _STOP_S):
            raise DsliteError(f"the engine {description['pid']} does not end", f"kill {description['pid']}")
        print(f"stopped {description['pid']}: {console.visible(description['model'])}")
        stopped += 1
    if not stopped:
        console.warn("no engine runs")


@command_line_only
@handles_signals
def run(spec: Annotated[str, typer.Argument(metavar="SPEC", help="What to run, as JSON.")]) -> None:
    """Be the engine: what `engine start` starts in the background."""
    from dslite.app.terminal.log_file import keep_log
    from dslite.app.terminal.signals import cleaned_up, ending_at_once
    from dslite.runtime.downloads.hub import parse_model
    from dslite.runtime.engine_options import EngineOptions
    from dslite.runtime.system.local_socket import continue_in_background
    from dslite.runtime.warm.idle import IdleTimer
    from dslite.runtime.warm.key import EngineKey
    from dslite.runtime.warm.server import EngineSocket, WarmServer, serve

    try:
        raw = json.loads(spec)
        ref, options = parse_model(raw["model"]), EngineOptions(**raw["options"])
        idle = IdleTimer(raw["keep_alive_s"])
    except (ValueError, KeyError, TypeError):
        raise UsageError("engine run is for dslite itself", "use dslite engine start") from None
    key = EngineKey.of(ref, options)
    with ending_at_once(), EngineSocket(key.name) as socket, cleaned_up(socket.close):
        if socket.listener is None:
            return  # another process has it
        continue_in_background()
        keep_log(stderr=False)
        server = WarmServer(socket.listener, key, idle)

        try:
            serve(server, lambda report: _load(ref, options, key, report, server.end))
        finally:
            socket.close()
            server.close()


def _load(
    ref: "ModelRef",
    options: "EngineOptions",
    key: "EngineKey",
    report: "Callable[[LoadingEvent], None]",
    on_failure: "Callable[[], None]",
) -> "LoadedEngine":
    """Load the model. Raises DsliteError, also where its files have changed meanwhile."""
    from dslite.app.completion.warm_model import WarmModel
    from dslite.runtime.downloads.packed import locate_weights
    from dslite.runtime.engine_loader import open_engine
    from dslite.runtime.warm.driver import EngineDriver
    from dslite.runtime.warm.key import EngineKey

    engine = open_engine(ref, options, report)
    if EngineKey.of(ref, options) != key:
        raise DsliteError("the files of the model have changed while it was loaded", "try again")
    driver = EngineDriver(engine, on_failure=on_failure)
    driver.start()
    return WarmModel(ref, locate_weights(ref, options.weights), options.weights, engine, driver)


def _line(description: "Mapping[str, Any]") -> str:
    most = description["keep_alive_s"]
    keeps = "serves the API too" if most is None else f"ends after {time_text(most)} without work"
    return f"engine {description['pid']} has {console.visible(description['model'])} loaded; {keeps}"


def _state(description: "Mapping[str, Any]") -> str:
    if not description["loaded"]:
        return "loading"
    idle = description["idle_s"]
    return f"idle for {time_text(idle)}" if idle else "answering"


app.command("start")(command(start))
app.command("status")(command(show_status))
app.command("stop")(command(stop))
app.command("run", hidden=True)(command(run))
