"""Profiles: a system message and, where wanted, sampling values and a model, under a name.

The ones that ship (assets/profiles.toml) lie under those of config.toml. A user's [profiles.NAME] replaces a shipped
one of that name; a shipped one that was removed is listed in `[shipped] removed`, so that it can be restored.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from dslite.app.errors import ConfigFileError, NotFoundError
from dslite.app.settings import sampling
from dslite.app.settings.config_file import Config, editing, read_config
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine_options import WEIGHTS, check_choice
from dslite.runtime.errors import UsageError

PLAIN = "plain"  # the profile where none is chosen: nothing set
_TEXTS = ("description", "system", "model", "weights")


@dataclass(frozen=True)
class Profile:
    """`sampling` holds keys of SamplingParams; `shipped`: it is as it came with dslite."""

    name: str
    description: str = ""
    system: str | None = None
    model: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    shipped: bool = False
    weights: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys of its table in config.toml."""
        texts = {
            "description": self.description or None,
            "system": self.system,
            "model": self.model,
            "weights": self.weights,
        }
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in self.sampling.items()}
        return {key: value for key, value in texts.items() if value is not None} | values


def all_profiles(config: Config | None = None) -> dict[str, Profile]:
    """Every profile by its name, the shipped ones first. Raises ConfigFileError."""
    config = config or read_config()
    removed = config.table("shipped").get("removed", [])
    profiles = {name: profile for name, profile in shipped_profiles().items() if name not in removed}
    for name in config.table("profiles"):
        profiles[name] = parse_profile(name, config.table("profiles", name), f"{config.path}, [profiles.{name}]")
    return profiles


def get_profile(name: str, config: Config | None = None) -> Profile:
    """Raises NotFoundError."""
    profiles = all_profiles(config)
    if name not in profiles:
        raise NotFoundError(f"there is no profile {name!r}", f"choose one of {', '.join(sorted(profiles))}")
    return profiles[name]


def default_profile(config: Config | None = None) -> Profile:
    """The profile of `[defaults] profile`, or the plain one. Raises NotFoundError where it is not there any more."""
    config = config or read_config()
    name = config.text("defaults", "profile")
    if name is None:
        return Profile(PLAIN)
    try:
        return get_profile(name, config)
    except NotFoundError as error:
        raise NotFoundError(f"{config.path}, [defaults]: {error.message}", error.remedy) from None


def default_values(config: Config | None = None) -> dict[str, Any]:
    """The sampling values of [defaults]. Raises ConfigFileError."""
    config = config or read_config()
    return _sampling(config.table("defaults"), f"{config.path}, [defaults]")


def save_profile(profile: Profile) -> None:
    """Write [profiles.NAME]; keys there that dslite does not know, and comments, stay. Raises ConfigFileError."""
    import tomlkit

    check_name(profile.name)
    values = profile.to_dict()
    with editing() as document:
        profiles: Any = document.setdefault("profiles", tomlkit.table(is_super_table=True))
        is_new = profile.name not in profiles
        table = tomlkit.table() if is_new else profiles[profile.name]
        for key in (*_TEXTS, *sampling.KEYS):
            if key not in values:
                table.pop(key, None)
            elif table.get(key) != values[key]:
                table[key] = toml_text(values[key])
        if is_new:
            table.add(tomlkit.nl())  # before whatever follows in the file
            profiles[profile.name] = table
        forget_removed(document, profile.name)


def rename_profile(old: str, new: str) -> None:
    """Give a profile another name; its comments come along. Raises UsageError, NotFoundError, ConfigFileError."""
    import tomlkit

    check_name(new)
    if new in all_profiles():
        raise UsageError(f"there is a profile {new!r} already", "choose another name")
    profile = get_profile(old)
    with editing() as document:
        profiles: Any = document.setdefault("profiles", tomlkit.table(is_super_table=True))
        if new in profiles:  # since the look above
            raise UsageError(f"there is a profile {new!r} already", "choose another name")
        if old in profiles:
            profiles[new] = profiles.pop(old)
        else:
            profiles[new] = {key: toml_text(value) for key, value in profile.to_dict().items()}
        if old in shipped_profiles():
            _set_removed(document, [*_removed(document), old])
        forget_removed(document, new)
        if document.get("defaults", {}).get("profile") == old:
            document["defaults"]["profile"] = new


def remove_profile(name: str) -> None:
    """Delete a profile; a shipped one is hidden until it is restored. Raises NotFoundError, ConfigFileError."""
    get_profile(name)
    with editing() as document:
        document.get("profiles", {}).pop(name, None)
        if name in shipped_profiles():
            _set_removed(document, [*_removed(document), name])
        if document.get("defaults", {}).get("profile") == name:
            document["defaults"].pop("profile")


def restore_profile(name: str) -> Profile:
    """Bring a shipped profile back as it came. Raises NotFoundError, ConfigFileError."""
    if name not in shipped_profiles():
        raise NotFoundError(f"no profile {name!r} ships with dslite", f"choose one of {', '.join(shipped_profiles())}")
    with editing() as document:
        document.get("profiles", {}).pop(name, None)
        forget_removed(document, name)
    return get_profile(name)


def set_default_profile(name: str) -> None:
    """Use a profile wherever none is named. Raises NotFoundError, ConfigFileError."""
    import tomlkit

    get_profile(name)
    with editing() as document:
        defaults: Any = document.setdefault("defaults", tomlkit.table())
        defaults["profile"] = name


@cache
def shipped_profiles() -> dict[str, Profile]:
    """The profiles that come with dslite, as they came."""
    raw = tomllib.loads((files("dslite.assets") / "profiles.toml").read_text(encoding="utf-8"))
    return {name: parse_profile(name, table, name, shipped=True) for name, table in raw.items()}


def parse_profile(name: str, table: Mapping[str, Any], where: str, *, shipped: bool = False) -> Profile:
    """A profile of a table; `where` begins the message of its ConfigFileError."""
    texts = {key: table[key] for key in _TEXTS if key in table}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise ConfigFileError(f"{where}: {key} is {value!r}; it must be a text")
    if "weights" in texts:
        try:
            check_choice("weights", texts["weights"], WEIGHTS)
        except UsageError as error:
            raise ConfigFileError(f"{where}: {error.message}") from None
    return Profile(name, sampling=_sampling(table, where), shipped=shipped, **texts)


def changed(profile: Profile, values: Mapping[str, Any]) -> Profile:
    """A profile with other values, the user's own from then on; an empty text takes its key away."""
    return Profile(
        profile.name,
        values.get("description", profile.description),
        values.get("system", profile.system) or None,
        values.get("model", profile.model) or None,
        sampling.overlaid(profile.sampling, {key: values[key] for key in sampling.KEYS if key in values}),
        weights=values.get("weights", profile.weights) or None,
    )


def check_name(name: str) -> None:
    """Raises UsageError for a name that could not be typed or seen."""
    if not name or name != name.strip() or not name.isprintable():
        raise UsageError(f"{name!r} is no name for a profile", "use letters, digits, - and _")


def _sampling(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        values = sampling.check_types(table)
        SamplingParams(**values)
    except UsageError as error:
        raise ConfigFileError(f"{where}: {error.message}", error.remedy) from None
    return values


def forget_removed(document: Any, name: str) -> None:
    """Take a name from the list of the removed ones."""
    _set_removed(document, [other for other in _removed(document) if other != name])


def _removed(document: Any) -> Sequence[str]:
    return list(document.get("shipped", {}).get("removed", []))


def _set_removed(document: Any, names: Sequence[str]) -> None:
    import tomlkit

    if names:
        document.setdefault("shipped", tomlkit.table())["removed"] = list(dict.fromkeys(names))
    elif "shipped" in document:
        document["shipped"].pop("removed", None)
        if not document["shipped"]:
            del document["shipped"]


def toml_text(value: Any) -> Any:
    """A value for a document: a text of several lines in the form that people can edit."""
    import tomlkit

    if not isinstance(value, str):
        return value
    plain = "\n" in value and all(char.isprintable() or char == "\n" for char in value)
    return tomlkit.string(value, multiline=plain)
