"""The functions of a request, and the call of one that its answer is to be.

The model was not trained to decide whether and when to call a function, so it is never left that choice. Where a
request names one function, its answer begins as a call of it and is forced into the schema of its parameters.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from dslite.app.server.errors import ApiError, invalid
from dslite.app.server.json_fields import (
    TEXT,
    Exactly,
    Object,
    ObjectList,
    OneOf,
    RequestField,
    Table,
    fail,
    harmless,
    honoured,
    read_fields,
)
from dslite.runtime.constraints.constraint import Constraint, schema_text
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import UsageError
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.function_calls import FUNCTION_NAME, call_opening, request_text
from dslite.runtime.text.message import Message, with_system_text

_WHY_NOT_AUTO = (
    'the model was not trained to decide when to call a function. Name one in tool_choice, send "required" with one '
    'function in tools, or "none" to answer without them'
)
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_SCHEMA = Exactly(dict, "an object: a JSON schema")
_FUNCTION_TYPE = OneOf(("function",), '"function"')


@dataclass(frozen=True)
class FunctionName:
    """A kind of field."""

    text: str = "at most 64 letters, digits, underscores, dots and hyphens"

    def read(self, value: Any, path: str) -> str:
        if type(value) is not str or not FUNCTION_NAME.fullmatch(value):
            fail(value, path, self.text)
        return value


@dataclass(frozen=True)
class ToolChoice:
    """A kind of field: one of the words none, auto and required, or an object that names a function.

    It is read as a word, or as a NamedFunction.
    """

    named: Table  # of the object
    text: str = '"none", "required", or an object that names one function'

    def read(self, value: Any, path: str) -> "str | NamedFunction":
        if value in ("none", "auto", "required") and type(value) is str:
            return value
        if type(value) is not dict or value.get("type") != "function":
            fail(value, path, self.text)
        fields = read_fields(self.named, value, f"{path}.")
        fields |= fields.get("function", {})
        if "name" not in fields:
            raise invalid(f"{path} names no function", path)
        return NamedFunction(fields["name"])


@dataclass(frozen=True)
class NamedFunction:
    name: str


_DEFINITION = [
    honoured("name", FunctionName(), "the function's name"),
    honoured("description", TEXT, "what it does; part of the prompt"),
    honoured("parameters", _SCHEMA, "the JSON schema that its arguments follow", default="no arguments"),
]
_STRICT = harmless("arguments always follow the schema", "strict")
_TYPE = honoured("type", _FUNCTION_TYPE, "the only kind")
_CHAT_TOOL = Table.of(
    [_TYPE, honoured("function", Object(Table.of(_DEFINITION, _STRICT)), "the function")],
)
_CHAT_CHOICE = Table.of(
    [_TYPE, honoured("function", Object(Table.of([honoured("name", FunctionName(), "the function")])), "which one")]
)
_RESPONSES_TOOL = Table.of(
    [_TYPE, *_DEFINITION],
    _STRICT,
    harmless("all calls are the client's", "allowed_callers", "defer_loading", "async", "output_schema"),
)
_RESPONSES_CHOICE = Table.of([_TYPE, honoured("name", FunctionName(), "the function")])


def tool_fields(*, chat: bool) -> list[RequestField]:
    """The fields of a request with functions, as one of the two routes writes them."""
    tool, choice = (_CHAT_TOOL, _CHAT_CHOICE) if chat else (_RESPONSES_TOOL, _RESPONSES_CHOICE)
    tools = ObjectList(tool, "a list of functions")
    about = "the functions; used where tool_choice says which one is called, see Functions"
    return [
        honoured("tools", tools, about, no_op=([],)),
        honoured("tool_choice", ToolChoice(choice), '"auto" is refused beside tools', default='"auto"'),
        *harmless("there is one call at most", "parallel_tool_calls", "max_tool_calls"),
    ]


@dataclass(frozen=True)
class ForcedCall:
    """The call that an answer is to be. `named`: tool_choice named it, where it did not say "required"."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    named: bool
    where: str  # the field of its parameters

    def constrain(self, params: SamplingParams, check: Callable[[Constraint], None]) -> SamplingParams:
        """Parameters that force an answer into the schema of the arguments. Raises ApiError."""
        if params.constraint is not None:
            raise invalid("a call and another shape of the answer exclude each other: leave one out", "tool_choice")
        try:
            schema = schema_text(dict(self.parameters))
            check(Constraint("json_schema", schema))
        except UsageError as error:
            raise invalid(f"{self.where}: {error.message}", self.where) from None
        return replace(params, json_schema=schema)

    def instruct(self, messages: Sequence[Message]) -> list[Message]:
        """A conversation whose system message defines the function and asks for the call."""
        return with_system_text(messages, request_text(self.name, self.description, dict(self.parameters)))

    def prompt_ids(self, messages: Sequence[Message], template: ChatTemplate, end_tokens: Set[int]) -> list[int]:
        """Token ids up to where the arguments begin."""
        begun = Message("assistant", call_opening(self.name))
        return template.encode_continued([*messages, begun], end_tokens)[0]


def forced_call(values: Mapping[str, Any]) -> ForcedCall | None:
    """The call that a request asks for; None where its answer is a text. Raises ApiError."""
    tools, choice = values.get("tools", []), values.get("tool_choice", "auto")
    if choice == "none" or (choice == "auto" and not tools):
        return None
    if not tools:
        raise invalid("tool_choice asks for a call, and there are no tools", "tool_choice")
    if choice == "auto":
        raise ApiError(400, f'tool_choice "auto" is not supported: {_WHY_NOT_AUTO}', param="tool_choice")
    functions = [_function(tool, f"tools[{place}]") for place, tool in enumerate(tools)]
    if choice == "required":
        if len(functions) > 1:
            raise invalid(
                f'tool_choice "required" needs one function in tools, and there are {len(functions)}: {_WHY_NOT_AUTO}',
                "tool_choice",
            )
        return replace(functions[0], named=False)
    found = next((function for function in functions if function.name == choice.name), None)
    if found is None:
        raise invalid(f"tool_choice names {choice.name}, which is not in tools", "tool_choice")
    return found


def _function(tool: Mapping[str, Any], where: str) -> ForcedCall:
    """A function of `tools`, in the shape of either route. Raises ApiError."""
    if "function" in tool:
        tool, where = tool["function"], f"{where}.function"
    if "name" not in tool:
        raise invalid(f"{where}.name is missing", f"{where}.name")
    parameters = tool.get("parameters") or _NO_PARAMETERS
    if parameters.get("type", "object") != "object":
        raise invalid(f'{where}.parameters.type must be "object": arguments have names', f"{where}.parameters")
    if not parameters.keys() & {"type", "$ref", "anyOf", "allOf", "oneOf"}:
        parameters = {"type": "object", **parameters}
    description = tool.get("description", "")
    return ForcedCall(tool["name"], description, parameters, named=True, where=f"{where}.parameters")
