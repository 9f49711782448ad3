"""The `dslite` command. Starting it imports no torch and no Textual: commands import what they need when they run."""

import os
import sys
import traceback
from contextlib import suppress
from typing import Annotated, Any, TextIO, cast

import typer
from typer.exceptions import TyperException

from dslite.app.commands import (
    bench,
    chat,
    complete,
    doctor,
    engine,
    model,
    plan,
    profile,
    serve,
    session,
    shell_completion,
)
from dslite.app.commands.command import command
from dslite.app.terminal import console, streams
from dslite.app.terminal.log_file import log_error, log_place
from dslite.runtime.errors import DsliteError, UsageError

app = typer.Typer(
    name="dslite",
    help="DeepSeek-V2-Lite on your own machine.",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every flag --some-flag is also read from DSLITE_SOME_FLAG.",
)
app.command("bench")(command(bench.bench))
app.command("chat")(command(chat.chat))
app.command("complete")(command(complete.complete))
app.command("doctor")(command(doctor.doctor))
app.command("plan")(command(plan.plan))
app.command("serve")(command(serve.serve))
app.add_typer(engine.app, name="engine")
app.add_typer(model.app, name="model")
app.add_typer(profile.app, name="profile")
app.add_typer(session.app, name="session")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dslite {version('dslite')}")
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            help="Install completion for your shell: bash, zsh or fish.",
            is_eager=True,
            callback=shell_completion.install_callback,
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            help="Print the completion script of your shell.",
            is_eager=True,
            callback=shell_completion.show_callback,
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks.", envvar="DSLITE_DEBUG", show_envvar=False)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress.", envvar="DSLITE_QUIET", show_envvar=False)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more.", envvar="DSLITE_VERBOSE", show_envvar=False)
    ] = False,
) -> None:
    console.configure(debug=debug, quiet=quiet, verbose=verbose)


def main() -> None:
    """The console script: run a command, and end with the contract's exit code."""
    with streams.prepared():
        code = _run()
    sys.exit(code)


def _run() -> int:
    """Run the command of sys.argv; return its exit code. No error leaves this function."""
    try:
        if shell := os.environ.get(shell_completion.VARIABLE):
            return _complete(shell)
        code = app(standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BaseException as error:
        # Typer answers a broken pipe with exit code 1.
        wrapped = isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)
        return _report(error.__context__ if wrapped and error.__context__ else error)


def _complete(shell: str) -> int:
    """Answer a shell's completion script, of dslite or of Typer."""
    if shell in shell_completion.SCRIPTS:
        shell_completion.answer(typer.main.get_command(app), shell, sys.argv[1:])
        return 0
    from typer._completion_classes import completion_init

    completion_init()
    app(standalone_mode=False)  # ends by itself
    return 0


def _report(error: BaseException) -> int:
    """Print what ended a command, with its traceback under --debug; return the exit code."""
    match error:
        case SystemExit():
            return error.code if isinstance(error.code, int) else 0
        case BrokenPipeError():  # the reader has enough (`| head`)
            _discard(sys.stdout)
            return 0
        case KeyboardInterrupt() | typer.Abort():
            return 130
        case OSError():
            _discard(sys.stdout)  # what is left in its buffer cannot be written at the interpreter's end either
    shown = _described(error)
    if not isinstance(shown, UsageError):
        log_error(error)
    try:
        # An error of the command line ends the parsing before the flag is read.
        if console.settings.debug or "--debug" in sys.argv:
            traceback.print_exception(error)
        if isinstance(error, TyperException):
            cast(Any, error).show()  # of Typer's own subclass, which is not public
        else:
            console.show_error(shown)
        sys.stderr.flush()
    except (OSError, ValueError):  # stderr on a full disk, closed: the exit code is all that can be said
        _discard(sys.stderr)
    return shown.exit_code


def _described(error: BaseException) -> DsliteError:
    """An error as fact and remedy."""
    match error:
        case DsliteError():
            return error
        case TyperException():
            return UsageError(error.message) if error.exit_code == UsageError.exit_code else DsliteError(error.message)
        case OSError():  # stdout on a full disk, most likely: every file that is opened has its own words
            place = error.filename or "stdout"
            return DsliteError(f"{place} cannot be written or read: {error.strerror or error}", "check disk and place")
    return DsliteError(
        f"unexpected {type(error).__name__}: {error}", f"the log has the details ({log_place()}); --debug shows them"
    )


def _discard(stream: TextIO) -> None:
    """Let a stream that cannot be written go to nowhere: the interpreter flushes it once more at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
