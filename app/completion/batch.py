"""`complete --batch`: JSON lines in, JSON lines out, decoded together.

Lines are read as they come and results are written as they are known, so that an endless input takes no more memory
than what runs at a time. A fault of one line, whatever it is, becomes that line's error object; the other lines are
answered.
"""

import difflib
import json
import logging
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TextIO

from dslite.app.completion.batch_progress import BatchProgress
from dslite.app.completion.batch_results import BatchLine, BatchResults
from dslite.app.completion.batch_resume import EarlierOutput
from dslite.app.completion.output import OutputOptions, answer_object
from dslite.app.completion.protocol import Answer, CompletionBackend, Prompt, RequestT, TokenPrompt, unexpected
from dslite.app.settings.profiles import get_profile
from dslite.app.settings.sampling import KEYS, overlaid
from dslite.app.terminal import console
from dslite.app.terminal.line_reader import MOST_LINE_BYTES, LineReader
from dslite.app.terminal.output_file import append_output, open_output
from dslite.app.terminal.signals import Interruption
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError
from dslite.runtime.text.message import Message

_KEYS = ("id", "prompt", "messages", "model", "profile", "system", "weights", *KEYS)
_TEXTS = ("model", "profile", "system", "weights")
_MOST_AHEAD = 256  # results that wait for an earlier line's: then no further line is read
_MOST_AT_ONCE = 32  # lines without a request that are looked at between two steps
_LOOK_S = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchOptions:
    """`ordered`: results in the order of their lines. `strict`: a line that failed makes the exit code 1."""

    ordered: bool = True
    strict: bool = False
    earlier: EarlierOutput | None = None


class _Requests(Generic[RequestT]):
    """The RequestSource of a batch: what is wrong with a line, or answered already, goes to the results at once."""

    def __init__(
        self,
        backend: CompletionBackend[RequestT],
        lines: LineReader,
        results: BatchResults,
        progress: BatchProgress,
        earlier: EarlierOutput | None,
        cancel: threading.Event,
    ) -> None:
        self._backend = backend
        self._lines = lines
        self._results = results
        self._progress = progress
        self._earlier = earlier
        self._cancel = cancel
        self._fault: DsliteError | None = None

    def take(self, *, wait: bool) -> tuple[int, RequestT] | None:
        looked = 0
        while not self._cancel.is_set() and self._fault is None and (wait or looked < _MOST_AT_ONCE):
            self._progress.show(len(self._results.pending))
            if self._results.waiting >= _MOST_AHEAD:
                return None
            if (data := self._next(wait_s=_LOOK_S if wait else 0.0)) is None:
                if wait and not self._lines.ended:
                    continue
                return None
            looked += 1
            if (taken := self._request(BatchLine(self._lines.taken - 1, data, self._lines.taken))) is not None:
                return taken
        return None

    def raise_fault(self) -> None:
        """Raise UsageError where the input could not be read to its end."""
        if self._fault is not None:
            raise self._fault

    def _next(self, wait_s: float) -> bytes | None:
        try:
            return self._lines.take(wait_s)
        except DsliteError as error:  # raised once the answers to the lines before are written
            self._fault = error
            return None

    def _request(self, line: BatchLine) -> tuple[int, RequestT] | None:
        """The request of a line; None where its result is known."""
        if self._earlier is not None and self._earlier.find(line):
            self._results.add(line)
            self._results.copy(line.number, self._earlier.copy(line))
            return None
        fault: DsliteError | None = None
        request: RequestT | None = None
        try:
            item = _parse(line.data)
            line = BatchLine(line.number, line.data, item.get("id", line.identity))
            request = _request(self._backend, item)
        except DsliteError as error:
            fault = error
        except Exception as error:
            _log.exception("a line of the batch cannot be read")
            fault = unexpected(error)
        self._results.add(line)
        if fault is not None:
            self._results.fail(line.number, fault)
        return None if request is None else (line.number, request)


def complete_batch(
    backend: CompletionBackend[RequestT],
    lines: LineReader,
    output: OutputOptions,
    interruption: Interruption,
    options: BatchOptions | None = None,
) -> int:
    """Answer JSON lines; return the exit code. Raises UsageError where the input cannot be read to its end."""
    options = options or BatchOptions()
    interruption.protect()
    progress = BatchProgress(lines.size)
    with _opened(output, interruption, options.earlier) as file:
        results = BatchResults(file, progress, ordered=options.ordered)
        requests = _Requests(backend, lines, results, progress, options.earlier, interruption.flag)
        try:
            for number, result in backend.run_batch(requests, interruption.flag):
                if isinstance(result, Answer):
                    results.answer(number, answer_object(backend, result))
                else:
                    results.fail(number, result)
                progress.show(len(results.pending))
        finally:
            progress.close()
        stopped = interruption.flag.is_set()
        for number in results.pending:
            results.fail(number, DsliteError("interrupted before the answer began" if stopped else "no answer came"))
    _report(results, backend, options.earlier, stopped=stopped and not lines.ended)
    requests.raise_fault()
    return interruption.exit_code or (1 if options.strict and results.failed else 0)


def _opened(
    output: OutputOptions, interruption: Interruption, earlier: EarlierOutput | None
) -> AbstractContextManager[TextIO]:
    if earlier is not None and earlier.is_output:
        return append_output(earlier.file)
    return open_output(output.file, interruption)


def _report(
    results: BatchResults, backend: CompletionBackend[Any], earlier: EarlierOutput | None, *, stopped: bool
) -> None:
    """What is to be known of a batch as a whole."""
    if stopped:
        console.warn(f"stopped after {results.added} lines; --resume answers the rest")
    elif not results.added:
        console.warn("the batch has no lines")
    if results.failed:
        console.warn(f"{results.failed} of {results.added} lines failed; each says why in its place")
    if earlier is not None and (others := sorted(earlier.models - {backend.name})):
        console.warn(f"answers that were there already are of {', '.join(others)}, not of {backend.name}")


def _parse(line: bytes) -> dict[str, Any]:
    """The object of a line. Raises UsageError."""
    if len(line) > MOST_LINE_BYTES:
        raise UsageError(f"the line has more than {MOST_LINE_BYTES:,} bytes", "shorten its prompt")
    try:
        item = json.loads(line.decode("utf-8"), object_pairs_hook=_without_repetition, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise UsageError(f"the line is not valid UTF-8 at byte {error.start}", "convert it to UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the line is not valid JSON: {error}") from None
    if not isinstance(item, dict):
        raise UsageError("the line is not a JSON object", 'write it as {"prompt": "…"}')
    return item


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item = dict(pairs)
    if len(item) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return item


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _request(backend: CompletionBackend[RequestT], item: dict[str, Any]) -> RequestT:
    """The request of a line. Raises DsliteError."""
    for key in item:
        if key not in _KEYS:
            close = [known for known in _KEYS if known.startswith(key)]
            close = close or difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.5)
            raise UsageError(
                f"the key {key!r} is unknown", f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_KEYS)}"
            )
    for key in _TEXTS:
        if not isinstance(item.get(key), str | None):
            raise UsageError(f"{key} is {item[key]!r}; it must be a text")
    if (model := item.get("model")) is not None and not backend.serves(model):
        raise UsageError(f"the model {model!r} is not the one that is loaded, {backend.name!r}", "run it on its own")
    if (weights := item.get("weights")) not in (None, backend.weights):
        raise UsageError(
            f"weights is {weights!r}, and those of the model that is loaded are {backend.weights}", "run it on its own"
        )
    profile = {} if item.get("profile") is None else get_profile(item["profile"]).to_dict()
    settings = {key: value for key, value in overlaid(profile, item).items() if key in (*KEYS, "system")}
    return backend.request(_prompt(item), settings)


def _prompt(item: dict[str, Any]) -> Prompt:
    prompt, messages = item.get("prompt"), item.get("messages")
    if isinstance(prompt, str) and messages is None:
        if not prompt:
            raise UsageError("the prompt is empty")
        return prompt
    if isinstance(prompt, list) and messages is None:
        if not prompt or not all(type(token_id) is int and token_id >= 0 for token_id in prompt):
            raise UsageError("the prompt is a list, but not one of token ids: whole numbers from 0")
        return TokenPrompt(tuple(prompt))
    if isinstance(messages, list) and messages and prompt is None:
        return [Message.from_dict(message) for message in messages]
    raise UsageError("the line needs a prompt (text or token ids) or messages (a list), one of them")
