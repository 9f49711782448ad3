"""Packing quantized weights: at a model's first use with them, and by `dslite model pack`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dslite.app.terminal import console
from dslite.app.terminal.questions import can_ask, read_answer
from dslite.app.terminal.signals import Interruption
from dslite.runtime.downloads.hub import ModelRef, locate
from dslite.runtime.downloads.packed import find_packed, source_folder
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import ModelUnavailableError
from dslite.runtime.units import size_text

if TYPE_CHECKING:
    from dslite.runtime.weights.packing import PackingJob


def ensure_packed(ref: ModelRef, options: EngineOptions, *, yes: bool) -> None:
    """Pack a model that will be run with quantized weights, unless that was done or --no-pack is set.

    A terminal is asked; elsewhere `yes` must say so. Raises DsliteError.
    """
    if options.weights == "bfloat16" or not options.pack or find_packed(ref, options.weights) is not None:
        return
    from dslite.runtime.weights.packing import PackingJob

    job = PackingJob.of(ref, locate(ref), options.weights)
    if not yes:
        if can_ask():
            _show(job)
        _ask(
            ref,
            ModelUnavailableError(
                f"{ref.name} has no packed {options.weights} weights, and {size_text(job.nbytes)} are not written "
                "without asking",
                f"dslite model pack {ref.name} --weights {options.weights} --yes; or --yes or --no-pack here",
            ),
        )
    run_packing(job)


def _show(job: "PackingJob") -> None:
    print(
        f"{console.visible(job.ref.name)} is packed as {job.weights} once: {size_text(job.nbytes)}\n"
        f"  place    {console.visible(str(job.folder))} ({size_text(job.free)} free)",
        file=sys.stderr,
    )


def _ask(ref: ModelRef, unasked: ModelUnavailableError) -> None:
    """Raise `unasked` where there is no terminal, and ModelUnavailableError for a no or the end of input."""
    if not can_ask():
        raise unasked
    answer = read_answer("write it? [Y/n]: ")
    if answer is None or answer.lower() not in ("", "y", "yes"):
        raise ModelUnavailableError(f"{ref.name} was not packed", "use --weights bfloat16, or --no-pack")


def run_packing(job: "PackingJob") -> Path:
    """Pack with progress on the status line; a signal ends it, and what is written is kept."""
    status = console.TerminalStatus()
    with Interruption() as interruption:
        try:
            folder = job.run(
                lambda done, total: status.show(f"packing: {size_text(done)} of {size_text(total)}"), interruption.flag
            )
        finally:
            status.clear()
        if folder is None:
            console.warn("stopped; what is written is kept, and the same command goes on from there")
            raise typer.Exit(interruption.exit_code or 1)
    return folder


def pack(ref: ModelRef, options: EngineOptions, *, yes: bool, remove_source: bool, dequantise: Path | None) -> Path:
    """Pack, or find packed, the weights of a model; then remove their source, or write them dequantized."""
    from dslite.runtime.downloads.inventory import removable, remove
    from dslite.runtime.weights.open_checkpoint import open_checkpoint, unchanged
    from dslite.runtime.weights.packing import PackingJob

    if remove_source:
        removable(ref)
    source, folder = source_folder(ref), find_packed(ref, options.weights)
    if folder is None or (source is not None and not unchanged(folder, source)):
        job = PackingJob.of(ref, source or locate(ref), options.weights)
        if not console.settings.quiet:
            _show(job)
        if not yes:
            unasked = f"{size_text(job.nbytes)} are not written without asking"
            _ask(ref, ModelUnavailableError(unasked, "say so with --yes"))
        folder = run_packing(job)
    if dequantise is not None:
        from dslite.runtime.weights.dequantizing import write_dequantized

        write_dequantized(open_checkpoint(ref, options.weights), dequantise)
    if remove_source and source is not None:
        print(f"removed the published weights, {size_text(remove(ref))}", file=sys.stderr)
    return folder


def verify_packed(ref: ModelRef) -> bool:
    """Check every block of a model's packed weights; whether there are any. Raises CheckpointError."""
    found = False
    for weights in ("int8", "int4"):
        folder = find_packed(ref, weights)
        if folder is None:
            continue
        from dslite.runtime.weights.quantized_checkpoint import PackedCheckpoint

        found = True
        PackedCheckpoint.open(folder).verify()
        if not console.settings.quiet:
            print(f"packed {weights} weights: good  {console.visible(str(folder))}", file=sys.stderr)
    return found
