"""The shape that an answer must have, as a user gives it. Imports nothing that computes: a wrong one is refused early.

The limits keep a hostile schema cheap: what it costs to compile is bounded by the library's own limits (compiler.py),
and grows with the size of the text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dslite.runtime.errors import UsageError
from dslite.runtime.nesting import is_deeper
from dslite.runtime.text.message import Message, with_system_text

Kind = Literal["json_schema", "regex", "grammar"]
KINDS: tuple[Kind, ...] = ("json_schema", "regex", "grammar")
MOST_BYTES = 128 * 1024
MOST_DEPTH = 64  # of objects and lists in a schema
ANY_OBJECT = '{"type":"object"}'

_TOLD: dict[Kind, str] = {
    "json_schema": "Answer with JSON that follows this JSON schema, and with nothing else: ",
    "regex": "Answer with a text that matches this regular expression, and with nothing else: ",
    "grammar": "Answer with a text that follows this Lark grammar, and with nothing else:\n",
}


@dataclass(frozen=True)
class Constraint:
    """The kind of shape, and its text: of a schema its JSON."""

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        """Raises UsageError for what is too large, and for a schema that is no JSON object."""
        size = len(self.text.encode("utf-8", "surrogatepass"))
        if size > MOST_BYTES:
            raise UsageError(f"{self.kind} has {size:,} bytes; the most is {MOST_BYTES:,}", "give a smaller one")
        if not self.text.strip():
            raise UsageError(f"{self.kind} is empty", "give one, or leave it out")
        if self.kind == "json_schema":
            parse_schema(self.text)

    @property
    def instruction(self) -> str:
        """The sentence that tells the model of the shape."""
        if self.kind == "json_schema" and json.loads(self.text) == json.loads(ANY_OBJECT):
            return "Answer with a JSON object, and with nothing else."
        return _TOLD[self.kind] + self.text


def with_instruction(messages: Sequence[Message], constraint: Constraint | None) -> list[Message]:
    """A conversation whose system message also tells the model what shape its answers have."""
    return list(messages) if constraint is None else with_system_text(messages, constraint.instruction)


def schema_text(schema: object) -> str:
    """A JSON schema, given as an object or as its JSON, in one spelling. Raises UsageError."""
    value = parse_schema(schema) if isinstance(schema, str) else schema
    if not isinstance(value, dict | bool):
        raise UsageError(
            f"json_schema is {_cut(value)}; it must be a JSON schema: an object", 'write it as {"type": "object", …}'
        )
    _check_depth(value)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def parse_schema(text: str) -> Any:
    """The schema of its JSON text. Raises UsageError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"json_schema is not valid JSON: {error}", "check it with a JSON tool") from None
    if not isinstance(value, dict | bool):
        raise UsageError("json_schema is JSON, but not a schema: it must be an object", 'as in {"type": "object"}')
    _check_depth(value)
    return value


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_depth(value: Any) -> None:
    """Raise UsageError where objects and lists lie too deep in each other."""
    if is_deeper(value, MOST_DEPTH):
        raise UsageError(
            f"json_schema is nested more than {MOST_DEPTH} deep", "use $defs and $ref, or a flatter schema"
        )
