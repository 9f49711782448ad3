"""`dslite doctor`: versions, devices, bandwidths, places, and what is wrong with its remedy."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslite.app.commands.command import flag
from dslite.app.commands.flags import Device, ListFlags
from dslite.app.errors import SessionsError
from dslite.app.terminal import console
from dslite.runtime.downloads.hub import locate, parse_model
from dslite.runtime.errors import DsliteError
from dslite.runtime.units import size_text

if TYPE_CHECKING:
    from dslite.runtime.diagnostics.doctor import Examination, Fact, Finding
    from dslite.runtime.diagnostics.selftest import PromptResult
    from dslite.runtime.engine.engine import Engine

_CONTEXT = 128  # tokens: the self-test's longest prompt and answer have 32


def doctor(
    *,
    refresh: Annotated[bool, flag("--refresh", help="Measure the bandwidths anew.")] = False,
    selftest: Annotated[bool, flag("--selftest", help="Run published prompts on the base weights.")] = False,
    clear_cache: Annotated[
        bool, flag("--clear-cache", help="Remove what was computed of conversations and prompts; it is computed again.")
    ] = False,
    device: Device = "auto",
    listing: ListFlags,
) -> None:
    """Show what this machine can do, what is wrong, and the remedy; ends with 1 where something is wrong."""
    from dslite.runtime.diagnostics.doctor import examine

    if clear_cache:
        _clear_cache()
    if not listing.json and not console.settings.quiet and sys.stderr.isatty():
        print("looking; measuring bandwidths takes some seconds the first time", file=sys.stderr)
    seen = examine(refresh=refresh)
    seen.findings += [*_config_findings(), *_session_findings()]
    if not listing.json:
        _print(seen)
    results = list(_selftest(device)) if selftest else None
    if listing.json:
        print(json.dumps(_object(seen, results)))
    elif results is not None:
        _print_selftest(results)
    failed = seen.faults or not all(result.passed for result in results or ())
    raise typer.Exit(1 if failed else 0)


def _clear_cache() -> None:
    """Remove the latent entries on disk. Conversations themselves stay."""
    from dslite.runtime.cache.disk_cache import clear_folder
    from dslite.runtime.paths import latents_dir, prompts_dir

    removed = sum(map(clear_folder, (latents_dir(), prompts_dir())))
    print(f"removed {size_text(removed)} of computed conversations and prompts", file=sys.stderr)


def _config_findings() -> "Iterator[Finding]":
    """What is wrong with config.toml and the profiles in it."""
    from dslite.app.errors import ConfigFileError
    from dslite.app.settings.config_file import read_config
    from dslite.app.settings.profiles import all_profiles, default_profile, default_values
    from dslite.runtime.diagnostics.doctor import Finding

    try:
        faults: list[str] = []
        config = read_config(report=faults.append)
        yield from (Finding.of(ConfigFileError(fault)) for fault in faults)
        all_profiles(config)
        default_profile(config)
        default_values(config)
    except DsliteError as error:
        yield Finding.of(error)


def _session_findings() -> "Iterator[Finding]":
    """Damage of the database of conversations."""
    from dslite.app.sessions.database import find_damage
    from dslite.runtime.diagnostics.doctor import Finding
    from dslite.runtime.paths import data_dir

    file = data_dir() / "sessions.db"
    if damage := find_damage(file):
        remedy = "move it away, and dslite makes a new one; sqlite3 FILE .recover may save what is in it"
        yield Finding.of(SessionsError(f"{file} is damaged: {damage}", remedy))


def _selftest(device: str) -> "Iterator[PromptResult]":
    """Raises ModelUnavailableError where the base weights are not here."""
    from dslite.runtime.diagnostics.selftest import MODEL, read_published, run

    yield from run(_open(locate(parse_model(MODEL)), device), read_published()["sets"])


def _open(folder: Any, device: str) -> "Engine":
    from dslite.runtime.engine_loader import open_engine
    from dslite.runtime.engine_options import EngineOptions

    return open_engine(folder, EngineOptions(device=device, ctx_size=_CONTEXT))


def _object(seen: "Examination", results: "list[PromptResult] | None") -> dict[str, Any]:
    facts = {
        section: {_key(name, value): value for name, value in facts.items()} for section, facts in seen.facts.items()
    }
    shown: dict[str, Any] = {"facts": facts, "findings": [vars(finding) for finding in seen.findings]}
    if results is not None:
        shown["selftest"] = [
            vars(result)
            | {"near_ties": [vars(tie) for tie in result.near_ties], "wrong": [vars(bad) for bad in result.wrong]}
            for result in results
        ]
    return shown


def _print(seen: "Examination") -> None:
    for section, facts in seen.facts.items():
        print(section)
        for name, value in facts.items():
            print(f"  {name:<20}  {_text(value)}")
    for finding in seen.findings:
        print(f"{'problem' if finding.kind == 'fault' else 'note'}: {console.visible(finding.text)}")
        if finding.remedy:
            print(f"  {console.visible(finding.remedy)}")
    if not seen.faults:
        print("no problems found")


def _text(value: "Fact") -> str:
    from dslite.runtime.diagnostics.doctor import Bytes, Rate

    if isinstance(value, Bytes | Rate):
        return size_text(value) + ("/s" if isinstance(value, Rate) else "")
    return console.visible(str(value))


def _key(name: str, value: "Fact") -> str:
    """A fact's name in JSON, with its unit."""
    from dslite.runtime.diagnostics.doctor import Bytes, Rate

    unit = "_bytes" if isinstance(value, Bytes) else "_bytes_per_s" if isinstance(value, Rate) else ""
    return name.replace(" ", "_") + unit


def _print_selftest(results: "list[PromptResult]") -> None:
    tokens = sum(result.tokens for result in results)
    agreeing = sum(result.agreeing for result in results)
    near = sum(len(result.near_ties) for result in results)
    wrong = sum(len(result.wrong) for result in results)
    print("self-test")
    print(f"  {agreeing} of {tokens} published tokens are the likeliest here; {near} near ties, {wrong} wrong")
    for result in results:
        for bad in (*result.near_ties, *result.wrong):
            kind = "near tie" if bad in result.near_ties else "wrong"
            print(
                f"  {kind}: {result.prompt!r}, token {bad.place}: published {bad.published!r}, here {bad.ours!r}, "
                f"{bad.gap:.2f} nats apart"
            )
        if not result.same_prompt_ids:
            print(f"  wrong: the tokenizer reads {result.prompt!r} in another way")
