"""From a client's JSON to requests for the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dslite.app.server.errors import ApiError, invalid
from dslite.app.server.json_fields import JsonFields
from dslite.app.server.limits import Limits
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.sequence import Request
from dslite.runtime.text.chat_template import ChatTemplate, Message, Role

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
COMPLETION_TOKENS = 16  # what OpenAI's completions give when nobody says how many
_MOST_LOGPROBS = 20
_LONGEST_TOKEN = 128  # characters; DeepSeek's vocabulary has runs of spaces of that length
_SEEDS = 2**63


@dataclass(frozen=True)
class ServedModel:
    """The model behind the API. `names` are those that it answers to, its own first; `template` None: no chat."""

    engine: Engine
    names: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    template: ChatTemplate | None = None


@dataclass(frozen=True)
class ParsedRequest:
    """What a client asks, understood. `requests` are the choices: `n` for each prompt, in order."""

    model: str
    requests: Sequence[Request]
    n: int
    stream: bool
    include_usage: bool
    spaces: int  # at the beginning of an answer that are no part of it


def parse_chat(raw: dict[str, Any], served: ServedModel, limits: Limits) -> ParsedRequest:
    """A body of /v1/chat/completions. Raises ApiError, UsageError, ContextFullError."""
    fields = JsonFields(raw)
    model = _model(fields, served)
    if served.template is None:
        raise invalid(f"{model} has no chat template; ask /v1/completions", "model")
    fields.only("tools", [], why="the model calls no functions")
    fields.only("functions", [], why="the model calls no functions")
    fields.only("tool_choice", "none", "auto", why="the model calls no functions")
    fields.only("modalities", ["text"], why="the model writes text")
    fields.only("audio", why="the model writes text")
    fields.only("response_format", {"type": "text"}, why="the sampler enforces no format")
    messages = _messages(fields)
    logprobs = _chat_logprobs(fields)
    most = "max_tokens" if fields.get("max_completion_tokens") is None else "max_completion_tokens"
    goes_on = fields.boolean("continue_final_message")
    params = _params(fields, served, limits, fields.integer(most, 0, _SEEDS - 1))
    ids, spaces = _chat_ids(messages, served.template, served.engine, goes_on=goes_on)
    return _asking(fields, served, limits, [Request(ids, params, logprobs)], spaces=spaces)


def parse_completion(raw: dict[str, Any], served: ServedModel, limits: Limits) -> ParsedRequest:
    """A body of /v1/completions. Raises ApiError, UsageError, ContextFullError."""
    fields = JsonFields(raw)
    _model(fields, served)
    fields.only("suffix", "", why="the model writes forward only")
    fields.only("best_of", fields.get("n") or 1, why="every answer that is computed is returned: use n")
    logprobs = fields.integer("logprobs", 0, _MOST_LOGPROBS)
    echo = fields.boolean("echo")
    params = _params(fields, served, limits, fields.integer("max_tokens", 0, _SEEDS - 1, COMPLETION_TOKENS))
    prompts = _prompts(fields, served.engine, limits)
    return _asking(fields, served, limits, [Request(ids, params, logprobs, echo) for ids in prompts], spaces=0)


def _asking(
    fields: JsonFields, served: ServedModel, limits: Limits, prompts: Sequence[Request], *, spaces: int
) -> ParsedRequest:
    n = fields.integer("n", 1, limits.choices, 1)
    assert n is not None
    if n * len(prompts) > limits.choices:
        raise invalid(f"the request asks for {n * len(prompts)} answers; the most is {limits.choices}", "n")
    for prompt in prompts:
        served.engine.check_fits(prompt)
    return ParsedRequest(
        model=str(fields.get("model")),
        requests=[_choice(prompt, number) for prompt in prompts for number in range(n)],
        n=n,
        stream=fields.boolean("stream"),
        include_usage=fields.object("stream_options").boolean("include_usage"),
        spaces=spaces,
    )


def _choice(request: Request, number: int) -> Request:
    """The number-th answer to a prompt: with a seed it is drawn from the seed of its number, so that they differ."""
    seed = request.params.seed
    if seed is None or not number:
        return request
    return replace(request, params=replace(request.params, seed=(seed + number) % _SEEDS))


def _model(fields: JsonFields, served: ServedModel) -> str:
    name = fields.text("model")
    if name is None:
        raise invalid(f"the request names no model; this server has {', '.join(served.names)}", "model")
    check_name(name, served)
    return name


def check_name(name: str, served: ServedModel) -> None:
    """Raise the 404 that lists the names."""
    if name not in served.names:
        raise ApiError(
            404,
            f"the model {name[:100]!r} is not served here; this server has {', '.join(served.names)}",
            code="model_not_found",
            param="model",
        )


def _params(fields: JsonFields, served: ServedModel, limits: Limits, max_tokens: int | None) -> SamplingParams:
    """Sampling values over the model's own; OpenAI's names, and those that vLLM and llama.cpp add."""
    for name in ("frequency_penalty", "presence_penalty"):
        fields.only(name, 0, why="repetition_penalty is")
    fields.only("logit_bias", {}, why="tokens cannot be weighted by hand")
    seed = fields.integer("seed", -_SEEDS, _SEEDS - 1)
    asked: dict[str, Any] = {
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.integer("top_k", -1, _SEEDS - 1),
        "min_p": fields.number("min_p", 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 0.01, 10),
        "seed": None if seed is None else seed % _SEEDS,
        "max_tokens": max_tokens,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    if asked.get("top_p") == 0:
        asked["top_p"] = 1e-9  # the likeliest token alone
    if asked.get("top_k") == -1:
        asked["top_k"] = 0
    return SamplingParams(**{**served.defaults, **asked}, stop=_stops(fields, limits))


def _stops(fields: JsonFields, limits: Limits) -> tuple[str, ...]:
    stop = fields.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > limits.stops:
        fields.fail("stop", f"a text or a list of at most {limits.stops} texts")
    if not all(isinstance(text, str) and len(text) <= limits.stop_length for text in stops):
        fields.fail("stop", f"made of texts of at most {limits.stop_length} characters")
    return tuple(stops)


def _chat_logprobs(fields: JsonFields) -> int | None:
    wanted = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, _MOST_LOGPROBS)
    if top is not None and not wanted:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    return (top or 0) if wanted else None


def _messages(fields: JsonFields) -> list[Message]:
    raw = fields.get("messages")
    if not isinstance(raw, list) or not raw:
        fields.fail("messages", "a list of at least one message")
    return [_message(item, place) for place, item in enumerate(raw)]


def _message(raw: Any, place: int) -> Message:
    where = f"messages[{place}]"
    if not isinstance(raw, dict):
        raise invalid(f"{where} must be an object with role and content", where)
    role = _ROLES.get(raw["role"]) if isinstance(raw.get("role"), str) else None
    if role is None:
        raise invalid(f"{where}.role must be system, user or assistant", f"{where}.role")
    content = raw.get("content")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise invalid(f"{where}.content must be a text, or a list of text parts", f"{where}.content")
    return Message(role, content)


def _part(raw: Any, where: str) -> str:
    if not isinstance(raw, dict) or raw.get("type") != "text" or not isinstance(raw.get("text"), str):
        raise invalid(f'{where}.content may hold {{"type": "text", "text": …}} alone', f"{where}.content")
    text: str = raw["text"]
    return text


def _chat_ids(
    messages: Sequence[Message], template: ChatTemplate, engine: Engine, *, goes_on: bool
) -> tuple[list[int], int]:
    """The prompt's ids, and how many spaces at the beginning of the answer are no part of it."""
    if goes_on and messages[-1].role != "assistant":
        raise invalid("continue_final_message needs an assistant message at the end", "messages")
    _check_length([message.content for message in messages], engine)
    if goes_on:
        return template.encode_continued(messages, engine.eos_token_ids)
    return template.encode(messages), 1


def _prompts(fields: JsonFields, engine: Engine, limits: Limits) -> list[list[int]]:
    """A text, a list of texts, token ids, or a list of those."""
    raw = fields.get("prompt")
    some = raw if isinstance(raw, list) and raw and not _is_ids(raw) else [raw]
    if len(some) > limits.choices:
        raise invalid(f"the request has {len(some)} prompts; the most is {limits.choices}", "prompt")
    bos = [engine.model.config.bos_token_id] if fields.boolean("add_special_tokens", True) else []
    prompts = []
    for prompt in some:
        if isinstance(prompt, str):
            _check_length([prompt], engine)
            prompts.append(bos + engine.tokenizer.encode(prompt))
        elif _is_ids(prompt) and all(0 <= token < engine.tokenizer.vocab_size for token in prompt):
            prompts.append(prompt)
        else:
            raise invalid(
                f"prompt must be a text, token ids from 0 to {engine.tokenizer.vocab_size - 1}, or a list of either",
                "prompt",
            )
    return prompts


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _check_length(texts: Sequence[str], engine: Engine) -> None:
    """Refuse at once what no tokenizer could make fit: encoding it would take seconds."""
    most = engine.context * _LONGEST_TOKEN
    length = sum(map(len, texts))
    if length > most:
        raise ApiError(
            400,
            f"the prompt has {length:,} characters; the context of {engine.context:,} tokens holds fewer",
            code="context_length_exceeded",
        )
