"""/v1/responses: the `response` object, whole and as the events of a stream."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from dslite.app.server.errors import ApiError
from dslite.app.server.requests import ParsedRequest
from dslite.app.server.responses import ResponseFormatter, new_call_id
from dslite.runtime.events import Candidate, Event, Prefilling, Token
from dslite.runtime.text.tokenizer import Tokenizer


class ResponseObject(ResponseFormatter):
    """/v1/responses: a message, or the call of a function, as the only item of the output."""

    id_prefix = "resp_"
    named_events = True

    def __init__(self, parsed: ParsedRequest, tokenizer: Tokenizer) -> None:
        super().__init__(parsed, tokenizer)
        (self._choice,) = self.choices
        self._item_id = f"{'msg' if parsed.call is None else 'fc'}_{uuid.uuid4().hex}"
        self._call_id = new_call_id()
        self._events = 0

    def opening(self) -> list[dict[str, Any]]:
        begun = self._response("in_progress", [])
        events = [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
            self._event("response.output_item.added", output_index=0, item=self._item("in_progress")),
        ]
        if self.parsed.call is None:
            events.append(self._of_part("response.content_part.added", part=_text_part("", [])))
        return events

    def take(self, number: int, event: Event) -> list[dict[str, Any]]:
        if isinstance(event, Prefilling):
            return []
        delta, tokens = self.add(self._choice, event)
        if self.parsed.call is not None:
            return [self._of_item("response.function_call_arguments.delta", delta=delta)] if delta else []
        if not delta and not tokens:
            return []
        return [self._of_part("response.output_text.delta", delta=delta, logprobs=self._scored(tokens))]

    def closing(self) -> list[dict[str, Any]]:
        return [
            *self._ends_of_item(),
            self._event("response.output_item.done", output_index=0, item=self._item(self._status)),
            self._event(f"response.{self._status}", response=self.answer()),
        ]

    def _ends_of_item(self) -> list[dict[str, Any]]:
        text = self._choice.text
        if self.parsed.call is not None:
            return [self._of_item("response.function_call_arguments.done", arguments=text)]
        scored = self._scored(self._choice.tokens)
        return [
            self._of_part("response.output_text.done", text=text, logprobs=scored),
            self._of_part("response.content_part.done", part=_text_part(text, scored)),
        ]

    def answer(self) -> dict[str, Any]:
        return self._response(self._status, [self._item(self._status)])

    def failure(self, error: ApiError) -> dict[str, Any]:
        """The event of an error: its fields stand in the event for some clients, and in an object for others."""
        inner = error.body["error"]
        return self._event("error", **{name: inner[name] for name in ("code", "message", "param")}, error=inner)

    def usage(self) -> dict[str, Any]:
        counts = super().usage()
        cached = counts["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }

    @property
    def _status(self) -> str:
        return "completed" if self._choice.finish_reason == "stop" else "incomplete"

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        event = {"type": kind, "sequence_number": self._events, **fields}
        self._events += 1
        return event

    def _of_part(self, kind: str, **fields: Any) -> dict[str, Any]:
        """An event of the text, which is the only part of the only item."""
        return self._of_item(kind, content_index=0, **fields)

    def _of_item(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._item_id, output_index=0, **fields)

    def _item(self, status: str) -> dict[str, Any]:
        """The only item: without its content while it is in progress."""
        begun = status == "in_progress"
        text = "" if begun else self._choice.text
        item = {"id": self._item_id, "status": status}
        if (call := self.parsed.call) is not None:
            return {**item, "type": "function_call", "call_id": self._call_id, "name": call.name, "arguments": text}
        content = [] if begun else [_text_part(text, self._scored(self._choice.tokens))]
        return {**item, "type": "message", "role": "assistant", "content": content}

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        cut = status == "incomplete"
        ended = status != "in_progress"
        return {
            "id": self._head["id"],
            "object": "response",
            "created_at": self._head["created"],
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "max_tool_calls": None,
            "metadata": {},
            "model": self._head["model"],
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "truncation": "disabled",
            "usage": self.usage() if ended else None,
            "user": None,
            **self.parsed.repeated,
        }

    def _scored(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        return [{**self._entry(token), "top_logprobs": list(map(self._entry, token.top or ()))} for token in tokens]

    def _entry(self, token: Token | Candidate) -> dict[str, Any]:
        return {"token": self.string(token), "logprob": token.logprob, "bytes": self.bytes_of(token)}


def _text_part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
