"""Messages of a request: their fields, and from JSON to the turns of a chat template."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dslite.app.server.errors import invalid
from dslite.app.server.json_fields import (
    TEXT,
    Anything,
    Object,
    ObjectList,
    OneOf,
    Table,
    harmless,
    honoured,
    read_fields,
    refused,
    shown,
)
from dslite.runtime.errors import UsageError
from dslite.runtime.text.function_calls import call_text, result_text
from dslite.runtime.text.message import Message, Role

TEXT_ONLY = "the model reads and writes text"
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MOST_PARTS = 4096

_CALLED = Table.of(
    [
        honoured("name", TEXT, "the function"),
        honoured("arguments", TEXT, "its arguments as JSON", default="`{}`"),
    ]
)
MESSAGE_PART = Table.of(
    [
        honoured("type", Anything(), '"text"; in /v1/responses "input_text" or "output_text"'),
        honoured("text", Anything(), "the text"),
    ],
    harmless("the prefix cache needs no marks", "cache_control", "prompt_cache_breakpoint"),
    harmless("it tells of an earlier answer", "annotations", "logprobs"),
    refused(TEXT_ONLY, "image_url input_audio file video_url audio_url refusal"),
)
_CALL = Table.of(
    [
        honoured("id", TEXT, "by which a message of the role tool names the call"),
        honoured("type", OneOf(("function",), '"function"'), "the only kind"),
        honoured("function", Object(_CALLED), "what is called"),
    ],
    harmless("the order is that of the list", "index"),
)
MESSAGE = Table.of(
    [
        honoured("role", Anything(), "system, developer (the same), user, assistant or tool"),
        honoured("content", Anything(), 'a text, or a list of parts {"type": "text", "text": …}'),
        honoured(
            "tool_calls",
            ObjectList(_CALL, "a list of calls"),
            "of the assistant: written as text, see Functions",
            no_op=([],),
        ),
        honoured("tool_call_id", TEXT, "of the role tool: the call that it is the result of", no_op=("",)),
    ],
    harmless("the chat template has no place for it", "name", "id", "metadata", "cache_control", "annotations"),
    harmless("earlier reasoning is not part of a prompt", "reasoning_content", "reasoning", "reasoning_details"),
    refused("it is the older name of tool_calls", "function_call", {}),
    refused("a refusal has no place in the chat template; write it into content", "refusal", ""),
    refused(TEXT_ONLY, "audio images"),
    refused("use continue_final_message of the request", "prefix", False),
)


class TurnBuilder:
    """The turns of a conversation. Calls of functions and their results become text, as function_calls.py says."""

    def __init__(self) -> None:
        self.turns: list[Message] = []
        self._names: dict[str, str] = {}  # of functions, by the ids of their calls
        self._ends_with_result = False

    def add(self, turn: Message) -> None:
        self.turns.append(turn)
        self._ends_with_result = False

    def add_call(self, call_id: str | None, name: str, arguments: str, where: str) -> None:
        """A call at the end of the assistant's turn. Raises ApiError; `where` names the call in it."""
        text = _written(lambda: call_text(name, arguments), where)
        if call_id is not None:
            self._names[call_id] = name
        if self.turns and self.turns[-1].role == "assistant":
            before = self.turns.pop().content
            text = f"{before}\n{text}" if before else text
        self.add(Message("assistant", text))

    def add_result(self, call_id: str, content: str, where: str) -> None:
        """The result of an earlier call; several in a row are one turn. Raises ApiError."""
        if call_id not in self._names:
            raise invalid(f"{where} is {shown(call_id)}, and no call before it has this id", where)
        text = _written(lambda: result_text(self._names[call_id], content), where)
        if self._ends_with_result:
            text = f"{self.turns.pop().content}\n{text}"
        self.add(Message("user", text))
        self._ends_with_result = True


def _written(write: Callable[[], str], where: str) -> str:
    """The text of a call or a result. Raises ApiError for a name that no function has."""
    try:
        return write()
    except UsageError as error:
        raise invalid(f"{where}: {error.message}; {error.remedy}", where) from None


def parse_messages(values: Mapping[str, Any]) -> list[Message]:
    """The turns of `messages`. Raises ApiError."""
    if "messages" not in values:
        raise invalid("the request has no messages; send a list of at least one message", "messages")
    builder = TurnBuilder()
    for place, item in enumerate(values["messages"]):
        _add_message(builder, item, f"messages[{place}]")
    return builder.turns


def _add_message(builder: TurnBuilder, raw: Mapping[str, Any], where: str) -> None:
    role = raw.get("role")
    for name, owner in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
        if name in raw and role != owner:
            raise invalid(f"{where}.{name} belongs to a message of the role {owner} alone", f"{where}.{name}")
    if role == "tool":
        name = f"{where}.tool_call_id"
        if "tool_call_id" not in raw:
            raise invalid(f"{name} is missing: the id of the call that this is the result of", name)
        builder.add_result(raw["tool_call_id"], parse_content(raw.get("content"), where), name)
        return
    builder.add(parse_message(raw, where))
    for number, call in enumerate(raw.get("tool_calls", ())):
        place = f"{where}.tool_calls[{number}].function"
        called = call.get("function", {})
        if "name" not in called:
            raise invalid(f"{place}.name is missing", f"{place}.name")
        builder.add_call(call.get("id"), called["name"], called.get("arguments", "{}"), f"{place}.name")


def parse_message(raw: Mapping[str, Any], where: str, part_types: Sequence[str] = ("text",)) -> Message:
    """A turn from its fields. `where` names it in errors; `part_types` are those of its parts. Raises ApiError."""
    name = raw.get("role")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if name == "function":
        raise invalid(f"{where}.role is the older name of the role tool: use tool_calls and tool", f"{where}.role")
    if role is None:
        raise invalid(f"{where}.role is {shown(name)}; it must be system, user or assistant", f"{where}.role")
    return Message(role, parse_content(raw.get("content", "" if role == "assistant" else None), where, part_types))


def parse_content(content: Any, where: str, part_types: Sequence[str] = ("text",)) -> str:
    """The text of a message's `content`, or of its parts. Raises ApiError."""
    if isinstance(content, list) and len(content) > _MOST_PARTS:
        raise invalid(f"{where}.content has {len(content)} parts; the most is {_MOST_PARTS}", f"{where}.content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{place}]", part_types) for place, part in enumerate(content))
    if not isinstance(content, str):
        raise invalid(f"{where}.content must be a text, or a list of text parts", f"{where}.content")
    return content


def _part(raw: Any, where: str, types: Sequence[str]) -> str:
    if not isinstance(raw, dict) or raw.get("type") not in types:
        raise invalid(f'{where} must be {{"type": "{types[0]}", "text": …}}: the model reads text alone', where)
    values = read_fields(MESSAGE_PART, raw, f"{where}.")
    if not isinstance(values.get("text"), str):
        raise invalid(f"{where}.text must be a text", f"{where}.text")
    text: str = values["text"]
    return text
