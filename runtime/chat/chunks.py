"""The chunks of a streamed answer, of any shape that servers send.

A chunk is one JSON object: an entry of OpenAI's stream, or the whole answer where a server does not stream. Fields may
be missing, null, or of an unusual type: a delta that is a text, content that is a list of parts.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dslite.runtime.events import Candidate, Token

DONE = "[DONE]"
_PARTS = ("text", "content", "value", "refusal", "thinking", "reasoning")


@dataclass(frozen=True)
class AnswerChunk:
    """What one chunk adds to an answer."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tools: tuple[str, ...] = ()  # names of the functions that the model wants to call
    finish_reason: str | None = None
    logprobs: Any = None


def parse_data(data: str) -> list[dict[str, Any] | str]:
    """The chunks of an event's data: objects, and DONE. Raises ValueError for what is neither.

    Some servers leave out the empty line between events: then each line is a chunk of its own.
    """
    try:
        return [_parse(data)]
    except ValueError:
        lines = [line for line in data.split("\n") if line.strip()]
        if len(lines) < 2:
            raise
        return [_parse(line) for line in lines]


def _parse(text: str) -> dict[str, Any] | str:
    if text.strip() == DONE:
        return DONE
    try:
        chunk = json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(chunk, dict):
        raise ValueError("the JSON is no object")
    return chunk


def read_chunk(chunk: Mapping[str, Any]) -> AnswerChunk:
    """What a chunk says, with unusual shapes made plain."""
    choices = chunk.get("choices")
    listed = choices if isinstance(choices, list) else [choices]
    choice = next((entry for entry in listed if entry is not None), None)
    if not isinstance(choice, dict):
        return AnswerChunk(text=_text(choice))
    part = choice.get("delta") or choice.get("message") or {}
    if not isinstance(part, dict):
        part = {"content": part}
    finish = choice.get("finish_reason")
    return AnswerChunk(
        text=_text(part.get("content")) or _text(choice.get("text")),
        reasoning=next(filter(None, (_text(part.get(key)) for key in ("reasoning_content", "reasoning"))), ""),
        refusal=_text(part.get("refusal")),
        tools=tuple(_tools(part.get("tool_calls"))) + tuple(_tools([part.get("function_call")])),
        finish_reason=finish if isinstance(finish, str) else None,
        logprobs=choice.get("logprobs"),
    )


def _text(raw: Any, depth: int = 0) -> str:
    """A text, the joined texts of a list of parts, or the text of one part."""
    if isinstance(raw, str):
        return raw
    if depth < 4 and isinstance(raw, list):
        return "".join(_text(part, depth + 1) for part in raw)
    if depth < 4 and isinstance(raw, dict):
        return next(filter(None, (_text(raw.get(key), depth + 1) for key in _PARTS)), "")
    return ""


def _tools(raw: Any) -> Iterator[str]:
    for call in raw if isinstance(raw, list) else ():
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if isinstance(name, str) and name:
            yield name


def scored_tokens(raw: Any, prompt_length: int) -> list[Token]:
    """Tokens with log-probabilities, in the shape of chats or of completions; entries that are neither are left out.

    Of completions, those before `prompt_length` characters belong to the echoed prompt.
    """
    if not isinstance(raw, dict):
        return []
    if isinstance(entries := raw.get("content"), list):
        return [
            Token(None, entry["token"], "", _number(entry.get("logprob")), _candidates(_pairs(entry)))
            for entry in entries
            if isinstance(entry, dict) and isinstance(entry.get("token"), str)
        ]
    names, values, tops, offsets = (
        value if isinstance(value := raw.get(key), list) else []
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    )
    tokens = []
    for place, name in enumerate(names):
        top, offset = _at(tops, place), _at(offsets, place)
        tokens.append(
            Token(
                None,
                name if isinstance(name, str) else "",
                "",
                _number(_at(values, place)),
                _candidates(top.items() if isinstance(top, dict) else ()),
                in_prompt=isinstance(offset, int) and offset < prompt_length,
            )
        )
    return tokens


def _at(values: list[Any], place: int) -> Any:
    return values[place] if place < len(values) else None


def _pairs(entry: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    others = entry.get("top_logprobs")
    for other in others if isinstance(others, list) else ():
        if isinstance(other, dict):
            yield other.get("token"), other.get("logprob")


def _candidates(pairs: Any) -> tuple[Candidate, ...]:
    known = ((text, _number(logprob)) for text, logprob in pairs)
    return tuple(
        Candidate(None, text, logprob) for text, logprob in known if isinstance(text, str) and logprob is not None
    )


def _number(raw: Any) -> float | None:
    try:
        return float(raw) if isinstance(raw, int | float) and not isinstance(raw, bool) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def count_of(raw: Any, name: str) -> int:
    """A count of a usage object; 0 where it is missing or no count."""
    value = raw.get(name) if isinstance(raw, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def join_surrogates(held: str, text: str) -> tuple[str, str]:
    """A text that UTF-8 can carry, and what to hold until the next: half of a pair that JSON cut in two."""
    text = held + text
    held = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
    text = text[: len(text) - len(held)]
    if text.isascii():
        return text, held
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), held
