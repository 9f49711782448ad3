"""The `dslite` command. Starting it imports no torch and no Textual: commands import what they need when they run."""

import sys
from typing import Annotated

import typer

from dslite.app.commands import bench, chat, complete, doctor, model, plan, profile, serve, session
from dslite.app.commands.command import command
from dslite.app.terminal import console
from dslite.model.errors import DsliteError

app = typer.Typer(
    name="dslite",
    help="DeepSeek-V2-Lite on your own machine.",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every flag --some-flag is also read from DSLITE_SOME_FLAG.",
)
app.command("bench")(command(bench.bench))
app.command("chat")(command(chat.chat))
app.command("complete")(command(complete.complete))
app.command("doctor")(command(doctor.doctor))
app.command("plan")(command(plan.plan))
app.command("serve")(command(serve.serve))
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
    """The console script: run a command, and turn its end into the contract's exit code."""
    # Surrogates in a name and characters that a terminal's encoding lacks must not end an answer.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except DsliteError as error:
        if console.settings.debug:
            raise
        console.show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # stdout on a full disk, most likely: every file that is opened has its own words
        if console.settings.debug:
            raise
        where = error.filename or "the output"
        console.show_error(DsliteError(f"{where} cannot be written or read: {error.strerror}", "check disk and place"))
        sys.exit(1)
    except Exception as error:
        if console.settings.debug:
            raise
        console.show_error(DsliteError(f"unexpected {type(error).__name__}: {error}", "run again with --debug"))
        sys.exit(1)
