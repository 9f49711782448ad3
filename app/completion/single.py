"""One answer: from a prompt to stdout or a file, to the saved conversation, and to an exit code."""

import sys
from dataclasses import asdict

from dslite.app.completion.autosave import ConversationSaver
from dslite.app.completion.output import (
    JsonWriter,
    NoCodeBlockError,
    OutputOptions,
    TextWriter,
    answer_object,
    stats_line,
)
from dslite.app.completion.protocol import Answer, CompletionBackend, RequestT
from dslite.app.terminal import console
from dslite.app.terminal.output_file import open_output
from dslite.app.terminal.signals import Interruption
from dslite.runtime.errors import ContextFullError
from dslite.runtime.text.message import Message


def complete_one(
    backend: CompletionBackend[RequestT],
    question: str,
    output: OutputOptions,
    conversation: ConversationSaver,
    interruption: Interruption,
) -> int:
    """Answer a question at the end of a conversation; return the exit code."""
    before = conversation.messages
    request = backend.request([*before, Message("user", question)] if before else question)
    backend.check_fits(request)
    answer, code = Answer(), 0
    interruption.protect()
    with open_output(output.file, interruption) as file:
        if not interruption.flag.is_set():  # as it may be since the model was loaded
            conversation.begin(
                question, {"model": backend.key, "weights": backend.weights, "sampling": asdict(request.params)}
            )
        if conversation.continued is not None:
            backend.resume(conversation.continued, request)
        is_text = output.format == "text"
        writer = TextWriter(file, output) if is_text else JsonWriter(file, output, backend)
        try:
            for event in backend.stream(request, interruption.flag):
                answer.add(event)
                conversation.grow(answer)
                writer.add(event)
            conversation.finish(answer)
            writer.finish(answer, conversation.session)
        except NoCodeBlockError as error:
            console.show_error(error)
            code = error.exit_code
        finally:
            conversation.finish(answer)
            writer.close()
        if conversation.session is not None:
            backend.keep(conversation.session)
    if output.stats:
        print(stats_line(answer_object(backend, answer)), file=sys.stderr)
    _warn(answer, output)
    full = answer.done is not None and answer.done.finish_reason == "context"
    if request.params.constraint is not None and answer.done is not None and answer.done.finish_reason == "length":
        console.warn("the answer was cut before its shape was whole: raise --max-tokens")
        code = code or 1
    return interruption.exit_code or (ContextFullError.exit_code if full else code)


def _warn(answer: Answer, output: OutputOptions) -> None:
    """Report an answer that is cut or empty."""
    assert answer.done is not None
    if answer.done.finish_reason == "context":
        used = answer.done.prompt_tokens + answer.done.completion_tokens
        console.warn(f"the context of {used:,} tokens is full: the answer is cut")
    elif not answer.text and not output.extract and answer.done.finish_reason != "interrupted":
        console.warn("the answer is empty")
