"""The shape of an answer, as flags and /set name it: a file, or the text itself."""

from pathlib import Path

from dslite.app.terminal.streams import decode, read_file
from dslite.runtime.constraints.constraint import MOST_BYTES, schema_text
from dslite.runtime.errors import UsageError
from dslite.runtime.system.folders import expand_home

_WHAT = {"json_schema": "the JSON schema", "grammar": "the grammar"}


def read_constraint(kind: str, given: str) -> str:
    """The text of a shape: a regular expression as it is given, a grammar's file, a schema's file or its JSON.

    Raises UsageError.
    """
    if kind == "json_schema":
        is_text = given.lstrip()[:1] in ("{", "[") or given.strip() in ("true", "false")
        return schema_text(given if is_text else _file_text(kind, expand_home(given)))
    return given if kind == "regex" else _file_text(kind, expand_home(given))


def _file_text(kind: str, file: Path) -> str:
    data = read_file(file, f"{_WHAT[kind]}'s file", most=lambda: MOST_BYTES)
    if len(data) > MOST_BYTES:
        raise UsageError(
            f"{file} is too large for {_WHAT[kind]}; the most is {MOST_BYTES:,} bytes", "give a smaller one"
        )
    return decode(data, f"{_WHAT[kind]}'s file {file}")
