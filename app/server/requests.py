"""From a client's JSON to requests for the engine.

The tables of request_fields.py have checked names and types; here stands what one field means for another, for the
vocabulary and for the context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dslite.app.server.errors import ApiError, context_exceeded, invalid
from dslite.app.server.json_fields import MOST_INTEGER, read_fields, shown
from dslite.app.server.limits import Limits
from dslite.app.server.messages import parse_messages
from dslite.app.server.request_fields import COMPLETION_TOKENS, chat_fields, completion_fields
from dslite.app.server.structured_output import read_constraint
from dslite.app.server.tools import ForcedCall, forced_call
from dslite.runtime.constraints.constraint import Constraint, with_instruction
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import Message, begun_answer
from dslite.runtime.text.prompt_limit import PromptLimit

_SEEDS = MOST_INTEGER + 1
_MANY = 2**31 - 1  # tokens; more than any context holds, and the most that the engine counts
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos")


@dataclass(frozen=True)
class ServedModel:
    """The model behind the API. `names` are those that it answers to, its own first; `template` None: no chat."""

    engine: Engine
    names: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    template: ChatTemplate | None = None

    @cached_property
    def _limit(self) -> PromptLimit:
        return PromptLimit(self.engine.context, self.engine.tokenizer)

    def check_length(self, texts: Sequence[str], *, parse_special: bool = False) -> None:
        """Refuse the texts of a prompt that cannot fit, before they are encoded. Raises ApiError."""
        if (least := self._limit.least_tokens(texts, parse_special=parse_special)) > self.engine.context:
            raise context_exceeded(self.engine.context, f"at least {least}")

    def check_room(self, token_ids: Sequence[Any], max_tokens: int | None) -> None:
        """Refuse a prompt that leaves no room for an answer. Raises ApiError."""
        if len(token_ids) + (max_tokens != 0) > self.engine.context:
            raise context_exceeded(self.engine.context, str(len(token_ids)))

    def check_tokens(self, token_ids: Sequence[int], name: str) -> None:
        """Refuse ids outside of the vocabulary. Raises ApiError."""
        size = self.engine.tokenizer.vocab_size
        if not all(0 <= token < size for token in token_ids):
            raise invalid(f"{name} has an id that no token has; they go from 0 to {size - 1}", name)


@dataclass(frozen=True)
class ParsedRequest:
    """A client's request in the engine's terms. `requests` are the choices: `n` for each prompt, in order."""

    model: str
    requests: Sequence[Request]
    n: int
    stream: bool
    include_usage: bool
    spaces: int  # at the beginning of an answer that are no part of it
    repeated: Mapping[str, Any] = field(default_factory=dict)  # what the answer says of its request (/v1/responses)
    call: ForcedCall | None = None  # what the answer is, where it is no text


def parse_chat(raw: dict[str, Any], served: ServedModel, limits: Limits) -> ParsedRequest:
    """A body of /v1/chat/completions. Raises ApiError, UsageError, ContextFullError."""
    turns = raw.get("messages")
    if isinstance(turns, list) and len(turns) > served.engine.context:  # a turn has at least a token
        raise context_exceeded(served.engine.context, f"at least {len(turns)}")
    values = read_fields(chat_fields(limits), raw)
    template = chat_template(values, served)
    if values.get("functions") and values.get("function_call") != "none":
        raise invalid("functions and function_call are older names: use tools and tool_choice", "functions")
    call = forced_call(values)
    if values.get("top_logprobs") and not values.get("logprobs"):
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    logprobs = values.get("top_logprobs", 0) if values.get("logprobs") else None
    params = sampling_params(values, served, values.get("max_completion_tokens", values.get("max_tokens")))
    messages = parse_messages(values)
    if call is not None:
        return call_request(values, served, limits, call, messages, Request((), params, logprobs))
    messages = with_instruction(messages, params.constraint)
    served.check_length([message.content for message in messages])
    ids, spaces = chat_ids(values, messages, template, served.engine)
    served.check_room(ids, params.max_tokens)
    begun = begun_answer(messages) if values.get("continue_final_message") else ""
    request = Request(ids, params, logprobs, spaces=spaces, begun=begun)
    return parsed_request(values, served, limits, [request], spaces=spaces)


def call_request(
    values: Mapping[str, Any],
    served: ServedModel,
    limits: Limits,
    call: ForcedCall,
    messages: Sequence[Message],
    request: Request,
    repeated: Mapping[str, Any] | None = None,
) -> ParsedRequest:
    """The request whose answer is a call; `request` has no prompt yet. Raises ApiError, ContextFullError."""
    assert served.template is not None
    if values.get("continue_final_message") or not values.get("add_generation_prompt", True):
        raise invalid(
            "a call is an answer of its own: leave out continue_final_message and add_generation_prompt", "tool_choice"
        )
    engine = served.engine
    params = call.constrain(request.params, lambda constraint: engine.constraints.check(constraint, space=True))
    told = call.instruct(messages)
    served.check_length([message.content for message in told])
    ids = call.prompt_ids(told, served.template, engine.eos_token_ids)
    served.check_room(ids, params.max_tokens)
    request = replace(request, prompt_ids=ids, params=params, spaces=1)
    return replace(parsed_request(values, served, limits, [request], spaces=1, repeated=repeated), call=call)


def parse_completion(raw: dict[str, Any], served: ServedModel, limits: Limits) -> ParsedRequest:
    """A body of /v1/completions. Raises ApiError, UsageError, ContextFullError."""
    values = read_fields(completion_fields(limits), raw)
    served_name(values, served)
    if values.get("best_of", values.get("n", 1)) != values.get("n", 1):
        raise invalid("best_of must be n: every answer that is computed is returned", "best_of")
    params = sampling_params(values, served, values.get("max_tokens", COMPLETION_TOKENS), space=False)
    logprobs, echo = values.get("logprobs"), values.get("echo", False)
    prompts = [Request(ids, params, logprobs, echo) for ids in _prompts(values, served, params, limits)]
    return parsed_request(values, served, limits, prompts, spaces=0)


def check_name(name: str, served: ServedModel) -> None:
    """Raise the 404 that lists the names."""
    if name not in served.names:
        raise ApiError(
            404,
            f"the model {name[:100]!r} is not served here; this server has {', '.join(served.names)}",
            code="model_not_found",
            param="model",
        )


def parsed_request(
    values: Mapping[str, Any],
    served: ServedModel,
    limits: Limits,
    prompts: Sequence[Request],
    *,
    spaces: int,
    repeated: Mapping[str, Any] | None = None,
) -> ParsedRequest:
    """The choices of some prompts. Raises ApiError, ContextFullError."""
    n = values.get("n", 1)
    if n * len(prompts) > limits.choices:
        raise invalid(f"the request asks for {n * len(prompts)} answers; the most is {limits.choices}", "n")
    for prompt in prompts:
        served.engine.check_fits(prompt)
    return ParsedRequest(
        model=values.get("model", served.names[0]),
        requests=[_choice(prompt, number) for prompt in prompts for number in range(n)],
        n=n,
        stream=values.get("stream", False),
        include_usage=values.get("stream_options", {}).get("include_usage", False),
        spaces=spaces,
        repeated=repeated or {},
    )


def _choice(request: Request, number: int) -> Request:
    """The number-th answer to a prompt: with a seed it is drawn from the seed of its number, so that they differ."""
    seed = request.params.seed
    if seed is None or not number:
        return request
    return replace(request, params=replace(request.params, seed=(seed + number) % _SEEDS))


def chat_template(values: Mapping[str, Any], served: ServedModel) -> ChatTemplate:
    """The template of the model that a request names. Raises ApiError where it has no such name, or no template."""
    name = served_name(values, served)
    if served.template is None:
        raise invalid(f"{name} has no chat template; use /v1/completions", "model")
    return served.template


def served_name(values: Mapping[str, Any], served: ServedModel) -> str:
    """The name that a request gives the model. Raises ApiError where it has no such name."""
    name: str = values.get("model", served.names[0])
    check_name(name, served)
    return name


def sampling_params(
    values: Mapping[str, Any],
    served: ServedModel,
    max_tokens: int | None,
    format_name: str = "response_format",
    *,
    space: bool = True,
) -> SamplingParams:
    """Sampling values over the model's own defaults. `format_name` is what the route calls response_format.

    `space`: answers begin with a space, as behind a chat template. A shape is compiled for such an answer.
    """

    def check(constraint: Constraint) -> None:
        served.engine.constraints.check(constraint, space=space)

    asked: dict[str, Any] = {name: min(values[name], _MANY) for name in _SAMPLING if name in values}
    if asked.get("top_p") == 0:
        asked["top_p"] = 1e-9  # the likeliest token alone
    if asked.get("top_k") == -1:
        asked["top_k"] = 0
    if "seed" in values:
        asked["seed"] = values["seed"] % _SEEDS
    if max_tokens is not None and max_tokens >= 0:
        asked["max_tokens"] = min(max_tokens, _MANY)
    if asked.get("min_tokens", 0) > asked.get("max_tokens", MOST_INTEGER):
        raise invalid("min_tokens is more than max_tokens", "min_tokens")
    stop_tokens = values.get("stop_token_ids", [])
    served.check_tokens(stop_tokens, "stop_token_ids")
    return SamplingParams(
        **{
            **served.defaults,
            **asked,
            **read_constraint(values, check, format_name),
        },
        stop=tuple(values.get("stop", ())),
        stop_token_ids=tuple(stop_tokens),
    )


def chat_ids(
    values: Mapping[str, Any], messages: Sequence[Message], template: ChatTemplate, engine: Engine
) -> tuple[list[int], int]:
    """The prompt's ids, and how many spaces at the beginning of the answer are no part of it."""
    if values.get("continue_final_message"):
        if messages[-1].role != "assistant":
            raise invalid("continue_final_message needs an assistant message at the end", "messages")
        return template.encode_continued(messages, engine.eos_token_ids)
    opened = values.get("add_generation_prompt", True)
    return template.encode(messages, add_generation_prompt=opened), int(opened)


def _prompts(values: Mapping[str, Any], served: ServedModel, params: SamplingParams, limits: Limits) -> list[list[int]]:
    """Token ids of each prompt. All are checked for their length before the first is encoded."""
    raw = values.get("prompt")
    prompts: list[Any] = raw if isinstance(raw, list) and raw and type(raw[0]) is not int else [raw]
    if len(prompts) > limits.choices:
        raise invalid(f"the request has {len(prompts)} prompts; the most is {limits.choices}", "prompt")
    for prompt in prompts:
        if isinstance(prompt, str):
            served.check_length([prompt], parse_special=values.get("parse_special", False))
        elif isinstance(prompt, list) and prompt:
            served.check_room(prompt, params.max_tokens)
        else:
            raise invalid(f"prompt is {shown(prompt)}; it must be a text, token ids, or a list of either", "prompt")
    return [_prompt_ids(prompt, values, served, params) for prompt in prompts]


def _prompt_ids(
    prompt: str | list[Any], values: Mapping[str, Any], served: ServedModel, params: SamplingParams
) -> list[int]:
    if isinstance(prompt, list):
        if not all(type(item) is int for item in prompt):
            raise invalid("prompt must be a text, token ids, or a list of either; ids are whole numbers", "prompt")
        served.check_tokens(prompt, "prompt")
        return prompt
    engine = served.engine
    bos = [engine.model.config.bos_token_id] if values.get("add_special_tokens", True) else []
    ids = bos + engine.tokenizer.encode(
        prompt, parse_special=values.get("parse_special", False), enough=engine.context + 1
    )
    served.check_room(ids, params.max_tokens)
    return ids
