"""Messages of a request: their fields, and from JSON to the turns of a chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from dslite.app.server.errors import invalid
from dslite.app.server.json_fields import Anything, Table, harmless, honoured, read_fields, refused, shown
from dslite.runtime.text.message import Message, Role

TEXT_ONLY = "the model reads and writes text"
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MOST_PARTS = 4096

MESSAGE_PART = Table.of(
    [
        honoured("type", Anything(), '"text"; in /v1/responses "input_text" or "output_text"'),
        honoured("text", Anything(), "the text"),
    ],
    harmless("the prefix cache needs no marks", "cache_control", "prompt_cache_breakpoint"),
    harmless("it tells of an earlier answer", "annotations", "logprobs"),
    refused(TEXT_ONLY, "image_url input_audio file video_url audio_url refusal"),
)
MESSAGE = Table.of(
    [
        honoured("role", Anything(), "system, developer (the same), user or assistant"),
        honoured("content", Anything(), 'a text, or a list of parts {"type": "text", "text": …}'),
    ],
    harmless("the chat template has no place for it", "name", "id", "metadata", "cache_control", "annotations"),
    harmless("earlier reasoning is not part of a prompt", "reasoning_content", "reasoning", "reasoning_details"),
    refused(
        "calls of functions in a history cannot be rendered yet, and without them the turn would be empty; "
        "leave the turn out, or write the call into content as text",
        "tool_calls function_call",
        [],
        {},
    ),
    refused("it belongs to a message of the role tool, which cannot be rendered yet", "tool_call_id", ""),
    refused("a refusal has no place in the chat template; write it into content", "refusal", ""),
    refused(TEXT_ONLY, "audio images"),
    refused("use continue_final_message of the request", "prefix", False),
)


def parse_messages(values: Mapping[str, Any]) -> list[Message]:
    if "messages" not in values:
        raise invalid("the request has no messages; send a list of at least one message", "messages")
    return [parse_message(item, f"messages[{place}]") for place, item in enumerate(values["messages"])]


def parse_message(raw: Mapping[str, Any], where: str, part_types: Sequence[str] = ("text",)) -> Message:
    """A turn from its fields. `where` names it in errors; `part_types` are those of its parts. Raises ApiError."""
    name = raw.get("role")
    if isinstance(name, str) and name in ("tool", "function"):
        raise invalid(
            f"{where}.role is {name!r}: results of functions cannot be rendered yet; write the result into a message "
            "of the user as text",
            f"{where}.role",
        )
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise invalid(f"{where}.role is {shown(name)}; it must be system, user or assistant", f"{where}.role")
    content = raw.get("content", "" if role == "assistant" else None)
    if isinstance(content, list) and len(content) > _MOST_PARTS:
        raise invalid(f"{where}.content has {len(content)} parts; the most is {_MOST_PARTS}", f"{where}.content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{where}.content[{place}]", part_types) for place, part in enumerate(content))
    if not isinstance(content, str):
        raise invalid(f"{where}.content must be a text, or a list of text parts", f"{where}.content")
    return Message(role, content)


def _part(raw: Any, where: str, types: Sequence[str]) -> str:
    if not isinstance(raw, dict) or raw.get("type") not in types:
        raise invalid(f'{where} must be {{"type": "{types[0]}", "text": …}}: the model reads text alone', where)
    values = read_fields(MESSAGE_PART, raw, f"{where}.")
    if not isinstance(values.get("text"), str):
        raise invalid(f"{where}.text must be a text", f"{where}.text")
    text: str = values["text"]
    return text
