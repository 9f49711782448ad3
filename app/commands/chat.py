"""`dslite chat`: the terminal application, or with --plain a chat line by line."""

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from dslite.app.commands.command import flag, handles_signals
from dslite.app.commands.flags import AnswerFlags, ConversationFlags, EndpointFlags, EngineFlags, model_ref
from dslite.runtime.downloads.hub import locate
from dslite.runtime.errors import DsliteError, UsageError

if TYPE_CHECKING:
    from dslite.app.chat.launch import ChatLaunch
    from dslite.app.sessions.store import Conversation, SessionStore
    from dslite.app.settings.precedence import AnswerSettings

_CHAT_MODEL = "chat"


@handles_signals
def chat(
    *,
    plain: Annotated[bool, flag("--plain", help="Line by line: for screen readers and simple terminals.")] = False,
    engine: EngineFlags,
    server: EndpointFlags,
    answer: AnswerFlags,
    conversation: ConversationFlags,
) -> None:
    """Chat with a model in the terminal."""
    from dslite.app.settings.precedence import AnswerSettings, save_flags

    given = AnswerSettings(engine.model, system=answer.system_message(), sampling=answer.sampling())
    engine.options()  # a wrong flag is an error before anything starts
    save_flags(conversation.save_profile, given, conversation.profile)
    plain = plain or os.environ.get("TERM") in ("dumb", "")
    talk = _find(latest=conversation.continue_, id=conversation.session)
    start = _start(given, talk, engine, server, conversation)
    if not plain and not (sys.stdin.isatty() and sys.stderr.isatty()):
        if server.endpoint is None:
            locate(start.ref)  # a model that is absent is reported first: a terminal alone would not help
        raise UsageError("chat needs a terminal", "use dslite chat --plain, or dslite complete")
    if plain:
        from dslite.app.commands.model_prompt import ensure_model
        from dslite.app.plain.chat import run_plain

        if server.endpoint is None:
            start = replace(start, ref=ensure_model(start.ref, offline=engine.offline))
            start.settings.model = start.ref.name
        raise typer.Exit(run_plain(start))
    from dslite.app.tui.app import run_chat

    raise typer.Exit(run_chat(start))


def _find(*, latest: bool, id: str | None) -> "Conversation | None":
    """The conversation to go on with. Raises SessionsError, NotFoundError."""
    if not latest and id is None:
        return None
    from dslite.app.sessions.store import SessionStore

    with SessionStore.open() as store:
        return store.find(id) if id is not None else store.latest()


def _open_store() -> "SessionStore":
    from dslite.app.sessions.store import (
        SessionStore,  # by the writer's thread: the first picture does not wait for SQLite
    )

    return SessionStore.open()


def _start(
    given: "AnswerSettings",
    talk: "Conversation | None",
    engine: EngineFlags,
    server: EndpointFlags,
    conversation: ConversationFlags,
) -> "ChatLaunch":
    """What the chat starts with. A broken config.toml is a warning, and the chat starts without it."""
    from dslite.app.chat.autosave import ConversationWriter
    from dslite.app.chat.launch import ChatConfig, ChatLaunch
    from dslite.app.chat.model_loading import LocalModelLoader, RemoteModelLoader
    from dslite.app.chat.model_setup import FirstRun
    from dslite.app.chat.settings import ChatSettings
    from dslite.app.errors import ConfigFileError
    from dslite.app.settings.config_file import Config, config_path, read_config
    from dslite.app.settings.endpoint import find_served
    from dslite.app.settings.precedence import settle
    from dslite.app.settings.profiles import default_values

    profile, warnings = conversation.profile, list[DsliteError]()
    try:
        config: Config = read_config(report=lambda fault: warnings.append(ConfigFileError(fault)))
        made = settle(given, profile, talk, raw=False, config=config)
        defaults = default_values(config)
        chat_config = ChatConfig.of_config(config)
    except ConfigFileError as error:
        if profile is not None:
            raise
        warnings.append(error)
        made, defaults, chat_config = given, {}, ChatConfig.of_config(Config(config_path(), {}))
    served = find_served(server.endpoint, server.endpoint_key_env, given.model, made.model)
    ref = served.ref if served else model_ref(made.model or _CHAT_MODEL, engine.revision)
    settings = ChatSettings(
        model=ref.name,
        profile=made.profile,
        chosen=dict(given.sampling),
        defaults=defaults,
        system=None if made.system == made.profile.system else made.system or "",
    )
    identity = talk.id if talk is not None else None
    return ChatLaunch(
        ref=ref,
        settings=settings,
        loader=RemoteModelLoader(served) if served else LocalModelLoader(engine.options()),
        writer=ConversationWriter(_open_store, saving=not conversation.no_save),
        resume=(lambda _: identity) if identity else None,
        config=chat_config,
        first_run=FirstRun.of(offline=engine.offline),
        warnings=warnings,
    )
