"""A profile as text, for people to read and to edit."""

from typing import Any

from dslite.app.settings.config_file import config_path, editing, parse_toml, read_config, read_text
from dslite.app.settings.profiles import forget_removed, get_profile, parse_profile, toml_text


def profile_text(name: str) -> str:
    """The lines of a profile's table, its comments included. Raises NotFoundError, ConfigFileError."""
    import tomlkit

    profile = get_profile(name)
    if name in read_config().table("profiles"):
        table: Any = tomlkit.parse(read_text(config_path()))["profiles"]
        return str(table[name].as_string()).strip("\n") + "\n"
    document = tomlkit.document()
    for key, value in profile.to_dict().items():
        document[key] = toml_text(value)
    return tomlkit.dumps(document) or '# system = "…"\n'


def save_profile_text(name: str, text: str) -> None:
    """Make these lines the profile's table. Raises ConfigFileError, with config.toml as it was."""
    import tomlkit

    values = parse_toml(text, "the profile", "edit it again; nothing was changed")
    parse_profile(name, values, f"the profile {name}")
    table = tomlkit.table()
    for key, item in tomlkit.parse(text).body:
        table.append(key, item)
    with editing() as document:
        profiles: Any = document.setdefault("profiles", tomlkit.table(is_super_table=True))
        profiles[name] = table
        forget_removed(document, name)
