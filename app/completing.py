"""From a prompt, or a batch of them, to stdout."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from dslite.app import console
from dslite.app.completer import Answer, Completer
from dslite.app.interruption import Interruption
from dslite.app.output_file import Output, open_output
from dslite.app.profiles import get_profile
from dslite.app.results import (
    TextWriter,
    answer_object,
    compact,
    error_object,
    first_code_block,
    stats_line,
    token_object,
)
from dslite.app.saving import Saving
from dslite.model.errors import DsliteError
from dslite.runtime.chat_template import Message
from dslite.runtime.engine import Request
from dslite.runtime.errors import ContextFullError, UsageError
from dslite.runtime.events import Done, Token


@dataclass(frozen=True)
class Question:
    """What is asked, and the messages before it."""

    text: str
    before: Sequence[Message] = ()


@dataclass
class _Progress:
    """An answer on its way to the screen, to a file and into the database."""

    completer: Completer
    request: Request
    interruption: Interruption
    saving: Saving
    answer: Answer = field(default_factory=Answer)

    def events(self) -> Iterator[Token | Done]:
        for event in self.completer.stream(self.request, self.interruption.flag):
            self.answer.add(event)
            self.saving.grow(self.answer)
            yield event


def complete_one(completer: Completer, question: Question, output: Output, saving: Saving) -> int:
    """Answer a prompt; return the exit code."""
    before = question.before
    request = completer.request([*before, Message("user", question.text)] if before else question.text)
    completer.engine.check_fits(request)
    with Interruption() as interruption, open_output(output.file) as file:
        progress = _Progress(completer, request, interruption, saving)
        saving.begin(question.text, {"model": completer.key, "sampling": asdict(request.params)})
        try:
            write = _write_text if output.format == "text" else _write_json
            write(progress, output, file)
        finally:
            saving.finish(progress.answer)
    _tell_stats(completer, progress.answer, output)
    return interruption.exit_code or _exit_code(progress.answer)


def _write_text(progress: _Progress, output: Output, file: TextIO) -> None:
    writer = TextWriter(file)
    streams = output.stream and not output.extract
    try:
        for event in progress.events():
            if streams:
                writer.write(event.delta)
        if not streams:
            text = progress.answer.text
            writer.write(first_code_block(text) if output.extract else text)
    finally:
        writer.end()


def _write_json(progress: _Progress, output: Output, file: TextIO) -> None:
    for event in progress.events():
        if output.format == "jsonl" and isinstance(event, Token):
            print(compact(token_object(event)), file=file, flush=output.stream)
    shown = answer_object(progress.completer, progress.answer, session=progress.saving.session)
    if output.extract:
        shown["text"] = first_code_block(progress.answer.text)
    print(compact(shown), file=file, flush=True)


def _exit_code(answer: Answer) -> int:
    return ContextFullError.exit_code if answer.done and answer.done.finish_reason == "context" else 0


def _tell_stats(completer: Completer, answer: Answer, output: Output) -> None:
    assert answer.done is not None
    if output.stats:
        print(stats_line(answer_object(completer, answer)), file=sys.stderr)
    if answer.done.finish_reason == "context":
        console.warn(f"the context of {completer.engine.context:,} tokens is full: the answer is cut")


def complete_batch(completer: Completer, lines: Sequence[str], output: Output) -> int:
    """Answer JSON lines, one object a line in the same order; return the exit code."""
    failed = 0
    with Interruption() as interruption, open_output(output.file) as file:
        for number, line in enumerate(lines, start=1):
            if interruption.flag.is_set():
                break
            shown = _answer_line(completer, number, line, interruption)
            failed += "error" in shown
            print(compact(shown), file=file, flush=True)
    if failed:
        console.warn(f"{failed} of {len(lines)} lines failed; each says why in its place")
    return interruption.exit_code or 0


def _answer_line(completer: Completer, number: int, line: str, interruption: Interruption) -> dict[str, Any]:
    identity: Any = number
    try:
        item = _parse_line(line)
        identity = item.get("id", number)
        if isinstance(item.get("profile"), str):
            item = get_profile(item["profile"]).to_dict() | item
        request = completer.request(_batch_prompt(item), item)
        answer = Answer()
        for event in completer.stream(request, interruption.flag):
            answer.add(event)
        return {"id": identity, **answer_object(completer, answer)}
    except DsliteError as error:
        return error_object(identity, error)


def _parse_line(line: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the line is not valid JSON: {error}") from None
    if not isinstance(item, dict):
        raise UsageError("the line is not a JSON object", 'write it as {"prompt": "…"}')
    return item


def _batch_prompt(item: dict[str, Any]) -> str | list[Message]:
    prompt, messages = item.get("prompt"), item.get("messages")
    if isinstance(prompt, str) and messages is None:
        if not prompt:
            raise UsageError("the prompt is empty")
        return prompt
    if isinstance(messages, list) and messages and prompt is None:
        return [Message.from_dict(message) for message in messages]
    raise UsageError("the line needs a prompt (text) or messages (a list), one of them")
