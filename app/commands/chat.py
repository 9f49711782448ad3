"""`dslite chat`: the terminal application, or with --plain a chat line by line."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from dslite.app.commands.command import flag, handles_signals
from dslite.app.commands.flags import AnswerFlags, ConversationFlags, EndpointFlags, EngineFlags, WarmFlags, model_ref
from dslite.app.commands.packing import ensure_packed
from dslite.app.terminal.questions import can_ask
from dslite.runtime.downloads.packed import locate_weights, source_folder
from dslite.runtime.errors import DsliteError, UsageError

if TYPE_CHECKING:
    from dslite.app.chat.launch import ChatLaunch
    from dslite.app.sessions.store import Conversation, SessionStore
    from dslite.app.settings.config_file import Config
    from dslite.app.settings.precedence import AnswerSettings

_CHAT_MODEL = "chat"


@handles_signals
def chat(
    *,
    plain: Annotated[bool, flag("--plain", help="Line by line: for screen readers and simple terminals.")] = False,
    engine: EngineFlags,
    warm: WarmFlags,
    server: EndpointFlags,
    answer: AnswerFlags,
    conversation: ConversationFlags,
) -> None:
    """Chat with a model in the terminal."""
    from dslite.app.chat.model_loading import LocalModelLoader
    from dslite.app.settings.precedence import save_flags

    given = answer.settings(engine.model, engine.weights_given)
    engine.options()  # a wrong flag is an error before anything starts
    save_flags(conversation.save_profile, given, conversation.profile)
    plain = plain or os.environ.get("TERM") in ("dumb", "")
    start = _start(given, _find(conversation), engine, warm, server, conversation)
    options = start.loader.engine_options if isinstance(start.loader, LocalModelLoader) else None
    if not plain and not can_ask():
        if options is not None:
            # A model that is absent is reported first: a terminal alone would not help.
            locate_weights(start.ref, options.weights)
        raise UsageError("chat needs a terminal", "use dslite chat --plain, or dslite complete")
    if plain:
        from dslite.app.commands.model_prompt import ensure_model
        from dslite.app.plain.chat import run_plain

        if options is not None:
            start = replace(start, ref=ensure_model(start.ref, offline=engine.offline, weights=options.weights))
            start.settings.model = start.ref.name
            ensure_packed(start.ref, options, yes=engine.yes)
        raise typer.Exit(run_plain(start))
    if options is not None and source_folder(start.ref) is not None:
        ensure_packed(start.ref, options, yes=engine.yes)
    from dslite.app.tui.app import run_chat

    raise typer.Exit(run_chat(start))


def _find(flags: ConversationFlags) -> "Conversation | None":
    """The conversation to go on with. Raises SessionsError, NotFoundError."""
    if not flags.continues:
        return None
    with _open_store() as store:
        return flags.find(store)


def _open_store() -> "SessionStore":
    # Imported by the writer's thread, so that the first picture does not wait for SQLite.
    from dslite.app.sessions.store import SessionStore

    return SessionStore.open()


def _read_config(*, required: bool) -> "tuple[Config, list[DsliteError]]":
    """config.toml and what is wrong in it. A broken file is a warning too, except where it is `required`.

    Raises ConfigFileError.
    """
    from dslite.app.errors import ConfigFileError
    from dslite.app.settings.config_file import Config, config_path, read_config

    warnings: list[DsliteError] = []
    try:
        return read_config(report=lambda fault: warnings.append(ConfigFileError(fault))), warnings
    except ConfigFileError as error:
        if required:
            raise
        return Config(config_path(), {}), [error]


def _start(
    given: "AnswerSettings",
    earlier: "Conversation | None",
    engine: EngineFlags,
    warm: WarmFlags,
    server: EndpointFlags,
    conversation: ConversationFlags,
) -> "ChatLaunch":
    """What the chat starts with. Raises NotFoundError, UsageError, ConfigFileError, ModelUnavailableError."""
    from dslite.app.chat.autosave import ConversationWriter
    from dslite.app.chat.launch import ChatConfig, ChatLaunch
    from dslite.app.chat.model_loading import LocalModelLoader, RemoteModelLoader, WarmUse
    from dslite.app.chat.model_setup import FirstRun
    from dslite.app.chat.settings import ChatSettings
    from dslite.app.settings.endpoint import find_served
    from dslite.app.settings.precedence import keep_alive, settle
    from dslite.app.settings.profiles import default_values

    config, warnings = _read_config(required=conversation.profile is not None)
    settled = settle(given, conversation.profile, earlier, raw=False, config=config)
    use = None if warm.no_warm else WarmUse(keep_alive(config), private=conversation.no_save)
    served = find_served(server.endpoint, server.endpoint_key_env, given.model, settled.model)
    ref = served.ref if served else model_ref(settled.model or _CHAT_MODEL, engine.revision)
    settings = ChatSettings(
        model=ref.name,
        profile=settled.profile,
        chosen=dict(given.sampling),
        defaults=default_values(config),
        system=None if settled.system == settled.profile.system else settled.system or "",
    )
    return ChatLaunch(
        ref=ref,
        settings=settings,
        loader=RemoteModelLoader(served) if served else LocalModelLoader(engine.options(settled.weights), use),
        writer=ConversationWriter(_open_store, saving=not conversation.no_save),
        resume=None if earlier is None else lambda _: earlier.id,
        config=ChatConfig.of_config(config),
        first_run=FirstRun.of(offline=engine.offline),
        warnings=warnings,
    )
