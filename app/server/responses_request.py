"""/v1/responses: the fields of its body, and from JSON to a request for the engine.

OpenAI's newer route. Text alone: what it keeps on a server (earlier responses, conversations, stored prompts) and tools
that the server itself would run are not here.
"""

from collections.abc import Mapping
from typing import Any

from dslite.app.server.errors import context_exceeded, invalid
from dslite.app.server.json_fields import (
    BOOLEAN,
    TEXT,
    Anything,
    Integer,
    NoOp,
    Object,
    Table,
    harmless,
    honoured,
    read_fields,
    refused,
    shown,
)
from dslite.app.server.limits import Limits
from dslite.app.server.messages import TurnBuilder, parse_content, parse_message
from dslite.app.server.request_fields import (
    CHANGES_NOTHING,
    MOST_LOGPROBS,
    REFUSED,
    answer_fields,
)
from dslite.app.server.requests import (
    ParsedRequest,
    ServedModel,
    call_request,
    chat_template,
    parsed_request,
    sampling_params,
)
from dslite.app.server.structured_output import TEXT_FORMAT
from dslite.app.server.tools import forced_call, tool_fields
from dslite.runtime.constraints.constraint import with_instruction
from dslite.runtime.engine.request import Request
from dslite.runtime.text.message import Message

_STORED = "the server stores no responses: send the whole conversation as input"
_LOGPROBS = "message.output_text.logprobs"
_INCLUDABLE = (_LOGPROBS, "reasoning.encrypted_content")  # an answer has no reasoning to encrypt
_NOT_THINKING = NoOp(
    'an object whose `effort` is null, "none" or "minimal", with or without `summary`',
    lambda value: (
        isinstance(value, dict)
        and {*value} <= {"effort", "summary"}
        and value.get("effort") in (None, "none", "minimal")
    ),
)
_PART_TYPES = ("input_text", "output_text", "text")
_OWN_NAMES = ("max_tokens", "n_predict", "n", "stream", "stream_options")  # of the other routes

_TEXT = Table.of(
    [
        honoured(
            "format",
            Object(TEXT_FORMAT),
            '{"type": "json_object"}, or {"type": "json_schema", "name", "schema"}',
            no_op=({"type": "text"},),
        )
    ],
    refused("ask for it in the prompt", "verbosity", "medium"),
)
INPUT_CALL = Table.of(
    [
        honoured("type", Anything(), '"function_call"'),
        honoured("call_id", TEXT, "by which its output names the call"),
        honoured("name", TEXT, "the function"),
        honoured("arguments", TEXT, "its arguments as JSON", default="`{}`"),
    ],
    harmless("it has no effect on the prompt", "id", "status", "caller", "namespace", "async"),
)
INPUT_OUTPUT = Table.of(
    [
        honoured("type", Anything(), '"function_call_output"'),
        honoured("call_id", TEXT, "the call that it is the output of"),
        honoured("output", Anything(), "a text, or a list of text parts"),
    ],
    harmless("it has no effect on the prompt", "id", "status", "caller", "name", "namespace"),
)
INPUT_MESSAGE = Table.of(
    [
        honoured("type", Anything(), 'of an item: "message", as without it'),
        honoured("role", Anything(), "system, developer (the same), user or assistant"),
        honoured("content", Anything(), 'a text, or a list of parts {"type": "input_text", "text": …}'),
    ],
    harmless("the chat template has no place for it", "id", "status", "phase", "name"),
)


def response_fields(limits: Limits) -> Table:
    """The body of /v1/responses."""
    return Table.of(
        [
            honoured("input", Anything(), "a text, or a list of messages"),
            honoured("instructions", TEXT, "a system message in front of the input"),
            honoured("max_output_tokens", Integer(-1), "most tokens of an answer; -1: what the context leaves"),
        ],
        [field for field in answer_fields(limits) if field.name not in _OWN_NAMES],
        [
            honoured("stream", BOOLEAN, "server-sent events, named by their types", default="false"),
            honoured("top_logprobs", Integer(0, MOST_LOGPROBS), "the best tokens at each place", default="0"),
            honoured("include", Anything(), f"a list; {_LOGPROBS} adds log-probabilities"),
            honoured("text", Object(_TEXT), "of the text"),
        ],
        tool_fields(chat=False),
        CHANGES_NOTHING,
        harmless("events are never padded, and the usage always comes", "stream_options"),
        harmless("of an answer in the background", "background_options"),
        REFUSED,
        refused(_STORED, "previous_response_id conversation"),
        refused("the server stores no prompts: send instructions and input", "prompt"),
        refused("an answer is computed while its client waits", "background", False),
        refused("a conversation is never cut in silence", "context_management", []),
        refused("the model reads and writes text", "image", {}),
        refused("there are no such programs", "access_programs", {}),
        refused("the model does not reason before it answers", "reasoning", _NOT_THINKING),
        refused("the model does not reason before it answers", "reasoning_effort", "none", "minimal"),
        refused("use max_output_tokens", "max_tokens max_completion_tokens n_predict"),
        refused("use input", "messages", []),
        refused("use text.format", "response_format", {"type": "text"}),
        refused("one request has one answer", "n best_of", 1),
        refused("use include and top_logprobs", "logprobs", False),
        refused("use text.verbosity", "verbosity", "medium"),
    )


def parse_response(raw: dict[str, Any], served: ServedModel, limits: Limits) -> ParsedRequest:
    """A body of /v1/responses. Raises ApiError, UsageError, ContextFullError."""
    items = raw.get("input")
    if isinstance(items, list) and len(items) > served.engine.context:  # an item has at least a token
        raise context_exceeded(served.engine.context, f"at least {len(items)}")
    values = read_fields(response_fields(limits), raw)
    template = chat_template(values, served)
    call = forced_call(values)
    form = values.get("text", {}).get("format")
    if form is not None:
        values["response_format"] = {"type": form.get("type", "text"), "json_schema": form}
    params = sampling_params(values, served, values.get("max_output_tokens"), "text.format")
    messages = _messages(values)
    if call is not None:
        request = Request((), params, _logprobs(values))
        return call_request(values, served, limits, call, messages, request, _repeated(raw, values, request))
    messages = with_instruction(messages, params.constraint)
    served.check_length([message.content for message in messages])
    ids = template.encode(messages)
    served.check_room(ids, params.max_tokens)
    request = Request(ids, params, _logprobs(values), spaces=1)
    return parsed_request(values, served, limits, [request], spaces=1, repeated=_repeated(raw, values, request))


def _messages(values: Mapping[str, Any]) -> list[Message]:
    """The turns of `instructions` and `input`."""
    items = values.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise invalid(f"input is {shown(items)}; it must be a text, or a list of at least one message", "input")
    builder = TurnBuilder()
    if "instructions" in values:
        builder.add(Message("system", values["instructions"]))
    before = len(builder.turns)
    for place, item in enumerate(items):
        _add_item(builder, item, f"input[{place}]")
    if len(builder.turns) == before:
        raise invalid("input has no message", "input")
    return builder.turns


def _add_item(builder: TurnBuilder, item: Any, where: str) -> None:
    """Add the turn of an item. Earlier reasoning is left out: it is not part of a prompt."""
    if not isinstance(item, dict):
        raise invalid(f"{where} is {shown(item)}; it must be an object", where)
    match item.get("type", "message"):
        case "reasoning":
            return
        case "message":
            builder.add(parse_message(read_fields(INPUT_MESSAGE, item, f"{where}."), where, _PART_TYPES))
        case "function_call":
            _add_call(builder, read_fields(INPUT_CALL, item, f"{where}."), where)
        case "function_call_output":
            output = read_fields(INPUT_OUTPUT, item, f"{where}.")
            content = parse_content(output.get("output"), where, _PART_TYPES)
            builder.add_result(output.get("call_id", ""), content, f"{where}.call_id")
        case "item_reference":
            hint = "in the AI SDK: providerOptions.openai.store false"
            raise invalid(f"{where} refers to an item, and {_STORED} ({hint})", where)
        case kind:
            raise invalid(
                f"{where}.type is {shown(kind)}; it must be message, function_call or function_call_output",
                f"{where}.type",
            )


def _add_call(builder: TurnBuilder, call: Mapping[str, Any], where: str) -> None:
    if "name" not in call:
        raise invalid(f"{where}.name is missing", f"{where}.name")
    builder.add_call(call.get("call_id"), call["name"], call.get("arguments", "{}"), f"{where}.name")


def _logprobs(values: Mapping[str, Any]) -> int | None:
    """How many of the best tokens come with each; None where no log-probabilities are asked for."""
    included = values.get("include", [])
    if not isinstance(included, list):
        raise invalid(f"include is {shown(included)}; it must be a list of texts", "include")
    for name in included:
        if name not in _INCLUDABLE:
            raise invalid(f"include has {shown(name)}, which no answer has; it may have {_LOGPROBS}", "include")
    best: int | None = values.get("top_logprobs")
    return best or 0 if best or _LOGPROBS in included else None


def _repeated(raw: Mapping[str, Any], values: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """The settings that a response tells of its request."""
    params = request.params
    return {
        "instructions": values.get("instructions"),
        "max_output_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_logprobs": request.logprobs or 0,
        "tool_choice": raw.get("tool_choice") or "auto",
        "tools": raw.get("tools") or [],
        "text": {"format": values.get("text", {}).get("format", {"type": "text"}), "verbosity": "medium"},
    }
