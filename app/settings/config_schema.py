"""The tables and keys of config.toml: what each value must be. A bad value is left out and named; the others apply."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dslite.app.settings import sampling
from dslite.app.tui.style.keys import KEYS
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine_options import WEIGHTS
from dslite.runtime.errors import UsageError
from dslite.runtime.units import parse_time

Check = Callable[[str, Any], str | None]  # of a key and its value: what is wrong, None where nothing is

WHEN_FULL = ("ask", "forget", "summary", "stop")
THEMES = ("dark", "light", "ansi", "ansi-light", "colour-blind", "colour-blind-light")
TEXTUAL_THEMES = tuple(
    "ansi-dark ansi-light atom-one-dark atom-one-light catppuccin-frappe catppuccin-latte catppuccin-macchiato "
    "catppuccin-mocha dracula flexoki gruvbox monokai nord rose-pine rose-pine-dawn rose-pine-moon solarized-dark "
    "solarized-light textual-dark textual-light tokyo-night".split()
)


def clean_config(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The sound values of a file, and what is wrong with the others: a line each, which names table and key."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, table in raw.items():
        if name not in _TABLES:
            problems.append(f"{_shown(name, table)} is unknown{_similar(name, _TABLES)}")
        elif not isinstance(table, dict):
            problems.append(f"{name} is {table!r}; it must be a table: write it as [{name}]")
        elif name == "profiles":
            values[name] = dict(_profiles(table, problems))
        else:
            values[name] = dict(_sound(f"[{name}]", table, _TABLES[name], problems))
    return values, problems


def not_tables(raw: Mapping[str, Any]) -> list[str]:
    """Names of tables, and of profiles, that are something else: such a file cannot be edited."""
    profiles = raw.get("profiles", {})
    inner = profiles.items() if isinstance(profiles, dict) else ()
    return [name for name in _TABLES if not isinstance(raw.get(name, {}), dict)] + [
        f"profiles.{name}" for name, table in inner if not isinstance(table, dict)
    ]


def _profiles(tables: Mapping[str, Any], problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, table in tables.items():
        if isinstance(table, dict):
            yield name, dict(_sound(f"[profiles.{name}]", table, _PROFILE, problems))
        else:
            problems.append(f"profiles.{name} is {table!r}; it must be a table: write it as [profiles.{name}]")


def _sound(
    where: str, table: Mapping[str, Any], checks: Mapping[str, Check], problems: list[str]
) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        check = checks.get(key, checks.get("*"))
        if check is None:
            problems.append(f"{where}: {key} is unknown{_similar(key, checks)}")
        elif (fault := check(key, value)) is not None:
            problems.append(f"{where}: {fault}")
        else:
            yield key, value


def _similar(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _shown(name: str, value: Any) -> str:
    return f"the table [{name}]" if isinstance(value, dict) else name


def _text(key: str, value: Any) -> str | None:
    return None if isinstance(value, str) else f"{key} is {value!r}; it must be a text"


def _switch(key: str, value: Any) -> str | None:
    return None if isinstance(value, bool) else f"{key} is {value!r}; it must be true or false"


def _one_of(*names: str) -> Check:
    def check(key: str, value: Any) -> str | None:
        return None if value in names else f"{key} is {value!r}; it must be one of {', '.join(map(repr, names))}"

    return check


def _theme(key: str, value: Any) -> str | None:
    return None if value in TEXTUAL_THEMES else _one_of(*THEMES)(key, value)


def _list_of(kind: type, what: str) -> Check:
    def check(key: str, value: Any) -> str | None:
        sound = isinstance(value, list) and all(type(entry) is kind for entry in value)
        return None if sound else f"{key} is {value!r}; it must be a list of {what}"

    return check


def _sampling_value(key: str, value: Any) -> str | None:
    try:
        SamplingParams(**sampling.check_types({key: value}))
    except UsageError as error:
        return error.message
    return None


def _duration(key: str, value: Any) -> str | None:
    try:
        parse_time(str(value) if type(value) is int else value)
    except (UsageError, TypeError):
        return f"{key} is {value!r}; it must be a time such as '10m'"
    return None


def _key(name: str, value: Any) -> str | None:
    if name not in _KEY_NAMES:
        return f"{name} is unknown{_similar(name, _KEY_NAMES)}"
    if isinstance(value, str) and re.fullmatch(r"[^\s,]+(, ?[^\s,]+)*", value):
        return None
    return f"{name} is {value!r}; it must be a key such as 'f6'"


_KEY_NAMES: dict[str, None] = dict.fromkeys(key.name for key in KEYS)
_ANSWER: dict[str, Check] = {
    **dict.fromkeys(sampling.KEYS, _sampling_value),
    "system": _text,
    "model": _text,
    "weights": _one_of(*WEIGHTS),
}
_PROFILE: dict[str, Check] = {**_ANSWER, "description": _text}
_TABLES: dict[str, dict[str, Check]] = {
    "defaults": {**_ANSWER, "profile": _text},
    "profiles": _PROFILE,
    "chat": {
        "theme": _theme,
        "mouse": _switch,
        "when_full": _one_of(*WHEN_FULL),
        "auto_title": _switch,
        "bell": _switch,
    },
    "keys": {"*": _key},
    "engine": {"keep_alive": _duration},
    "snippets": {"*": _text},
    "shipped": {"removed": _list_of(str, "names")},
}
