"""Answers of an OpenAI-compatible server, told as the engine tells its own.

What such a server does not say stays unknown: token ids, slots, what its cache holds. Its text, its log-probabilities
and its counts come through.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from threading import Event as Flag
from typing import Any

from dslite.runtime.chat.http import Endpoint
from dslite.runtime.chat.protocol import ChatBackend, ModelStats
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import Candidate, ChatEvent, Done, Event, FinishReason, Prefilling, Timing, Token
from dslite.runtime.text.chat_template import Message

# What dslite serve tells while it reads a prompt, in a comment that other clients skip.
_READING = re.compile(r": reading (\d+) of (\d+), (\d+) cached")


@dataclass(frozen=True)
class RemoteRequest:
    """What to ask a server: messages for its chat, or a text to complete. `logprobs` and `echo` as in Request."""

    params: SamplingParams
    messages: Sequence[Message] = ()
    text: str | None = None
    bos: bool = True
    logprobs: int | None = None
    echo: bool = False
    continue_final_message: bool = False


class RemoteModel:
    """One model of a server."""

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        self.endpoint = endpoint
        self.name = name

    def generate(self, request: RemoteRequest, cancel: Flag | None = None) -> Iterator[Event]:
        """Answer a request: Prefilling where the server tells, Token events, one Done at the end.

        Raises ModelUnavailableError, ContextFullError, ConnectionLostError (after the tokens that came), DsliteError.
        """
        cancel = cancel or Flag()
        path, body = self._body(request)
        draft = _RemoteDraft(request)
        for line in self.endpoint.events(path, body, cancel):
            if line.startswith(":"):
                yield from draft.reading(line)
            elif line.startswith("data:"):
                data = line[5:].strip()
                if data == "[DONE]":
                    break
                yield from draft.take(self._parse(data))
        if cancel.is_set():
            draft.finish_reason = draft.finish_reason or "interrupted"
        if draft.finish_reason is None:
            raise self.endpoint.lost()
        yield draft.done()

    def _parse(self, data: str) -> dict[str, Any]:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            raise DsliteError(f"{self.endpoint.host} sends what is not JSON", "check --endpoint")
        if error := chunk.get("error"):
            message = error.get("message") if isinstance(error, dict) else error
            raise DsliteError(f"{self.endpoint.host} broke off the answer: {message}", "what came is kept; ask again")
        return chunk

    def _body(self, request: RemoteRequest) -> tuple[str, dict[str, Any]]:
        body = {"model": self.name, "stream": True, "stream_options": {"include_usage": True}, **_sampling(request)}
        if request.text is None:
            body["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
            if request.continue_final_message:
                body |= {"continue_final_message": True, "add_generation_prompt": False}
            if request.logprobs is not None:
                body |= {"logprobs": True, "top_logprobs": request.logprobs}
            return "/chat/completions", body
        body |= {"prompt": request.text, "logprobs": request.logprobs, "echo": request.echo}
        if not request.bos:
            body["add_special_tokens"] = False
        return "/completions", {key: value for key, value in body.items() if value is not None}


def _sampling(request: RemoteRequest) -> dict[str, Any]:
    """OpenAI's names; the others, which vLLM, SGLang, llama.cpp and dslite know, only where they are wanted."""
    params = request.params
    body: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p}
    if params.max_tokens is not None:
        body["max_tokens"] = params.max_tokens
    if params.stop:
        body["stop"] = list(params.stop)
    if params.seed is not None:
        body["seed"] = params.seed
    for name, off in (("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1.0)):
        if (value := getattr(params, name)) != off:
            body[name] = value
    return body


@dataclass
class _RemoteDraft:
    """An answer as its chunks come."""

    request: RemoteRequest
    finish_reason: FinishReason | None = None
    text: list[str] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    first: float = 0.0

    def reading(self, line: str) -> Iterator[Prefilling]:
        if found := _READING.match(line):
            done, total, cached = map(int, found.groups())
            yield Prefilling(done, total, cached, time.perf_counter() - self.started)

    def take(self, chunk: Mapping[str, Any]) -> Iterator[Token]:
        """The tokens of a chunk: one for each log-probability, else one for its text."""
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return
        choice = choices[0]
        content = (choice.get("delta") or {}).get("content") if self.request.text is None else choice.get("text")
        delta = content if isinstance(content, str) else ""
        if delta and not self.text and self.request.text is None and not self.request.continue_final_message:
            delta = delta.removeprefix(" ")  # what the template leaves before an answer, where a server leaves it in
        scored = self._scored(choice.get("logprobs"))
        if (delta or scored) and not self.first:
            self.first = time.perf_counter()
        if delta:
            self.text.append(delta)
        for place, token in enumerate(scored):
            yield Token(None, token.text, delta if place == 0 else "", token.logprob, token.top, token.in_prompt)
        if delta and not scored:
            yield Token(None, delta, delta)
        if reason := choice.get("finish_reason"):
            self.finish_reason = self._finish(reason)

    def _finish(self, reason: str) -> FinishReason:
        if reason != "length":
            return "stop"
        bounded = self.request.params.max_tokens is not None or self.request.text is not None
        return "length" if bounded else "context"

    def _scored(self, raw: Any) -> list[Token]:
        """Tokens with log-probabilities, in the shape of chat or of completions."""
        if not isinstance(raw, dict):
            return []
        if isinstance(raw.get("content"), list):
            return [_chat_token(entry) for entry in raw["content"]]
        names, values = raw.get("tokens") or [], raw.get("token_logprobs") or []
        tops, offsets = raw.get("top_logprobs") or [None] * len(names), raw.get("text_offset") or [0] * len(names)
        prompt = len(self.request.text or "") if self.request.echo else 0
        return [
            Token(None, name, "", value, _candidates((top or {}).items()), in_prompt=offset < prompt)
            for name, value, top, offset in zip(names, values, tops, offsets, strict=False)
        ]

    def done(self) -> Done:
        assert self.finish_reason is not None
        now = time.perf_counter()
        details = self.usage.get("prompt_tokens_details")
        return Done(
            finish_reason=self.finish_reason,
            text="".join(self.text),
            token_ids=(),
            prompt_tokens=_count(self.usage, "prompt_tokens"),
            cached_tokens=_count(details, "cached_tokens"),
            counted=_count(self.usage, "completion_tokens"),
            timing=Timing(
                prefill_s=(self.first or now) - self.started,
                decode_s=now - self.first if self.first else 0.0,
                ttft_s=(self.first or now) - self.started,
            ),
        )


def _chat_token(entry: Mapping[str, Any]) -> Token:
    best = [(other["token"], other["logprob"]) for other in entry.get("top_logprobs") or []]
    return Token(None, entry["token"], "", entry["logprob"], _candidates(best))


def _candidates(pairs: Any) -> tuple[Candidate, ...]:
    return tuple(Candidate(None, text, logprob) for text, logprob in pairs)


def _count(raw: Any, name: str) -> int:
    value = raw.get(name) if isinstance(raw, Mapping) else None
    return value if isinstance(value, int) else 0


class RemoteChatBackend(ChatBackend):
    """A ChatBackend whose model runs on a server."""

    def __init__(self, model: RemoteModel) -> None:
        self._model = model

    def reply(
        self, messages: Sequence[Message], params: SamplingParams, cancel: Flag, *, continue_final_message: bool = False
    ) -> Iterator[ChatEvent]:
        """Answer, or go on with the last message. What the server refuses is raised here, as an engine would."""
        events = self._model.generate(
            RemoteRequest(params, messages, continue_final_message=continue_final_message), cancel
        )
        return chain([next(events)], events)

    def trim_to_fit(self, messages: Sequence[Message], *, continue_final_message: bool = False) -> list[Message]:
        """Leave out the older half of the turns: how many tokens they have is for the server to know."""
        kept = list(messages)
        first = 1 if kept and kept[0].role == "system" else 0
        questions = [place for place, message in enumerate(kept) if message.role == "user"]
        if len(questions) > 1:
            del kept[first : questions[len(questions) // 2]]
        return kept

    def stats(self) -> ModelStats:
        """The name and the place; the rest is unknown."""
        return ModelStats(name=self._model.name, device=self._model.endpoint.host, context=0)
