"""An answer as text, as one JSON object, or as a stream of objects: `-o text|json|jsonl`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from dslite.app.chat.markdown_blocks import code_blocks
from dslite.app.completion.protocol import Answer, CompletionBackend
from dslite.app.terminal.console import printable
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError
from dslite.runtime.events import Candidate, Done, Token


@dataclass(frozen=True)
class OutputOptions:
    """The form of an answer, and the file it is written to (None: stdout)."""

    format: str  # text, json or jsonl
    file: Path | None = None
    stream: bool = True
    extract: bool = False
    stats: bool = False

    def __post_init__(self) -> None:
        if self.format not in ("text", "json", "jsonl"):
            raise UsageError(f"--output is {self.format!r}; it must be text, json or jsonl")


class NoCodeBlockError(DsliteError):
    """An answer has no whole fenced code block to extract."""


def first_code_block(answer: Answer) -> str:
    """The first fenced code block of an answer. Raises NoCodeBlockError where there is none, or its end was cut off.

    The output is piped into shells: half a block is worse than none.
    """
    blocks = code_blocks(answer.text)
    if not blocks:
        raise NoCodeBlockError("the answer has no fenced code block, so nothing is printed", "leave out --extract")
    ended = answer.done is not None and answer.done.finish_reason == "stop"
    whole = blocks[0].closed or (ended and bool(blocks[0].text))
    if not whole:
        raise NoCodeBlockError("the code block was cut, so nothing is printed", "raise --max-tokens")
    return blocks[0].text


def token_object(token: Token) -> dict[str, Any]:
    """A token of the JSON output; log-probabilities only where they were asked for."""
    shown: dict[str, Any] = {"id": token.id, "text": token.text}
    if token.top is not None:
        shown |= {"logprob": token.logprob, "top": [_candidate_object(candidate) for candidate in token.top]}
    return shown


def _candidate_object(candidate: Candidate) -> dict[str, Any]:
    return {"id": candidate.id, "text": candidate.text, "logprob": candidate.logprob}


def answer_object(backend: CompletionBackend[Any], answer: Answer, *, session: str | None = None) -> dict[str, Any]:
    """The contract's object of one answer; `session` is the saved conversation's id."""
    done = answer.done
    assert done is not None
    made = len(answer.generated) if done.counted is None else done.counted
    timing = done.timing
    return {
        "model": backend.name,
        "weights": backend.weights,
        "text": answer.text,
        "finish_reason": done.finish_reason,
        "prompt_tokens": done.prompt_tokens,
        "cached_tokens": done.cached_tokens,
        "completion_tokens": made,
        "session": session,
        "timing": {
            "load_s": backend.load_s,
            "prefill_s": timing.prefill_s,
            "decode_s": timing.decode_s,
            "ttft_s": timing.ttft_s,
            "prefill_tps": _rate(done.prompt_tokens - done.cached_tokens, timing.prefill_s),
            "decode_tps": _rate(made, timing.decode_s),
        },
        "memory": dict(backend.memory()),
        "experts": dict(backend.experts()),
        "tokens": [token_object(token) for token in answer.tokens],
        **({} if backend.process is None else {"engine": backend.process}),
    }


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def stats_line(shown: dict[str, Any]) -> str:
    """One line about an answer, for --stats."""
    timing = shown["timing"]
    return (
        f"{shown['model']} · {shown['prompt_tokens']:,} prompt tokens ({shown['cached_tokens']:,} cached) at "
        f"{timing['prefill_tps']:,.1f}/s · {shown['completion_tokens']:,} tokens at {timing['decode_tps']:,.1f}/s · "
        f"first after {timing['ttft_s']:.2f} s · loaded in {timing['load_s']:.2f} s · {shown['finish_reason']}"
    )


def error_object(identity: object, error: DsliteError) -> dict[str, Any]:
    """What stands in a batch in place of an answer."""
    return {"id": identity, "error": f"{error.message}; {error.remedy}" if error.remedy else error.message}


def compact(value: dict[str, Any]) -> str:
    """One line of JSON, in ASCII: no terminal obeys it and no encoding refuses it."""
    return json.dumps(value, allow_nan=False)


class TextWriter:
    """The text of an answer, as it comes or at its end, with one line end behind it."""

    def __init__(self, file: TextIO, options: OutputOptions) -> None:
        self._file = file
        self._options = options
        self._last = "\n"

    def add(self, event: Token | Done) -> None:
        if self._options.stream and not self._options.extract:
            self._write(event.delta)

    def finish(self, answer: Answer, session: str | None) -> None:
        """Raises NoCodeBlockError."""
        if self._options.extract:
            self._write(first_code_block(answer))
        elif not self._options.stream:
            self._write(answer.text)

    def close(self) -> None:
        """End the line, also where the answer broke off."""
        if self._last != "\n":
            self._file.write("\n")
        self._file.flush()

    def _write(self, text: str) -> None:
        if text:
            self._file.write(printable(text))
            self._file.flush()
            self._last = text[-1]


class JsonWriter:
    """One JSON object of an answer; with `jsonl` an object of each token before it."""

    def __init__(self, file: TextIO, options: OutputOptions, backend: CompletionBackend[Any]) -> None:
        self._file = file
        self._options = options
        self._backend = backend

    def add(self, event: Token | Done) -> None:
        if self._options.format == "jsonl" and isinstance(event, Token):
            print(compact(token_object(event)), file=self._file, flush=self._options.stream)

    def finish(self, answer: Answer, session: str | None) -> None:
        """Raises NoCodeBlockError."""
        shown = answer_object(self._backend, answer, session=session)
        if self._options.extract:
            shown["text"] = first_code_block(answer)
        print(compact(shown), file=self._file, flush=True)

    def close(self) -> None:
        self._file.flush()
