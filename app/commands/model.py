"""`dslite model`: the weights on this machine, and those that the Hub has."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslite.app.commands import completion_values as complete
from dslite.app.commands.command import command
from dslite.app.commands.flags import (
    ListFlags,
    Offline,
    Revision,
    WeightsFlag,
    Yes,
    checked_weights,
    model_ref,
    read_text,
)
from dslite.runtime.errors import UsageError

if TYPE_CHECKING:
    from dslite.runtime.diagnostics.model_info import ModelInfo
    from dslite.runtime.downloads.inventory import StoredModel
    from dslite.runtime.downloads.verify import CheckedFile

app = typer.Typer(help="Download, check and remove models.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        metavar="M",
        help="chat, base, coder, coder-base, a Hub id[@revision], a folder.",
        autocompletion=complete.models,
    ),
]

_GRACE_S = 0.5  # that asking the Hub may take to end after a signal

_PART_NAMES = {
    "embedding": "embedding",
    "attention": "attention",
    "dense": "dense layers",
    "shared": "shared experts",
    "routed": "routed experts",
    "gate": "gates",
    "norms": "norms",
    "head": "head",
}


def list_models(*, listing: ListFlags) -> None:
    """List the DeepSeek-V2 models on this machine."""
    from dslite.app.terminal.tables import print_table
    from dslite.runtime.downloads.inventory import stored_models
    from dslite.runtime.units import size_text

    models = stored_models()
    if listing.json:
        print(json.dumps([_stored_object(model) for model in models]))
        return
    rows = [
        (
            model.name,
            size_text(model.size_bytes),
            model.weights,
            "complete" if model.complete else "incomplete",
            (model.commit or "")[:12],
            str(model.folder),
        )
        for model in models
    ]
    print_table(("NAME", "SIZE", "WEIGHTS", "STATE", "REVISION", "PLACE"), rows)


def _stored_object(model: "StoredModel") -> dict[str, Any]:
    return {
        "name": model.name,
        "repo_id": model.repo_id,
        "revision": model.commit,
        "refs": list(model.refs),
        "path": str(model.folder),
        "size_bytes": model.size_bytes,
        "weights": model.weights,
        "complete": model.complete,
        "missing": list(model.missing),
    }


def pull(
    name: Name, *, revision: Revision = None, offline: Offline = False, weights: WeightsFlag = None, yes: Yes = False
) -> None:
    """Download a model, or go on with a download, and pack it with --weights; its folder is printed at the end."""
    chosen = "bfloat16" if weights is None else checked_weights(weights)
    folder = _pull(name, revision, offline=offline)
    if chosen != "bfloat16":
        from dslite.app.commands import packing
        from dslite.runtime.engine_options import EngineOptions

        options = EngineOptions(weights=chosen)
        folder = packing.pack(model_ref(name, revision), options, yes=yes, remove_source=False, dequantise=None)
    print(folder)


def _pull(name: str, revision: str | None, *, offline: bool) -> Path:
    from dslite.app.terminal import console
    from dslite.app.terminal.download_progress import show_pull
    from dslite.app.terminal.signals import Interruption
    from dslite.runtime.downloads import download
    from dslite.runtime.downloads.hub import locate
    from dslite.runtime.downloads.layout import read_config

    ref = model_ref(name, revision)
    if ref.repo_id is None:
        read_config(locate(ref))  # a folder and the demo are where they are, or are not models
        assert ref.folder is not None
        return ref.folder
    interruption = Interruption(grace_s=_GRACE_S)
    present = show_pull(download.pull(ref, offline=offline, cancel=interruption.flag), interruption)
    if present is None:
        console.warn(f"stopped; what came is kept, and dslite model pull {name} goes on from there")
        raise typer.Exit(interruption.exit_code or 1)
    for older in present.older:
        console.warn(f"an older revision is on disk too; remove it with dslite model rm {ref.repo_id}@{older}")
    return present.folder


def verify(
    name: Name,
    *,
    revision: Revision = None,
    offline: Offline = False,
    listing: ListFlags,
) -> None:
    """Check every file of a model against its hash."""
    from dslite.app.commands.packing import verify_packed
    from dslite.app.terminal import console
    from dslite.app.terminal.download_progress import show_downloads
    from dslite.app.terminal.signals import Interruption
    from dslite.app.terminal.tables import print_table
    from dslite.runtime.downloads.hub import locate
    from dslite.runtime.downloads.packed import source_folder
    from dslite.runtime.downloads.verify import complaint
    from dslite.runtime.downloads.verify import verify as check

    ref = model_ref(name, revision)
    whole = verify_packed(ref)
    if whole and source_folder(ref) is None:
        return
    checked: list[CheckedFile] = []
    interruption = Interruption(grace_s=_GRACE_S)
    events = check(ref, locate(ref), checked, offline=offline, cancel=interruption.flag)
    for _ in show_downloads(events, interruption, verb="checked"):
        pass
    if interruption.exit_code:
        raise typer.Exit(interruption.exit_code)
    if listing.json:
        print(json.dumps([vars(found) for found in checked]))
    else:
        print_table(("FILE", "STATE", "HASH"), [(found.name, found.state, found.expected or "") for found in checked])
    if unknown := [found.name for found in checked if found.state == "unknown"]:
        console.warn(f"no source gives a hash of {unknown[0]}: {len(unknown)} files were not checked")
    if error := complaint(ref, checked):
        raise error


def rm(name: Name, *, revision: Revision = None) -> None:
    """Remove a model and its packed weights: all its revisions, or the one that is named."""
    from dslite.app.terminal import console
    from dslite.runtime.downloads.inventory import remove
    from dslite.runtime.downloads.packed import remove_packed, source_folder
    from dslite.runtime.units import size_text

    ref = model_ref(name, revision)
    freed = remove_packed(ref)
    if not freed or (ref.repo_id is not None and source_folder(ref) is not None):
        freed += remove(ref)
    if not console.settings.quiet:
        print(f"removed {console.visible(name)}, {size_text(freed)}")


def pack(
    name: Name,
    *,
    revision: Revision = None,
    weights: WeightsFlag = None,
    remove_source: Annotated[
        bool, typer.Option("--remove-source", help="Then remove the published weights from the Hugging Face cache.")
    ] = False,
    dequantise: Annotated[
        Path | None, typer.Option("--dequantise", metavar="OUT", help="Also write them dequantized, in Hub layout.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Quantize a model's weights once, into a packed file; its folder is printed at the end."""
    from dslite.app.commands import packing
    from dslite.runtime.engine_options import EngineOptions

    chosen = "bfloat16" if weights is None else checked_weights(weights)
    if chosen == "bfloat16":
        raise UsageError("pack needs the format to pack in", "give --weights int8 or --weights int4")
    ref = model_ref(name, revision)
    print(packing.pack(ref, EngineOptions(weights=chosen), yes=yes, remove_source=remove_source, dequantise=dequantise))


def compare(
    name: Name,
    *,
    revision: Revision = None,
    weights: WeightsFlag = None,
    against: Annotated[str, typer.Option("--against", help="The format to compare with.")] = "bfloat16",
    text: Annotated[Path | None, typer.Option("--text", help="A text to read; default: one that ships.")] = None,
    listing: ListFlags,
) -> None:
    """Measure what quantized weights lose, over a text, layer after layer."""
    formats = checked_weights(weights or "int8"), checked_weights(against)
    ref = model_ref(name, revision)
    read = None if text is None else read_text(text, "the text")

    from dslite.app.terminal import console
    from dslite.runtime.diagnostics.comparison import compare_formats

    status = console.TerminalStatus()
    try:
        found = compare_formats(
            ref, *formats, read, lambda done, layers: status.show(f"comparing: layer {done} of {layers}")
        )
    finally:
        status.clear()
    shown = {"model": ref.name, "weights": formats[0], "against": formats[1]} | vars(found)
    if listing.json:
        print(json.dumps(shown, ensure_ascii=False))
        return
    print(
        f"{console.visible(ref.name)}: {formats[0]} against {formats[1]}, "
        f"{found.tokens:,} tokens, {found.seconds:.0f} s\n"
        f"  KL divergence       {found.kl_mean:.6f} nats in the mean, 99% below {found.kl_p99:.6f}\n"
        f"  same first choice   {found.top1_agreement:.2%}\n"
        f"  perplexity          {found.perplexity:.4f}, and {found.perplexity_against:.4f}"
    )


def info(
    name: Name,
    *,
    revision: Revision = None,
    offline: Offline = False,
    listing: ListFlags,
) -> None:
    """Show what a model is made of, in bytes; it need not be here."""
    from dslite.runtime.diagnostics.model_info import describe

    found = describe(model_ref(name, revision), offline=offline)
    print(json.dumps(_info_object(found)) if listing.json else _info_text(found))


def _info_object(found: "ModelInfo") -> dict[str, Any]:
    config = found.config
    return {
        "model": found.ref.repo_id or found.ref.name,
        "revision": found.commit,
        "path": None if found.folder is None else str(found.folder),
        "parameters": found.parameters,
        "weights_bytes": found.weights_bytes,
        "file_bytes": found.file_bytes,
        "part_bytes": found.part_bytes,
        "kv_bytes_per_token": found.kv_bytes_per_token,
        "bytes_read_per_token": found.read_bytes_per_token,
        "max_position_embeddings": config.max_position_embeddings,
        "layers": config.num_hidden_layers,
        "experts": config.n_routed_experts,
        "experts_per_token": config.num_experts_per_tok,
        "expert_bytes": found.expert_bytes,
        "licence": found.licence.name if found.licence else None,
        "licence_url": found.licence.url if found.licence else None,
    }


def _info_text(found: "ModelInfo") -> str:
    from dslite.app.terminal.console import visible
    from dslite.runtime.units import size_text

    config = found.config
    experts = f"{config.n_routed_experts} per layer, {config.num_experts_per_tok} per token"
    lines = [
        ("model", visible(found.ref.repo_id or found.ref.name)),
        ("revision", found.commit or "not known"),
        ("here", str(found.folder) if found.folder else f"no; dslite model pull {visible(found.ref.name)}"),
        ("licence", f"{visible(found.licence.name)}: {visible(found.licence.url)}" if found.licence else "not known"),
        ("parameters", f"{found.parameters:,}"),
        ("weights", _bytes_text(found.weights_bytes)),
        *((f"  {_PART_NAMES[part]}", _bytes_text(count)) for part, count in found.part_bytes.items()),
        ("files", "not known without the Hub" if found.file_bytes is None else _bytes_text(found.file_bytes)),
        ("layers", f"{config.num_hidden_layers}, {config.first_k_dense_replace} of them dense"),
        ("experts", f"{experts}, {size_text(found.expert_bytes)} each"),
        ("read per token", _bytes_text(found.read_bytes_per_token)),
        ("cache per token", _bytes_text(found.kv_bytes_per_token)),
        ("context", f"up to {config.max_position_embeddings:,} tokens"),
    ]
    return "\n".join(f"{name:<18}{value}" for name, value in lines)


def _bytes_text(count: int) -> str:
    from dslite.runtime.units import size_text

    return f"{count:>14,} bytes  {size_text(count)}"


for _name, _function in (
    ("list", list_models),
    ("pull", pull),
    ("verify", verify),
    ("rm", rm),
    ("info", info),
    ("pack", pack),
    ("compare", compare),
):
    app.command(_name)(command(_function))
