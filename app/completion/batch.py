"""`complete --batch`: JSON lines in, JSON lines out in the same order, decoded together.

A fault of one line, whatever it is, becomes that line's error object; the other lines are answered.
"""

import difflib
import json
import logging
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from dslite.app.completion.output import OutputOptions, answer_object, compact, error_object
from dslite.app.completion.protocol import Answer, CompletionBackend, Prompt, RequestT, TokenPrompt, unexpected
from dslite.app.settings.profiles import get_profile
from dslite.app.settings.sampling import KEYS, overlaid
from dslite.app.terminal import console
from dslite.app.terminal.output_file import open_output
from dslite.app.terminal.signals import Interruption
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError
from dslite.runtime.text.message import Message

_KEYS = ("id", "prompt", "messages", "model", "profile", "system", "weights", *KEYS)
_TEXTS = ("model", "profile", "system", "weights")

_log = logging.getLogger(__name__)


class _Results:
    """The output of a batch: one object for each line, written once those of all lines before it are."""

    def __init__(self, count: int, file: TextIO) -> None:
        self.ids: list[Any] = list(range(1, count + 1))
        self.failed = 0
        self._file = file
        self._written = 0
        self._ready: dict[int, str] = {}

    def put(self, number: int, result: dict[str, Any]) -> None:
        """The object of line `number`, counted from 0."""
        self.failed += "error" in result
        self._ready[number] = compact(result)
        while (line := self._ready.pop(self._written, None)) is not None:
            print(line, file=self._file, flush=True)
            self._written += 1

    def fail(self, number: int, error: DsliteError) -> None:
        self.put(number, error_object(self.ids[number], error))

    @property
    def missing(self) -> list[int]:
        """The lines without a result."""
        return [number for number in range(self._written, len(self.ids)) if number not in self._ready]


def complete_batch(
    backend: CompletionBackend[RequestT], lines: Sequence[bytes], output: OutputOptions, interruption: Interruption
) -> int:
    """Answer JSON lines; return the exit code."""
    interruption.protect()
    with open_output(output.file, interruption) as file:
        results = _Results(len(lines), file)
        for number, line in enumerate(lines):
            try:
                item = _parse(line)
                results.ids[number] = item.get("id", number + 1)
                backend.submit(number, _request(backend, item))
            except DsliteError as error:
                results.fail(number, error)
            except Exception as error:
                _log.exception("a line of the batch cannot be read")
                results.fail(number, unexpected(error))
        for number, result in backend.run_batch(interruption.flag):
            if isinstance(result, Answer):
                results.put(number, {"id": results.ids[number], **answer_object(backend, result)})
            else:
                results.fail(number, result)
        stopped = interruption.flag.is_set()
        for number in results.missing:
            results.fail(number, DsliteError("interrupted before the answer began" if stopped else "no answer came"))
    if not lines:
        console.warn("the batch has no lines")
    if results.failed:
        console.warn(f"{results.failed} of {len(lines)} lines failed; each says why in its place")
    return interruption.exit_code or 0


def _parse(line: bytes) -> dict[str, Any]:
    """The object of a line. Raises UsageError."""
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
