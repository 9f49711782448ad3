"""Text from an engine in one call: what `dslite.runtime` offers to programs (docs/library.md).

    from dslite.runtime import Chat, SamplingParams, generate, open_engine

    engine = open_engine("demo")
    print(generate(engine, "The capital of France is", SamplingParams(temperature=0, max_tokens=5)).text)
    print(Chat(engine).send("How do I save a profile?").text)

An engine makes one answer at a time; it is not for several threads. `generate_batch` decodes several prompts together,
and what begins with `a` (`agenerate`, `astream`, `Chat.asend`, `Chat.astream`) computes beside an event loop.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event as Flag
from typing import Any

from dslite.runtime.async_answer import AsyncAnswer, wait_for_async
from dslite.runtime.chat.local import LocalChatBackend
from dslite.runtime.constraints.constraint import schema_text
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import ChatEvent, Done, FinishReason, Prefilling, Token
from dslite.runtime.text.message import Message

Schema = Mapping[str, Any] | str
_RAW_PARAMS = SamplingParams(max_tokens=256)
_CHAT_PARAMS = SamplingParams()


@dataclass(frozen=True)
class Completion:
    """An answer. `tokens` are those of `text`, an echoed prompt's among them, with log-probabilities where asked for.

    `cached_tokens` of the `prompt_tokens` were in the cache already; `completion_tokens` counts the end token too.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens: tuple[Token, ...]

    def json(self) -> Any:
        """The answer parsed as JSON: of a whole answer to a `json_schema`, a value that follows it.

        Raises DsliteError where the text is not JSON, as of an answer that was cut.
        """
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError) as error:
            cut = self.finish_reason != "stop"
            raise DsliteError(
                f"the answer is not JSON: {error}" + (f"; it was cut ({self.finish_reason})" if cut else ""),
                "give more max_tokens, and bounds (maxLength, maxItems) in the schema"
                if cut
                else "ask with a json_schema",
            ) from None


def generate(
    engine: Engine,
    prompt: str,
    params: SamplingParams = _RAW_PARAMS,
    *,
    json_schema: Schema | None = None,
    logprobs: int | None = None,
    echo: bool = False,
) -> Completion:
    """Continue a text, which follows the begin-of-sentence token; no chat template.

    `json_schema`, an object or its JSON, forces the answer's shape as `params.json_schema` does. `logprobs` K adds to
    each token its log-probability and the K best candidates, from raw logits in float32; 0: its own alone. `echo` puts
    the prompt's tokens first; with `max_tokens=0` it scores a text without generating.
    Raises UsageError, ContextFullError, NumericsError.
    """
    return _summed([*stream(engine, prompt, params, json_schema=json_schema, logprobs=logprobs, echo=echo)])


def stream(
    engine: Engine,
    prompt: str,
    params: SamplingParams = _RAW_PARAMS,
    *,
    json_schema: Schema | None = None,
    logprobs: int | None = None,
    echo: bool = False,
) -> Iterator[Token | Done]:
    """The same as it comes: a Token each, one Done at the end. The text is what their `delta`s make together."""
    wait_for_async(engine)
    events = engine.generate(_request(engine, prompt, params, json_schema, logprobs, echo=echo))
    return (event for event in events if not isinstance(event, Prefilling))


async def agenerate(
    engine: Engine,
    prompt: str,
    params: SamplingParams = _RAW_PARAMS,
    *,
    json_schema: Schema | None = None,
    logprobs: int | None = None,
    echo: bool = False,
) -> Completion:
    """`generate` beside an event loop, which goes on meanwhile. Cancelling the task ends the computing."""
    answer = astream(engine, prompt, params, json_schema=json_schema, logprobs=logprobs, echo=echo)
    return _summed([event async for event in answer])


def astream(
    engine: Engine,
    prompt: str,
    params: SamplingParams = _RAW_PARAMS,
    *,
    json_schema: Schema | None = None,
    logprobs: int | None = None,
    echo: bool = False,
) -> AsyncAnswer:
    """`stream` for `async for`; a `break` ends the computing. Answers of one engine run one after the other.

    Errors are raised by the loop's first step.
    """

    def start(cancel: Flag) -> Iterator[ChatEvent]:
        return engine.generate(_request(engine, prompt, params, json_schema, logprobs, echo=echo), cancel)

    return AsyncAnswer(engine, start)


def generate_batch(
    engine: Engine, prompts: Sequence[str], params: SamplingParams = _RAW_PARAMS
) -> list[Completion | DsliteError]:
    """Continue several texts, decoded together. A prompt that fails gives its error in its place."""
    wait_for_async(engine)
    scheduler = Scheduler(engine)
    tokens: list[list[Token]] = [[] for _ in prompts]
    found: dict[int, Completion | DsliteError] = {}
    for key, prompt in enumerate(prompts):
        try:
            scheduler.add(key, Request(_prompt_ids(engine, prompt), params))
        except DsliteError as error:
            found[key] = error
    while len(scheduler):
        for name, event in scheduler.step():
            key = int(str(name))
            if isinstance(event, Token):
                tokens[key].append(event)
            elif isinstance(event, Done):
                found[key] = _completion(event, event.text, tokens[key])
            elif isinstance(event, DsliteError):
                found[key] = event
    return [found[key] for key in range(len(prompts))]


class Chat:
    """A conversation that keeps its history: `messages`, a system message first where there is one.

    What was computed of earlier turns stays in the engine's prefix cache, so that a turn computes only what is new; a
    `json_schema` is told to the model in the system message, and its turn computes everything anew. `messages` is a
    list that the caller may change: cut it to go back, keep a copy to branch. Raises CheckpointError where the model
    has no chat template.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        messages: Sequence[Message] = (),
        params: SamplingParams = _CHAT_PARAMS,
    ) -> None:
        """`messages`: earlier turns to go on with, after the system message."""
        self.messages: list[Message] = [*([] if system is None else [Message("system", system)]), *messages]
        self.params = params
        self._engine = engine
        self._backend = LocalChatBackend(engine, "")

    def send(self, text: str, params: SamplingParams | None = None, *, json_schema: Schema | None = None) -> Completion:
        """Ask, and wait for the whole answer. `params` are for this turn alone.

        Raises UsageError, ContextFullError; the history is then as before.
        """
        return _summed([*self.stream(text, params, json_schema=json_schema)])

    def stream(
        self, text: str, params: SamplingParams | None = None, *, json_schema: Schema | None = None
    ) -> Iterator[Token | Done]:
        """The answer as it comes. Question and answer join the history with its end, not if it is left before."""
        wait_for_async(self._engine)
        question, turn = self._turn(text)
        return self._recorded(question, self._backend.reply(turn, self._shaped(params, json_schema), Flag()))

    async def asend(
        self, text: str, params: SamplingParams | None = None, *, json_schema: Schema | None = None
    ) -> Completion:
        """`send` beside an event loop. Cancelling the task ends the computing and leaves the history as it was."""
        return _summed([event async for event in self.astream(text, params, json_schema=json_schema)])

    def astream(
        self, text: str, params: SamplingParams | None = None, *, json_schema: Schema | None = None
    ) -> AsyncAnswer:
        """`stream` for `async for`; a `break` ends the computing. Errors are raised by the loop's first step."""
        question, turn = self._turn(text)

        def start(cancel: Flag) -> Iterator[ChatEvent]:
            return self._backend.reply(turn, self._shaped(params, json_schema), cancel)

        return AsyncAnswer(self._engine, start, lambda done: self._record(question, done))

    def _turn(self, text: str) -> tuple[Message, list[Message]]:
        question = Message("user", text)
        return question, [*self.messages, question]

    def _shaped(self, params: SamplingParams | None, json_schema: Schema | None) -> SamplingParams:
        return _shaped(self.params if params is None else params, json_schema)

    def _recorded(self, question: Message, events: Iterator[ChatEvent]) -> Iterator[Token | Done]:
        for event in events:
            if isinstance(event, Done):
                self._record(question, event)
            if isinstance(event, Token | Done):
                yield event

    def _record(self, question: Message, done: Done) -> None:
        self.messages += [question, Message("assistant", done.text, done.token_ids)]


def _shaped(params: SamplingParams, json_schema: Schema | None) -> SamplingParams:
    return params if json_schema is None else replace(params, json_schema=schema_text(json_schema))


def _request(
    engine: Engine,
    prompt: str,
    params: SamplingParams,
    json_schema: Schema | None,
    logprobs: int | None,
    *,
    echo: bool,
) -> Request:
    return Request(_prompt_ids(engine, prompt), _shaped(params, json_schema), logprobs, echo)


def _prompt_ids(engine: Engine, prompt: str) -> list[int]:
    return [engine.model.config.bos_token_id, *engine.tokenizer.encode(prompt)]


def _summed(events: Sequence[Token | Done]) -> Completion:
    """The completion that the events of one answer make."""
    done = events[-1]
    assert isinstance(done, Done)
    text = "".join(event.delta for event in events)
    return _completion(done, text, [event for event in events if isinstance(event, Token)])


def _completion(done: Done, text: str, tokens: Sequence[Token]) -> Completion:
    return Completion(
        text, done.finish_reason, done.prompt_tokens, done.cached_tokens, done.completion_tokens, tuple(tokens)
    )
