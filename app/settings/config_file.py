"""config.toml: read cheaply, edited so that comments and unknown keys survive, and never overwritten when broken.

A value that is not sound is left out with a warning, and the others apply (config_schema.py). A change reads, changes
and replaces the file under a lock, so that two processes that change it at once keep both changes.

[defaults]                    # for every answer; `profile` names the default profile
profile = "coder"
temperature = 0.2

[profiles.brief]
system = "Answer in one sentence."

[chat]                        # the terminal application
theme = "dark"
when_full = "forget"          # at the context's limit: ask, forget (the oldest turns), summary (in a new chat), stop
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dslite.app.errors import ConfigFileError
from dslite.app.terminal import console
from dslite.app.terminal.streams import without_mark
from dslite.runtime.atomic_file import write_file
from dslite.runtime.errors import UsageError
from dslite.runtime.locked_file import LockTimeoutError, file_lock
from dslite.runtime.paths import config_dir

if TYPE_CHECKING:
    from tomlkit import TOMLDocument


@dataclass(frozen=True)
class Config:
    """The sound values of config.toml, and what is wrong with the others."""

    path: Path
    values: Mapping[str, Any]
    problems: tuple[str, ...] = ()

    def table(self, *names: str) -> Mapping[str, Any]:
        """A table, empty where the file has none. Raises ConfigFileError where it is something else."""
        found: Any = self.values
        for place, name in enumerate(names):
            found = found.get(name, {})
            if not isinstance(found, dict):
                raise ConfigFileError(
                    f"{self.path}: {'.'.join(names[: place + 1])} is {found!r}; it must be a table",
                    f"write it as [{'.'.join(names[: place + 1])}]",
                )
        table: Mapping[str, Any] = found
        return table

    def text(self, table: str, key: str) -> str | None:
        """A text of a table, None where there is none. Raises ConfigFileError."""
        value = self.table(table).get(key)
        if value is not None and not isinstance(value, str):
            raise ConfigFileError(f"{self.path}, [{table}]: {key} is {value!r}; it must be a text")
        return value


def config_path() -> Path:
    return config_dir() / "config.toml"


def read_config(path: Path | None = None, report: Callable[[str], None] = console.warn_once) -> Config:
    """Read config.toml; a missing one counts as empty. Values that are not sound go to `report`, a line each.

    Raises ConfigFileError, with line and column for what is no TOML.
    """
    from dslite.app.settings.config_schema import clean_config

    path = path or config_path()
    raw = _parse(path, read_text(path))
    if not raw:
        return Config(path, {})
    values, faults = clean_config(raw)
    problems = tuple(f"{path}, {fault}" for fault in faults)
    for problem in problems:
        report(problem)
    return Config(path, values, problems)


def _parse(path: Path, text: str) -> dict[str, Any]:
    return parse_toml(text, str(path), "correct it; dslite leaves it as it is")


def parse_toml(text: str, name: str, remedy: str) -> dict[str, Any]:
    """The values of a TOML text. Raises ConfigFileError with line and column."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        lines = text.rstrip("\n").split("\n")
        fault = str(error).replace("at end of document", f"at line {len(lines)}, column {len(lines[-1]) + 1}")
        raise ConfigFileError(f"{name} is not valid TOML: {fault}", remedy) from None


@contextmanager
def editing(path: Path | None = None) -> Iterator["TOMLDocument"]:
    """The file's document, to be changed; written whole when the block ends, under a lock. Raises ConfigFileError."""
    import tomlkit

    from dslite.app.settings.config_schema import not_tables

    path = path or config_path()
    try:
        with file_lock(path):
            before = read_text(path)
            if names := not_tables(_parse(path, before)):  # as everywhere else
                raise ConfigFileError(f"{path}: {names[0]} must be a table", f"write it as [{names[0]}]")
            document = tomlkit.parse(before)
            yield document
            if (text := tomlkit.dumps(document)) != before:
                text = re.sub(r"(\r?\n)\s*\Z", r"\1", text)  # no blank lines at the end
                tomllib.loads(text)  # never write what could not be read again
                write_atomically(path, text)
    except LockTimeoutError:
        raise ConfigFileError(f"another dslite is changing {path}", "try again") from None


def read_text(path: Path) -> str:
    """The text of the file, without a mark of byte order; empty where there is no file. Raises ConfigFileError."""
    try:
        return without_mark(path.read_bytes(), str(path)).decode("utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigFileError(f"{path} cannot be read: {error.strerror}", "check its permissions") from None
    except UsageError as error:
        raise ConfigFileError(error.message, error.remedy) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        raise ConfigFileError(
            f"{path} is not valid UTF-8 (at line {line}, column {column})", "correct it; dslite leaves it as it is"
        ) from None


def write_atomically(path: Path, text: str) -> None:
    """Replace a file: a reader, or a crash at any time, sees the old text or the new one. Raises ConfigFileError."""
    try:
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode("utf-8"), mode=0o600)
    except OSError as error:
        raise ConfigFileError(f"{path} cannot be written: {error.strerror}", "check the folder and the disk") from None
