"""`dslite complete`: one answer on stdout, then exit."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslite.app.commands.command import Excludes, flag, handles_signals, rules
from dslite.app.commands.flags import (
    AnswerFlags,
    BatchFlags,
    ConversationFlags,
    EndpointFlags,
    EngineFlags,
    OutputFlags,
    PromptFlags,
    WarmFlags,
    model_ref,
)
from dslite.app.commands.model_prompt import ensure_model
from dslite.app.commands.packing import ensure_packed
from dslite.app.commands.prompt_input import ANY_MODEL, PromptText, prompt_limit, read_prompt
from dslite.app.settings.endpoint import RemoteModelRef, find_served
from dslite.app.terminal.signals import Interruption
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.downloads.packed import locate_weights
from dslite.runtime.engine_options import EngineOptions, check_whole
from dslite.runtime.text.prompt_limit import ByteLimit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dslite.app.completion.protocol import CompletionBackend, CompletionOptions
    from dslite.app.sessions.store import Conversation, SessionStore
    from dslite.app.settings.precedence import AnswerSettings
    from dslite.runtime.text.message import Message

_MOST_LOGPROBS = 20
_GRACE_S = 0.8  # after a signal, while the model is loaded


@handles_signals
@rules(
    Excludes("words", ("prompt",), "the prompt is given twice, as words and with --prompt"),
    Excludes("batch", ("words", "prompt", "file", "continue_", "session")),
    Excludes("dry_run", ("batch", "endpoint")),
)
def complete(
    words: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]", help="The prompt; - reads stdin.")] = None,
    *,
    source: PromptFlags,
    output: OutputFlags,
    logprobs: Annotated[int | None, flag("--logprobs", help="Log-probabilities and the K best; 0: own only.")] = None,
    echo: Annotated[bool, flag("--echo", help="The prompt's tokens first.")] = False,
    no_schema_prompt: Annotated[
        bool, flag("--no-schema-prompt", help="Do not tell the model the answer's schema or grammar.")
    ] = False,
    dry_run: Annotated[bool, flag("--dry-run", help="Count the prompt's tokens; load nothing else.")] = False,
    batch: BatchFlags,
    engine: EngineFlags,
    warm: WarmFlags,
    server: EndpointFlags,
    answer: AnswerFlags,
    conversation: ConversationFlags,
) -> None:
    """Answer one prompt on stdout.

    Piped text goes before the prompt; --no-stdin or </dev/null where there is none.
    """
    from dslite.app.completion.autosave import ConversationSaver
    from dslite.app.completion.protocol import CompletionOptions
    from dslite.app.settings.precedence import save_flags, settle

    with Interruption(grace_s=_GRACE_S) as interruption:
        # Errors of the request are found before torch is imported, which takes seconds.
        check_whole("--logprobs", logprobs, 0, _MOST_LOGPROBS)
        given = answer.settings(engine.model, engine.weights_given)
        options, target = engine.options(), output.target()
        saves_profile = save_flags(conversation.save_profile, given, conversation.profile)
        lines = batch.lines(stdin=not source.no_stdin)
        prompt = PromptText()
        if lines is None:
            prompt = read_prompt(
                words or [],
                source.prompt,
                source.file or [],
                limit=lambda: _limit(given, source, engine, server, conversation),
                stdin=not source.no_stdin,
                may_be_empty=source.may_be_empty or saves_profile,
            )
            if saves_profile and not prompt.text:
                return
        saves = lines is None and not source.raw and not conversation.no_save
        store, earlier = _open_conversation(conversation, saves=saves)
        with store or nullcontext(), batch.opened(target.file) as batch_options:
            settings = settle(given, conversation.profile, earlier, raw=source.raw)
            served = find_served(server.endpoint, server.endpoint_key_env, engine.model, settings.model)
            named = model_ref(settings.model or source.default_model, engine.revision)
            options = replace(options, weights=settings.weights or "bfloat16")
            prompts = CompletionOptions(
                settings.sampling,
                raw=source.raw,
                bos=not source.no_bos,
                parse_special=source.parse_special,
                system=settings.system,
                logprobs=logprobs,
                echo=echo,
                tells_constraint=not no_schema_prompt,
            )
            if dry_run:
                before = ConversationSaver(store, earlier, saves=False, model=named.key, settings=settings).messages
                raise typer.Exit(_dry_run(named, options, prompts, prompt, before, as_json=target.format != "text"))
            ref = served.ref if served else ensure_model(named, offline=engine.offline, weights=options.weights)
            if served is None:
                ensure_packed(ref, options, yes=engine.yes)

            from dslite.app.completion.batch import complete_batch
            from dslite.app.completion.single import complete_one

            backend = None
            if served is None and not warm.no_warm:
                backend = _warm_backend(ref, prompts, options, private=conversation.no_save)
            backend = backend or _backend(ref, prompts, options, served)
            if lines is not None:
                raise typer.Exit(complete_batch(backend, lines, target, interruption, batch_options))
            saver = ConversationSaver(store, earlier, saves=saves, model=ref.key, settings=settings)
            raise typer.Exit(complete_one(backend, prompt.text, target, saver, interruption))


def _dry_run(
    ref: ModelRef,
    engine_options: EngineOptions,
    options: "CompletionOptions",
    prompt: PromptText,
    before: "Sequence[Message]",
    *,
    as_json: bool,
) -> int:
    """Print how many tokens the prompt has; return the exit code."""
    from dslite.app.completion.dry_run import count_tokens, print_counts
    from dslite.runtime.downloads.model_config import config_of
    from dslite.runtime.planning.placement import pick_context

    folder = locate_weights(ref, engine_options.weights)
    context = pick_context(engine_options.ctx_size, config_of(ref, offline=True))
    found = count_tokens(folder, options, prompt.text, prompt.files, before=before, context=context)
    print_counts(found, as_json=as_json)
    return found.exit_code


def _limit(
    given: "AnswerSettings",
    source: PromptFlags,
    engine: EngineFlags,
    server: EndpointFlags,
    conversation: ConversationFlags,
) -> ByteLimit:
    """The most that a prompt may have, as far as it is known before a conversation is read and the model is loaded."""
    from dslite.app.settings.precedence import settle

    if server.endpoint is not None or conversation.continues:
        return ANY_MODEL
    settings = settle(given, conversation.profile, None, raw=source.raw)
    return prompt_limit(model_ref(settings.model or source.default_model, engine.revision), engine.ctx_size)


def _warm_backend(
    ref: ModelRef, options: "CompletionOptions", engine_options: EngineOptions, *, private: bool
) -> "CompletionBackend[Any] | None":
    """The warm engine; None where this process is to compute."""
    from dslite.app.completion.warm import WarmCompletion, find_warm
    from dslite.app.settings.precedence import keep_alive

    found = find_warm(ref, engine_options, keep_alive_s=keep_alive())
    if found is None:
        return None
    client, load_s = found
    return WarmCompletion(client, ref, options, engine_options, private=private, load_s=load_s)


def _backend(
    ref: ModelRef, options: "CompletionOptions", engine_options: EngineOptions, served: RemoteModelRef | None
) -> "CompletionBackend[Any]":
    if served is not None:
        from dslite.app.completion.remote import RemoteCompletion

        return RemoteCompletion(served, options)
    # In a fresh thread: CPython keeps frames in chunks of 16 KiB, and where torch's deep imports cross the end of one
    # it is mapped and unmapped each time. From here that is 4,600 times, 40 ms of a start; in a thread 900 times.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(import_module, "torch").result()
    from dslite.app.completion.local import LocalCompletion

    return LocalCompletion.open(ref, options, engine_options)


def _open_conversation(flags: ConversationFlags, *, saves: bool) -> "tuple[SessionStore | None, Conversation | None]":
    """The store, and the conversation to go on with; with -c there may be none yet.

    A store that is needed for saving alone may fail: the answer counts for more. Raises SessionsError, NotFoundError.
    """
    from dslite.app.sessions.store import SessionsError, SessionStore
    from dslite.app.terminal import console

    if not saves and not flags.continues:
        return None, None
    try:
        store = SessionStore.open()
    except SessionsError as error:
        if flags.continues:
            raise
        console.warn(f"the conversation is not saved: {error.message}")
        return None, None
    return store, flags.find(store)
