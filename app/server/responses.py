"""Responses in OpenAI's shapes, whole and in chunks of a stream."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dslite.app.server.errors import ApiError
from dslite.app.server.requests import ParsedRequest
from dslite.runtime.events import Candidate, Done, Event, Prefilling, Token
from dslite.runtime.text.message import AnswerSpacing
from dslite.runtime.text.tokenizer import Tokenizer

_FINISH = {"stop": "stop", "length": "length", "context": "length", "interrupted": "length"}


def token_string(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's own text; one that is part of a character is written as its bytes, as OpenAI does."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode("utf-8") or tokenizer.token_text(token_id)
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def new_call_id() -> str:
    """An id by which the result of a call names it."""
    return f"call_{uuid.uuid4().hex[:24]}"


@dataclass
class ChoiceState:
    """One choice while its events come. `offset`: characters of the text in front of the next token."""

    spacing: AnswerSpacing
    text: str = ""
    offset: int = 0
    tokens: list[Token] = field(default_factory=list)
    done: Done | None = None

    def take(self, event: Token | Done) -> str:
        """Add an event; return its text, without the space that a template leaves before an answer."""
        event = self.spacing.strip(event)
        self.text += event.delta
        if isinstance(event, Done):
            self.done = event
        return event.delta

    @property
    def finish_reason(self) -> str | None:
        return None if self.done is None else _FINISH[self.done.finish_reason]


class ResponseFormatter:
    """Builds the responses of one route. A subclass defines a choice, whole and in a chunk."""

    whole_object = ""
    chunk_object = ""
    id_prefix = ""
    named_events = False  # a stream's events have their type as their name, and none of them is [DONE]

    def __init__(self, parsed: ParsedRequest, tokenizer: Tokenizer) -> None:
        self.parsed = parsed
        self.choices = [ChoiceState(AnswerSpacing(parsed.spaces)) for _ in parsed.requests]
        self._tokenizer = tokenizer
        self._head = {"id": self.id_prefix + uuid.uuid4().hex, "created": int(time.time()), "model": parsed.model}

    def take(self, number: int, event: Event) -> list[dict[str, Any]]:
        """Add an event to its choice; return the chunks for it."""
        if isinstance(event, Prefilling):
            return []
        choice = self.choices[number]
        delta, tokens = self.add(choice, event)
        logprobs = self.logprobs(choice, tokens) if tokens else None
        chunks = [self._chunk(number, self.chunk_choice(delta, logprobs))] if delta or logprobs else []
        if choice.done is not None:
            chunks.append(self._chunk(number, {**self.chunk_choice("", None), "finish_reason": self.ending(choice)}))
        return chunks

    def add(self, choice: ChoiceState, event: Token | Done) -> tuple[str, list[Token]]:
        """Add an event to a choice; return its text and its tokens with log-probabilities, the end token included."""
        token = event if isinstance(event, Token) else event.end
        tokens = [token] if token is not None and token.top is not None else []
        delta = choice.take(event)
        choice.tokens += tokens
        return delta, tokens

    def failure(self, error: ApiError) -> dict[str, Any]:
        """The last chunk of a stream that an error ends."""
        return error.body

    def opening(self) -> list[dict[str, Any]]:
        """Chunks before the first token."""
        return []

    def closing(self) -> list[dict[str, Any]]:
        """Chunks after the last token: the usage, if the request has include_usage."""
        if not self.parsed.include_usage:
            return []
        return [{**self._head, "object": self.chunk_object, "choices": [], "usage": self.usage()}]

    def answer(self) -> dict[str, Any]:
        """The whole response."""
        choices = [
            {"index": number, "finish_reason": self.ending(choice), **self.whole_choice(choice)}
            for number, choice in enumerate(self.choices)
        ]
        return {**self._head, "object": self.whole_object, "choices": choices, "usage": self.usage()}

    def ending(self, choice: ChoiceState) -> str | None:
        """The finish_reason of a choice."""
        return choice.finish_reason

    def usage(self) -> dict[str, Any]:
        """Tokens of all choices; a prompt counts once, however many choices it has."""
        done = [choice.done for choice in self.choices if choice.done is not None]
        first = done[:: self.parsed.n]
        prompt = sum(end.prompt_tokens for end in first)
        made = sum(len(end.token_ids) for end in done)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in first)},
        }

    def whole_choice(self, choice: ChoiceState) -> dict[str, Any]:
        """The fields of a choice in a whole response, beside index and finish_reason."""
        raise NotImplementedError

    def chunk_choice(self, delta: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """The fields of a choice in a chunk, beside index and finish_reason."""
        raise NotImplementedError

    def logprobs(self, choice: ChoiceState, tokens: Sequence[Token]) -> dict[str, Any]:
        """Log-probabilities of tokens that follow those of a choice."""
        raise NotImplementedError

    def _chunk(self, number: int, content: dict[str, Any]) -> dict[str, Any]:
        chunk: dict[str, Any] = {**self._head, "object": self.chunk_object}
        if self.parsed.include_usage:
            chunk["usage"] = None
        return {**chunk, "choices": [{"index": number, "finish_reason": None, **content}]}

    def string(self, token: Token | Candidate) -> str:
        return token_string(self._tokenizer, _id(token))

    def bytes_of(self, token: Token | Candidate) -> list[int]:
        """The bytes that a token stands for; none for a special token."""
        return list(self._tokenizer.token_bytes(_id(token)))


def _id(token: Token | Candidate) -> int:
    assert token.id is not None  # the engine of this process always sets it
    return token.id


class ChatResponse(ResponseFormatter):
    """/v1/chat/completions."""

    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl-"

    def opening(self) -> list[dict[str, Any]]:
        return [
            self._chunk(number, {"delta": {"role": "assistant", **self._begun()}, "logprobs": None})
            for number in range(len(self.choices))
        ]

    def _begun(self) -> dict[str, Any]:
        if self.parsed.call is None:
            return {"content": ""}
        return {"content": None, "tool_calls": [{"index": 0, **self._call("")}]}

    def _call(self, arguments: str) -> dict[str, Any]:
        assert self.parsed.call is not None
        function = {"name": self.parsed.call.name, "arguments": arguments}
        return {"id": new_call_id(), "type": "function", "function": function}

    def ending(self, choice: ChoiceState) -> str | None:
        """As OpenAI: a call that tool_choice named ends with stop, one that is required with tool_calls."""
        call = self.parsed.call
        required = call is not None and not call.named
        return "tool_calls" if required and choice.finish_reason == "stop" else choice.finish_reason

    def whole_choice(self, choice: ChoiceState) -> dict[str, Any]:
        asked = self.parsed.requests[0].logprobs is not None
        said: dict[str, Any] = {"content": choice.text}
        if self.parsed.call is not None:
            said = {"content": None, "tool_calls": [self._call(choice.text)]}
        return {
            "message": {"role": "assistant", **said, "refusal": None},
            "logprobs": self.logprobs(choice, choice.tokens) if asked else None,
        }

    def chunk_choice(self, delta: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        said: dict[str, Any] = {"content": delta} if delta or logprobs else {}
        if said and self.parsed.call is not None:
            said = {"tool_calls": [{"index": 0, "function": {"arguments": delta}}]}
        return {"delta": said, "logprobs": logprobs}

    def logprobs(self, choice: ChoiceState, tokens: Sequence[Token]) -> dict[str, Any]:
        return {"content": [self._entry(token) for token in tokens], "refusal": None}

    def _entry(self, token: Token) -> dict[str, Any]:
        return {
            **self._scored_token(token),
            "top_logprobs": [self._scored_token(candidate) for candidate in token.top or ()],
        }

    def _scored_token(self, token: Token | Candidate) -> dict[str, Any]:
        return {"token": self.string(token), "logprob": token.logprob, "bytes": self.bytes_of(token) or None}


class CompletionResponse(ResponseFormatter):
    """/v1/completions."""

    whole_object = "text_completion"
    chunk_object = "text_completion"
    id_prefix = "cmpl-"

    def whole_choice(self, choice: ChoiceState) -> dict[str, Any]:
        if self.parsed.requests[0].logprobs is None:
            return {"text": choice.text, "logprobs": None}
        choice.offset = 0
        return {"text": choice.text, "logprobs": self.logprobs(choice, choice.tokens)}

    def chunk_choice(self, delta: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"text": delta, "logprobs": logprobs}

    def logprobs(self, choice: ChoiceState, tokens: Sequence[Token]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(choice.offset)
            choice.offset += len(token.text)
        return {
            "tokens": [self.string(token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """The best tokens and this one, by their text; None for the first of a prompt, which has no probability."""
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for candidate in token.top or ():
            top.setdefault(self.string(candidate), candidate.logprob)
        top.setdefault(self.string(token), token.logprob)
        return top
