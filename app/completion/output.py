"""An answer as text, as one JSON object, or as a stream of objects: `-o text|json|jsonl`."""

import json
import re
from typing import Any, TextIO

from dslite.app.completion.protocol import Answer, CompletionBackend
from dslite.app.terminal.console import visible
from dslite.model.errors import DsliteError
from dslite.runtime.events import Candidate, Token

_FENCED = re.compile(r"^(?P<fence>```+|~~~+)[^\n]*\n(?P<code>.*?)(?:^(?P=fence)[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


def first_code_block(text: str) -> str:
    """The first fenced block of Markdown; the whole text where there is none."""
    match = _FENCED.search(text)
    return match["code"] if match else text


def token_object(token: Token) -> dict[str, Any]:
    """A token of the JSON output; log-probabilities only where they were asked for."""
    shown: dict[str, Any] = {"id": token.id, "text": token.text}
    if token.top is not None:
        shown |= {"logprob": token.logprob, "top": [_candidate_object(candidate) for candidate in token.top]}
    return shown


def _candidate_object(candidate: Candidate) -> dict[str, Any]:
    return {"id": candidate.id, "text": candidate.text, "logprob": candidate.logprob}


def answer_object(completer: CompletionBackend, answer: Answer, *, session: str | None = None) -> dict[str, Any]:
    """The contract's object of one answer; `session` is the saved conversation's id."""
    done = answer.done
    assert done is not None
    made = len(answer.made) if done.counted is None else done.counted
    timing = done.timing
    return {
        "model": completer.name,
        "text": answer.text,
        "finish_reason": done.finish_reason,
        "prompt_tokens": done.prompt_tokens,
        "cached_tokens": done.cached_tokens,
        "completion_tokens": made,
        "session": session,
        "timing": {
            "load_s": completer.load_s,
            "prefill_s": timing.prefill_s,
            "decode_s": timing.decode_s,
            "ttft_s": timing.ttft_s,
            "prefill_tps": _rate(done.prompt_tokens - done.cached_tokens, timing.prefill_s),
            "decode_tps": _rate(made, timing.decode_s),
        },
        "memory": dict(completer.memory()),
        "experts": dict(completer.experts()),
        "tokens": [token_object(token) for token in answer.tokens],
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
    """Text to a file as it comes, ended by one line end; control characters show instead of acting."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._last = "\n"

    def write(self, text: str) -> None:
        if text:
            self._file.write(visible(text))
            self._file.flush()
            self._last = text[-1]

    def end(self) -> None:
        if self._last != "\n":
            self._file.write("\n")
        self._file.flush()
