"""A model of an OpenAI-compatible server, whose answers come as the events of an engine.

What such a server does not say stays unknown: token ids, slots, what its cache holds. Its text, its log-probabilities
and its counts come through. A request that the server cannot take as it is (overloaded, or an option refused) is sent
again where that helps.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from threading import Event as Flag
from typing import Any

from dslite.runtime.chat.chunks import DONE, count_of, join_surrogates, parse_data, read_chunk, scored_tokens
from dslite.runtime.chat.http import ConnectionLostError, Endpoint
from dslite.runtime.chat.protocol import ChatBackend, ModelStats
from dslite.runtime.chat.server_errors import (
    OPTIONAL_FIELDS,
    ErrorKind,
    ServerError,
    ServerRefusal,
    error_in_stream,
    read_error,
)
from dslite.runtime.chat.sse import Comment, ServerSentEvent, StreamItem
from dslite.runtime.constraints.constraint import Constraint, parse_schema, with_instruction
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import DsliteError, ModelUnavailableError
from dslite.runtime.events import ChatEvent, Done, FinishReason, Notice, Prefilling, Thinking, Timing, Token, Waiting
from dslite.runtime.text.message import Message

MAX_TRIES = 6  # of a request to a server that is overloaded
MAX_WAIT_S = 60.0  # that a server may ask for between two tries
_CARDS_S = 2.0  # for the context of the model, which is wanted but not needed

# What dslite serve tells while it reads a prompt, in a comment that other clients skip.
_READING = re.compile(r" ?reading (\d{1,15}) of (\d{1,15}), (\d{1,15}) cached")
_LENGTH_REASONS = ("length", "max_tokens", "model_length", "max_output_tokens")
_BROKEN_REASONS = ("abort", "error")
_CHECK_URL = "check --endpoint: the address of most servers ends with /v1"


@dataclass(frozen=True)
class RemoteRequest:
    """What to ask a server: messages for its chat, or a text or token ids to complete.

    `logprobs` and `echo` as in Request; token ids are not echoed.
    """

    params: SamplingParams
    messages: Sequence[Message] = ()
    text: str | None = None
    token_ids: Sequence[int] | None = None
    bos: bool = True
    parse_special: bool = False
    logprobs: int | None = None
    echo: bool = False
    continue_final_message: bool = False

    @property
    def is_chat(self) -> bool:
        return self.text is None and self.token_ids is None


class RemoteModel:
    """One model of a server. Requests may come from several threads.

    `context` in tokens is what the list of models said, None where that is not known yet.
    """

    def __init__(self, endpoint: Endpoint, name: str, context: int | None = None) -> None:
        self.endpoint = endpoint
        self.name = name
        self._context = context
        self._asked_context = context is not None
        self._lock = threading.Lock()
        self._left_out: set[str] = set()  # request fields that the server refuses
        self._max_tokens_name = "max_tokens"

    def generate(self, request: RemoteRequest, cancel: Flag | None = None) -> Iterator[ChatEvent]:
        """Answer a request: events while the server works, Token events, one Done at the end.

        Raises ModelUnavailableError, ContextFullError, ConnectionLostError (after the tokens that came), DsliteError.
        """
        cancel = cancel or Flag()
        answer = _RemoteAnswer(request)
        try:
            for item in self._request(request, cancel):
                if isinstance(item, Waiting | Notice):
                    yield item
                elif isinstance(item, Comment):
                    yield from answer.take_comment(item.text)
                else:
                    for chunk in self._chunks(item):
                        yield from answer.take(chunk)
                if answer.ended:
                    break
        except ConnectionLostError:
            if answer.finish_reason is None:
                raise
        if cancel.is_set():
            answer.finish_reason = answer.finish_reason or "interrupted"
        if answer.finish_reason is None and not answer.ended:
            if not answer.begun:
                raise DsliteError(f"{self.endpoint.host} ended the response without an answer", _CHECK_URL)
            raise self.endpoint.lost()
        yield from self._end(answer)

    def context(self) -> int | None:
        """Tokens of the context, from the server's list of models; asked for once, None where it does not say."""
        with self._lock:
            if not self._asked_context:
                self._asked_context = True
                try:
                    cards = {card.name: card.context for card in self.endpoint.model_cards(_CARDS_S)}
                    self._context = self._context or cards.get(self.name)
                except DsliteError:
                    pass  # a server without a list still answers
            return self._context

    def _request(self, request: RemoteRequest, cancel: Flag) -> Iterator[StreamItem | Waiting | Notice]:
        """The events of a response; tries again where the server is overloaded or refuses an option."""
        tries, renamed = 0, False
        while not cancel.is_set():
            path, body = self._body(request)
            try:
                yield from self.endpoint.post(path, body, cancel)
                return
            except ServerRefusal as refusal:
                error = refusal.error
            self._context = error.context or self._context
            tries += error.kind is ErrorKind.OVERLOADED
            seconds = error.retry_after
            if error.kind is ErrorKind.REFUSED_OPTION and not renamed and self._rename_max_tokens(error, body):
                renamed = True
            elif error.kind is ErrorKind.REFUSED_OPTION and (refused := self._leave_out(error, body)) is not None:
                if refused not in ("stream", "stream_options"):
                    yield Notice(f"{self.endpoint.host} does not take {refused}: it uses its own value")
            elif error.kind is ErrorKind.OVERLOADED and seconds is not None and tries < MAX_TRIES:
                if seconds > MAX_WAIT_S:
                    raise error.to_exception(self.endpoint.host)
                yield Waiting(f"{self.endpoint.host} is busy: trying again in {seconds:,.0f} s", seconds)
                cancel.wait(seconds)
            else:
                raise error.to_exception(self.endpoint.host)

    def _rename_max_tokens(self, error: ServerError, body: Mapping[str, Any]) -> bool:
        """Send the limit under its other name from now on, where the error names that one."""
        names = ("max_tokens", "max_completion_tokens")
        wanted = next((name for name in names if name in error.fields and name not in body), None)
        if wanted is None or not any(name in body for name in names):
            return False
        self._max_tokens_name = wanted
        return True

    def _leave_out(self, error: ServerError, body: Mapping[str, Any]) -> str | None:
        """Send one field that the error names no more; return it. None where no optional field is named."""
        refused = next((name for name in OPTIONAL_FIELDS if name in error.fields and name in body), None)
        if refused is not None:
            self._left_out.add(refused)
        return refused

    def _chunks(self, event: ServerSentEvent) -> Iterator[Mapping[str, Any] | str]:
        """The chunks of an event. Raises DsliteError for an error, and for what is no chunk."""
        host = self.endpoint.host
        try:
            chunks = parse_data(event.data)
        except ValueError:
            if event.type == "body":
                what = "a web page" if event.data.lstrip()[:1] == "<" else "a text"
                raise ModelUnavailableError(
                    f"{host} sends {what} that is no answer of an OpenAI-compatible server", _CHECK_URL
                ) from None
            if event.type == "error":
                raise DsliteError(f"{host} broke off the answer: {event.data[:300]}", "ask again") from None
            raise DsliteError(f"{host} sends what is not JSON", "check --endpoint") from None
        for chunk in chunks:
            if isinstance(chunk, dict) and (error := error_in_stream(chunk, event.type)) is not None:
                self._context = error.context or self._context
                raise error.to_exception(host)
            yield chunk
        if event.type == "body":
            if not any(isinstance(chunk, dict) and isinstance(chunk.get("choices"), list) for chunk in chunks):
                said = read_error(200, event.data).message
                raise ModelUnavailableError(f"{host} sends JSON that is no answer: {said}", _CHECK_URL)
            yield DONE

    def _end(self, answer: "_RemoteAnswer") -> Iterator[ChatEvent]:
        """The last events of an answer. Raises DsliteError where the server gave it up."""
        if answer.server_reason in _BROKEN_REASONS:
            raise DsliteError(
                f"{self.endpoint.host} gave up the answer (finish_reason {answer.server_reason})",
                "what came is kept; ask again",
            )
        reason = answer.finish_reason or "stop"
        if answer.server_reason in _LENGTH_REASONS and not answer.bounded:
            used, context = answer.used_tokens, self.context()
            if context is not None and used >= context - 1:
                reason = "context"
            else:
                yield Notice(
                    f"the answer was cut at a limit of {self.endpoint.host} (finish_reason {answer.server_reason}): "
                    "--max-tokens may set another"
                )
        if reason != "interrupted":
            yield from answer.notices(self.endpoint.host)
        yield answer.done(reason)

    def _body(self, request: RemoteRequest) -> tuple[str, dict[str, Any]]:
        body = {"model": self.name, "stream": True, "stream_options": {"include_usage": True}, **_sampling(request)}
        if "max_tokens" in body:
            body[self._max_tokens_name] = body.pop("max_tokens")
        body = {key: value for key, value in body.items() if key not in self._left_out}
        if request.is_chat:
            body["messages"] = [{"role": message.role, "content": message.content} for message in request.messages]
            if request.continue_final_message:
                body |= {"continue_final_message": True, "add_generation_prompt": False}
            if request.logprobs is not None:
                body |= {"logprobs": True, "top_logprobs": request.logprobs}
            return "/chat/completions", body
        prompt = request.text if request.token_ids is None else list(request.token_ids)
        body |= {"prompt": prompt, "logprobs": request.logprobs, "echo": request.echo}
        if not request.bos:
            body["add_special_tokens"] = False
        if request.parse_special:
            body["parse_special"] = True
        return "/completions", {key: value for key, value in body.items() if value is not None}


def _sampling(request: RemoteRequest) -> dict[str, Any]:
    """OpenAI's names; the others, which vLLM, SGLang, llama.cpp and dslite know, only where they are wanted."""
    params = request.params
    body: dict[str, Any] = {"temperature": params.temperature, "top_p": params.top_p}
    if params.max_tokens is not None:
        body["max_tokens"] = params.max_tokens
    if params.stop:
        body["stop"] = list(params.stop)
    if params.stop_token_ids:
        body["stop_token_ids"] = list(params.stop_token_ids)
    if params.seed is not None:
        body["seed"] = params.seed
    body |= _constraint(params.constraint, chat=request.is_chat)
    for name, off in (("top_k", 0), ("min_p", 0.0), ("repetition_penalty", 1.0)):
        if (value := getattr(params, name)) != off:
            body[name] = value
    return body


def _constraint(constraint: Constraint | None, *, chat: bool) -> dict[str, Any]:
    """OpenAI's field for a schema of a chat's answer, vLLM's for all else; dslite serve knows both."""
    if constraint is None:
        return {}
    if constraint.kind != "json_schema":
        return {"structured_outputs": {constraint.kind: constraint.text}}
    schema = parse_schema(constraint.text)
    if chat:
        named = {"name": "answer", "schema": schema, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    return {"structured_outputs": {"json": schema}}


@dataclass
class _RemoteAnswer:
    """An answer as its chunks come."""

    request: RemoteRequest
    finish_reason: FinishReason | None = None
    server_reason: str = ""
    begun: bool = False  # a chunk has come
    ended: bool = False  # the server said that nothing follows
    text: list[str] = field(default_factory=list)
    held: str = ""  # half of a surrogate pair
    reasoning_tokens: int = 0
    refused: bool = False
    tools: list[str] = field(default_factory=list)
    usage: Mapping[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    first: float = 0.0

    @property
    def bounded(self) -> bool:
        """Whether the request itself limits the answer."""
        return self.request.params.max_tokens is not None or not self.request.is_chat

    @property
    def used_tokens(self) -> int:
        return count_of(self.usage, "prompt_tokens") + count_of(self.usage, "completion_tokens")

    def take_comment(self, comment: str) -> Iterator[Prefilling]:
        if found := _READING.match(comment):
            done, total, cached = map(int, found.groups())
            yield Prefilling(done, total, cached, time.perf_counter() - self.started)

    def take(self, raw: Mapping[str, Any] | str) -> Iterator[Token | Thinking]:
        """The tokens of a chunk: one for each log-probability, else one for its text."""
        self.begun = True
        if isinstance(raw, str):
            self.ended = True
            return
        if isinstance(usage := raw.get("usage"), dict):
            self.usage = usage
        chunk = read_chunk(raw)
        self.tools += chunk.tools
        self.refused |= bool(chunk.refusal)
        if chunk.reasoning:
            self.reasoning_tokens += 1
            yield Thinking(join_surrogates("", chunk.reasoning)[0], self.reasoning_tokens)
        delta, self.held = join_surrogates(self.held, chunk.text or chunk.refusal)
        yield from self._tokens(delta, chunk.logprobs)
        if chunk.finish_reason:
            self.server_reason = chunk.finish_reason
            self.finish_reason = "length" if chunk.finish_reason in _LENGTH_REASONS else "stop"

    def _tokens(self, delta: str, logprobs: Any) -> Iterator[Token]:
        if delta and not self.text and self.request.is_chat and not self.request.continue_final_message:
            delta = delta.removeprefix(" ")  # what the template leaves before an answer, where a server leaves it in
        scored = scored_tokens(logprobs, len(self.request.text or "") if self.request.echo else 0)
        if (delta or scored) and not self.first:
            self.first = time.perf_counter()
        if delta:
            self.text.append(delta)
        for place, token in enumerate(scored):
            yield Token(None, token.text, delta if place == 0 else "", token.logprob, token.top, token.in_prompt)
        if delta and not scored:
            yield Token(None, delta, delta)

    def notices(self, host: str) -> Iterator[Notice]:
        """What the text alone does not show."""
        if self.refused:
            yield Notice(f"the model of {host} refuses to answer")
        if self.server_reason == "content_filter":
            yield Notice(f"{host} cut the answer with its content filter")
        if self.tools:
            names = ", ".join(dict.fromkeys(self.tools))
            yield Notice(f"the model asks to call {names}, which dslite does not do")
        if self.reasoning_tokens and not self.text:
            yield Notice(f"the answer is empty: only reasoning came from {host}")

    def done(self, reason: FinishReason) -> Done:
        """The end of the answer."""
        now = time.perf_counter()
        rest = "\ufffd" if self.held else ""
        return Done(
            finish_reason=reason,
            text="".join(self.text) + rest,
            delta=rest,
            token_ids=(),
            prompt_tokens=count_of(self.usage, "prompt_tokens"),
            cached_tokens=count_of(self.usage.get("prompt_tokens_details"), "cached_tokens")
            or count_of(self.usage, "prompt_cache_hit_tokens"),  # DeepSeek's own name, and once its only one
            counted=count_of(self.usage, "completion_tokens"),
            timing=Timing(
                prefill_s=(self.first or now) - self.started,
                decode_s=now - self.first if self.first else 0.0,
                ttft_s=(self.first or now) - self.started,
            ),
        )


class RemoteChatBackend(ChatBackend):
    """A ChatBackend whose model runs on a server."""

    def __init__(self, model: RemoteModel) -> None:
        self._model = model

    def reply(
        self,
        messages: Sequence[Message],
        params: SamplingParams,
        cancel: Flag,
        *,
        continue_final_message: bool = False,
        on_prefill: Callable[[Prefilling], None] | None = None,
    ) -> Iterator[ChatEvent]:
        """Answer, or continue the last message. Raises here what the server refuses, as an engine would.

        `on_prefill` is not called: a server reports its progress as events.
        """
        told = with_instruction(messages, params.constraint)
        request = RemoteRequest(params, told, continue_final_message=continue_final_message)
        events = self._model.generate(request, cancel)
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
        """The name, the place and the context, where the server says it; the rest is unknown."""
        model = self._model
        return ModelStats(name=model.name, device=model.endpoint.host, context=model.context() or 0)
