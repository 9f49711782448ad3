"""`complete --batch`: JSON lines in, JSON lines out in the same order, decoded together."""

import json
from collections.abc import Sequence
from typing import Any, TextIO

from dslite.app.completion.output import answer_object, compact, error_object
from dslite.app.completion.protocol import Answer, CompletionBackend
from dslite.app.settings.profiles import get_profile
from dslite.app.terminal import console
from dslite.app.terminal.output_file import Output, open_output
from dslite.app.terminal.signals import Interruption
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError
from dslite.runtime.events import Done
from dslite.runtime.text.chat_template import Message


class _Lines:
    """The lines of a batch, and what stands in the place of each once all before it are written."""

    def __init__(self, lines: Sequence[str], file: TextIO) -> None:
        self.ids: list[Any] = list(range(1, len(lines) + 1))
        self.failed = 0
        self._file = file
        self._written = 0
        self._ready: dict[int, dict[str, Any]] = {}

    def put(self, number: int, shown: dict[str, Any]) -> None:
        """The object of line `number`, from 0; it appears behind those of the lines before."""
        self.failed += "error" in shown
        self._ready[number] = shown
        while (next_one := self._ready.pop(self._written, None)) is not None:
            print(compact(next_one), file=self._file, flush=True)
            self._written += 1

    def fail(self, number: int, error: DsliteError) -> None:
        self.put(number, error_object(self.ids[number], error))


def complete_batch(completer: CompletionBackend, lines: Sequence[str], output: Output) -> int:
    """Answer JSON lines; return the exit code. A bad line says so in its place, and the rest go on."""
    with Interruption() as interruption, open_output(output.file) as file:
        shown = _Lines(lines, file)
        answers: dict[int, Answer] = {}
        for number, line in enumerate(lines):
            try:
                item = _parse_line(line)
                shown.ids[number] = item.get("id", number + 1)
                completer.join(number, completer.request(_prompt(item), item))
                answers[number] = Answer()
            except DsliteError as error:
                shown.fail(number, error)
        for number, event in completer.together(interruption.flag):
            if isinstance(event, DsliteError):
                shown.fail(number, event)
                continue
            answers[number].add(event)
            if isinstance(event, Done):
                answer = answer_object(completer, answers.pop(number))
                shown.put(number, {"id": shown.ids[number], **answer})
    if shown.failed:
        console.warn(f"{shown.failed} of {len(lines)} lines failed; each says why in its place")
    return interruption.exit_code or 0


def _parse_line(line: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the line is not valid JSON: {error}") from None
    if not isinstance(item, dict):
        raise UsageError("the line is not a JSON object", 'write it as {"prompt": "…"}')
    profile = item.get("profile")
    return get_profile(profile).to_dict() | item if isinstance(profile, str) else item


def _prompt(item: dict[str, Any]) -> str | list[Message]:
    prompt, messages = item.get("prompt"), item.get("messages")
    if isinstance(prompt, str) and messages is None:
        if not prompt:
            raise UsageError("the prompt is empty")
        return prompt
    if isinstance(messages, list) and messages and prompt is None:
        return [Message.from_dict(message) for message in messages]
    raise UsageError("the line needs a prompt (text) or messages (a list), one of them")
