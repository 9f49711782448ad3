"""`dslite profile`: system messages and sampling values under a name."""

import json
from typing import Annotated, Any

import typer

from dslite.app.commands import completion_values as complete
from dslite.app.commands.command import command, command_line_only, flag
from dslite.app.commands.flags import AnswerFlags, ListFlags, Model, WeightsFlag, checked_weights
from dslite.runtime.errors import UsageError

app = typer.Typer(help="Keep a system message and sampling values under a name.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The profile's name.", autocompletion=complete.profiles)]
Description = Annotated[str | None, flag("--description", help="What the profile is for, in a few words.")]


def list_profiles(*, listing: ListFlags) -> None:
    """List the profiles; a star marks the default one."""
    from dslite.app.settings.config_file import read_config
    from dslite.app.settings.profiles import all_profiles, default_profile
    from dslite.app.terminal.tables import print_table

    config = read_config()
    profiles, default = all_profiles(config).values(), default_profile(config).name
    if listing.json:
        print(json.dumps([_object(profile, profile.name == default) for profile in profiles]))
        return
    rows = [
        (profile.name + "*" * (profile.name == default), profile.model or "", profile.description)
        for profile in profiles
    ]
    print_table(("NAME", "MODEL", "DESCRIPTION"), rows)


def show(name: Name, *, listing: ListFlags) -> None:
    """Print a profile as its table in config.toml."""
    from dslite.app.settings.config_file import read_config
    from dslite.app.settings.profile_toml import profile_text
    from dslite.app.settings.profiles import default_profile, get_profile
    from dslite.app.terminal.console import visible

    config = read_config()
    profile = get_profile(name, config)
    if listing.json:
        print(json.dumps(_object(profile, profile.name == default_profile(config).name)))
        return
    print(visible(profile_text(name)), end="")


@command_line_only
def add(
    name: Name,
    *,
    description: Description = None,
    model: Model = None,
    weights: WeightsFlag = None,
    answer: AnswerFlags,
) -> None:
    """Add a profile."""
    from dslite.app.settings.profiles import Profile, all_profiles, changed, save_profile

    if name in all_profiles():
        raise UsageError(f"there is a profile {name!r} already", f"change it with dslite profile edit {name}")
    save_profile(changed(Profile(name), _given(description, model, weights, answer)))


@command_line_only
def edit(
    name: Name,
    *,
    description: Description = None,
    model: Model = None,
    weights: WeightsFlag = None,
    answer: AnswerFlags,
) -> None:
    """Change a profile: by flags (an empty text takes one away), or without any in your editor."""
    from dslite.app.settings.profile_toml import profile_text, save_profile_text
    from dslite.app.settings.profiles import changed, get_profile, save_profile
    from dslite.app.terminal.editor import edit_text

    profile = get_profile(name)
    values = _given(description, model, weights, answer)
    if values:
        save_profile(changed(profile, values))
        return
    text = profile_text(name)
    edited = edit_text(text, name="profile.toml")
    if edited != text:
        save_profile_text(name, edited)


def remove(name: Name) -> None:
    """Remove a profile; one that came with dslite can be restored."""
    from dslite.app.settings.profiles import remove_profile

    remove_profile(name)


def restore(name: Name) -> None:
    """Bring back a profile that came with dslite, as it came."""
    from dslite.app.settings.profiles import restore_profile

    restore_profile(name)


def default(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="The profile; without: say which.", autocompletion=complete.profiles),
    ] = None,
) -> None:
    """Use a profile wherever none is named."""
    from dslite.app.settings.profiles import default_profile, set_default_profile

    if name is None:
        print(default_profile().name)
    else:
        set_default_profile(name)


def _given(description: str | None, model: str | None, weights: str | None, answer: AnswerFlags) -> dict[str, Any]:
    """The values of a profile that were given, checked. Raises UsageError."""
    texts = {"description": description, "model": model, "system": answer.system_message()}
    texts["weights"] = weights and checked_weights(weights)
    return {key: value for key, value in texts.items() if value is not None} | answer.sampling()


def _object(profile: Any, default: bool) -> dict[str, Any]:
    return {"name": profile.name, "default": default, "shipped": profile.shipped, **profile.to_dict()}


app.command("list")(command(list_profiles))
app.command("show")(command(show))
app.command("add")(command(add))
app.command("edit")(command(edit))
app.command("rm")(command(remove))
app.command("restore")(command(restore))
app.command("default")(command(default))
