"""The shape that a request forces its answers into, by each of the names that clients send it under."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dslite.app.server.errors import invalid
from dslite.app.server.json_fields import (
    BOOLEAN,
    TEXT,
    Anything,
    Object,
    RequestField,
    Table,
    TextList,
    harmless,
    honoured,
    refused,
    shown,
)
from dslite.runtime.constraints.constraint import ANY_OBJECT, Constraint, Kind, schema_text
from dslite.runtime.errors import UsageError

_MOST_CHOICES, _CHOICE_LENGTH = 256, 1024
_SCHEMA = Anything("a JSON schema, as an object or its JSON")
_CHOICES = TextList(_MOST_CHOICES, _CHOICE_LENGTH)
_ONE = "one of the fields that give the answer a shape"

_NAMED_SCHEMA = Table.of(
    [
        honoured("name", TEXT, "has no effect"),
        honoured("description", TEXT, "has no effect"),
        honoured("schema", _SCHEMA, "the JSON schema"),
        honoured("strict", BOOLEAN, "always so"),
    ]
)
_FORMAT = Table.of(
    [
        honoured("type", TEXT, "text, json_object or json_schema"),
        honoured("json_schema", Object(_NAMED_SCHEMA), "of the type json_schema"),
    ]
)
TEXT_FORMAT = Table.of([honoured("type", TEXT, "text, json_object or json_schema"), *_NAMED_SCHEMA.fields.values()])
_STRUCTURED = Table.of(
    [
        honoured("json", _SCHEMA, "the answer is JSON of this schema"),
        honoured("regex", TEXT, "the answer matches this"),
        honoured("choice", _CHOICES, "the answer is one of these texts"),
        honoured("grammar", TEXT, "the answer follows this Lark grammar"),
        honoured("json_object", BOOLEAN, "the answer is a JSON object"),
    ],
    harmless(
        "white space is bounded, and nothing else may stand in the answer",
        *"disable_fallback disable_any_whitespace disable_additional_properties whitespace_pattern".split(),
    ),
    refused("it is not supported", "structural_tag"),
)

CONSTRAINT_FIELDS: list[RequestField] = [
    honoured(
        "response_format",
        Object(_FORMAT),
        '{"type": "json_object"}, or {"type": "json_schema", "json_schema": {"name", "schema"}}',
        no_op=({"type": "text"},),
    ),
    honoured("structured_outputs", Object(_STRUCTURED), "vLLM's: an object with json, regex, choice or grammar"),
    honoured("guided_json", _SCHEMA, "vLLM's older name of structured_outputs.json", no_op=("", {})),
    honoured("json_schema", _SCHEMA, "llama.cpp's name of it", no_op=("", {}), stands_for="guided_json"),
    honoured("guided_regex", TEXT, "vLLM's older name of structured_outputs.regex", no_op=("",)),
    honoured("regex", TEXT, "SGLang's name of it", no_op=("",), stands_for="guided_regex"),
    honoured("guided_grammar", TEXT, "vLLM's older name of structured_outputs.grammar: Lark", no_op=("",)),
    honoured("grammar", TEXT, "llama.cpp's name of it; Lark, not GBNF", no_op=("",), stands_for="guided_grammar"),
    honoured("guided_choice", _CHOICES, "vLLM's older name of structured_outputs.choice", no_op=([],)),
]


def read_constraint(
    values: Mapping[str, Any], check: Callable[[Constraint], None], format_name: str = "response_format"
) -> dict[str, str]:
    """The shape of an answer as a key of SamplingParams; empty where none is asked for.

    `format_name` is what the route calls response_format. Raises ApiError, also for what `check` refuses.
    """
    asked = list(_asked(values, format_name))
    if len(asked) > 1:
        raise invalid(f"{asked[0][0]} and {asked[1][0]} exclude each other: send {_ONE}", asked[1][0])
    for param, kind, given in asked:
        try:
            text = schema_text(given) if kind == "json_schema" else given
            check(Constraint(kind, text))
        except UsageError as error:
            raise invalid(f"{param}: {error.message}", param) from None
        return {kind: text}
    return {}


def _asked(values: Mapping[str, Any], format_name: str) -> Iterator[tuple[str, Kind, Any]]:
    """(the client's name, our kind, value) of each shape that is asked for."""
    if (form := _response_format(values.get("response_format"), format_name)) is not None:
        yield format_name, "json_schema", form
    structured = values.get("structured_outputs", {})
    if structured.get("json_object"):
        yield "structured_outputs.json_object", "json_schema", ANY_OBJECT
    for prefix, group in (("structured_outputs.", structured), ("guided_", values)):
        names = {key.removeprefix(prefix): value for key, value in group.items()}
        kinds: tuple[tuple[str, Kind], ...] = (("json", "json_schema"), ("regex", "regex"), ("grammar", "grammar"))
        for name, kind in kinds:
            if names.get(name) is not None:
                yield f"{prefix}{name}", kind, names[name]
        if choices := names.get("choice"):
            yield f"{prefix}choice", "regex", "|".join(map(_escaped, choices))


def _response_format(form: Mapping[str, Any] | None, name: str) -> Any:
    """The schema of OpenAI's field; None for plain text. Raises ApiError."""
    if form is None or form.get("type", "text") == "text":
        return None
    if form["type"] == "json_object":
        return ANY_OBJECT
    if form["type"] != "json_schema":
        raise invalid(
            f"{name}.type is {shown(form['type'])}; it must be text, json_object or json_schema", f"{name}.type"
        )
    schema = form.get("json_schema", {}).get("schema")
    if schema is None:
        raise invalid(f"{name} has the type json_schema, and no schema", name)
    return schema


def _escaped(text: str) -> str:
    """A text as a regular expression: characters outside of words by their number."""
    return re.sub(r"[^0-9A-Za-z_]", lambda found: f"\\x{{{ord(found.group()):x}}}", text)
