"""From a prompt, or a batch of them, to stdout."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from dslite.app import console
from dslite.app.completer import Answer, Completer
from dslite.app.interruption import Interruption
from dslite.app.results import (
    TextWriter,
    answer_object,
    compact,
    error_object,
    first_code_block,
    stats_line,
    token_object,
)
from dslite.model.errors import DsliteError
from dslite.runtime.chat_template import Message
from dslite.runtime.engine import Request
from dslite.runtime.errors import ContextFullError, UsageError


@dataclass(frozen=True)
class Output:
    """As what an answer is written, and where to (None: stdout)."""

    format: str  # text, json or jsonl
    file: Path | None = None
    stream: bool = True
    extract: bool = False
    stats: bool = False


def complete_one(completer: Completer, prompt: str, output: Output) -> int:
    """Answer a prompt; return the exit code."""
    request = completer.request(prompt)
    with Interruption() as interruption, _open(output.file) as file:
        answer = Answer()
        write = _write_text if output.format == "text" else _write_json
        write(completer, request, answer, interruption, output, file)
    _tell_stats(completer, answer, output)
    return interruption.exit_code or _exit_code(answer)


def _write_text(
    completer: Completer, request: Request, answer: Answer, interruption: Interruption, output: Output, file: TextIO
) -> None:
    writer = TextWriter(file)
    streams = output.stream and not output.extract
    try:
        for event in completer.stream(request, interruption.flag):
            answer.add(event)
            if streams:
                writer.write(event.delta)
        if not streams:
            writer.write(first_code_block(answer.text) if output.extract else answer.text)
    finally:
        writer.end()


def _write_json(
    completer: Completer, request: Request, answer: Answer, interruption: Interruption, output: Output, file: TextIO
) -> None:
    for event in completer.stream(request, interruption.flag):
        answer.add(event)
        if output.format == "jsonl" and answer.done is None:
            print(compact(token_object(answer.tokens[-1])), file=file, flush=output.stream)
    shown = answer_object(completer, answer)
    if output.extract:
        shown["text"] = first_code_block(answer.text)
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
    with Interruption() as interruption, _open(output.file) as file:
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


@contextmanager
def _open(file: Path | None) -> Iterator[TextIO]:
    """stdout, or a file that appears whole when all is written."""
    if file is None:
        yield sys.stdout
        return
    try:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as stream:
            temporary = Path(stream.name)
            try:
                yield stream  # type: ignore[misc]
                stream.flush()
                os.fsync(stream.fileno())
            except BaseException:
                temporary.unlink()
                raise
        temporary.replace(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}", "choose another --output-file") from None
