"""From a prompt to stdout."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from dslite.app.completion.autosave import ConversationSaver
from dslite.app.completion.output import (
    TextWriter,
    answer_object,
    compact,
    first_code_block,
    stats_line,
    token_object,
)
from dslite.app.completion.protocol import Answer, CompletionBackend
from dslite.app.terminal import console
from dslite.app.terminal.output_file import Output, open_output
from dslite.app.terminal.signals import Interruption
from dslite.runtime.errors import ContextFullError
from dslite.runtime.events import Done, Token
from dslite.runtime.text.chat_template import Message


@dataclass(frozen=True)
class Question:
    """What is asked, the messages before it, and the saved conversation `talk` that they belong to."""

    text: str
    before: Sequence[Message] = ()
    talk: str | None = None


@dataclass
class _CompletionProgress:
    """An answer on its way to the screen, to a file and into the database."""

    completer: CompletionBackend
    request: Any
    interruption: Interruption
    saving: ConversationSaver
    answer: Answer = field(default_factory=Answer)

    def events(self) -> Iterator[Token | Done]:
        for event in self.completer.stream(self.request, self.interruption.flag):
            self.answer.add(event)
            self.saving.grow(self.answer)
            yield event


def complete_one(completer: CompletionBackend, question: Question, output: Output, saving: ConversationSaver) -> int:
    """Answer a prompt; return the exit code."""
    before = question.before
    request = completer.request([*before, Message("user", question.text)] if before else question.text)
    completer.check(request)
    with Interruption() as interruption, open_output(output.file) as file:
        progress = _CompletionProgress(completer, request, interruption, saving)
        saving.begin(question.text, {"model": completer.key, "sampling": asdict(request.params)})
        if question.talk is not None:
            completer.resume(question.talk, request)
        try:
            write = _write_text if output.format == "text" else _write_json
            write(progress, output, file)
        finally:
            saving.finish(progress.answer)
        if saving.session is not None:
            completer.keep(saving.session)
    _tell_stats(completer, progress.answer, output)
    return interruption.exit_code or _exit_code(progress.answer)


def _write_text(progress: _CompletionProgress, output: Output, file: TextIO) -> None:
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


def _write_json(progress: _CompletionProgress, output: Output, file: TextIO) -> None:
    for event in progress.events():
        if output.format == "jsonl" and isinstance(event, Token):
            print(compact(token_object(event)), file=file, flush=output.stream)
    shown = answer_object(progress.completer, progress.answer, session=progress.saving.session)
    if output.extract:
        shown["text"] = first_code_block(progress.answer.text)
    print(compact(shown), file=file, flush=True)


def _exit_code(answer: Answer) -> int:
    return ContextFullError.exit_code if answer.done and answer.done.finish_reason == "context" else 0


def _tell_stats(completer: CompletionBackend, answer: Answer, output: Output) -> None:
    assert answer.done is not None
    if output.stats:
        print(stats_line(answer_object(completer, answer)), file=sys.stderr)
    if answer.done.finish_reason == "context":
        used = answer.done.prompt_tokens + answer.done.completion_tokens
        console.warn(f"the context of {used:,} tokens is full: the answer is cut")
