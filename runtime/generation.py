"""Text from an engine in one call: what `dslite.runtime` offers to programs.

    from dslite.runtime import ChatSession, SamplingParams, generate, open_engine

    engine = open_engine("demo")
    print(generate(engine, "The capital of France is", SamplingParams(temperature=0, max_tokens=5)).text)
    print(ChatSession(engine).send("How do I save a profile?").text)

An engine makes one answer at a time; it is not for several threads. `generate_batch` decodes several prompts together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event as Flag

from dslite.runtime.chat.local import LocalChatBackend
from dslite.runtime.engine.engine import Engine, Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import ChatEvent, Done, FinishReason, Prefilling, Token
from dslite.runtime.text.message import Message

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


def generate(
    engine: Engine,
    prompt: str,
    params: SamplingParams = _RAW_PARAMS,
    *,
    logprobs: int | None = None,
    echo: bool = False,
) -> Completion:
    """Continue a text, which follows the begin-of-sentence token; no chat template.

    `logprobs` K adds to each token its log-probability and the K best candidates, from raw logits in float32; 0: its
    own alone. `echo` puts the prompt's tokens first; with `max_tokens=0` it scores a text without generating.
    Raises UsageError, ContextFullError, NumericsError.
    """
    tokens: list[Token] = []
    text = ""
    for event in stream(engine, prompt, params, logprobs=logprobs, echo=echo):
        text += event.delta
        if isinstance(event, Token):
            tokens.append(event)
        else:
            done = event
    return _completion(done, text, tokens)


def stream(
    engine: Engine,
    prompt: str,
    params: SamplingParams = _RAW_PARAMS,
    *,
    logprobs: int | None = None,
    echo: bool = False,
) -> Iterator[Token | Done]:
    """The same as it comes: a Token each, one Done at the end. The text is what their `delta`s make together."""
    request = Request(_prompt_ids(engine, prompt), params, logprobs, echo)
    events = engine.generate(request)
    return (event for event in events if not isinstance(event, Prefilling))


def generate_batch(
    engine: Engine, prompts: Sequence[str], params: SamplingParams = _RAW_PARAMS
) -> list[Completion | DsliteError]:
    """Continue several texts, decoded together. A prompt that fails gives its error in its place."""
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


class ChatSession:
    """A conversation that keeps its history: `messages`, a system message first where there is one.

    Raises CheckpointError where the model has no chat template.
    """

    def __init__(self, engine: Engine, *, system: str | None = None, params: SamplingParams = _CHAT_PARAMS) -> None:
        self.messages: list[Message] = [] if system is None else [Message("system", system)]
        self.params = params
        self._backend = LocalChatBackend(engine, "")

    def send(self, text: str, params: SamplingParams | None = None) -> Completion:
        """Ask, and wait for the whole answer. Raises ContextFullError; the history is then as before."""
        tokens: list[Token] = []
        for event in self.stream(text, params):
            if isinstance(event, Token):
                tokens.append(event)
            else:
                done = event
        return _completion(done, done.text, tokens)

    def stream(self, text: str, params: SamplingParams | None = None) -> Iterator[Token | Done]:
        """The answer as it comes. Question and answer join the history with its end."""
        question = Message("user", text)
        events = self._backend.reply([*self.messages, question], params or self.params, Flag())
        return self._recorded(question, events)

    def _recorded(self, question: Message, events: Iterator[ChatEvent]) -> Iterator[Token | Done]:
        for event in events:
            if isinstance(event, Done):
                self.messages += [question, Message("assistant", event.text, event.token_ids)]
            if isinstance(event, Token | Done):
                yield event


def _prompt_ids(engine: Engine, prompt: str) -> list[int]:
    return [engine.model.config.bos_token_id, *engine.tokenizer.encode(prompt)]


def _completion(done: Done, text: str, tokens: Sequence[Token]) -> Completion:
    return Completion(
        text, done.finish_reason, done.prompt_tokens, done.cached_tokens, done.completion_tokens, tuple(tokens)
    )
