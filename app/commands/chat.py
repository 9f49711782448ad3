"""`dslite chat`: the terminal application, or with --plain a chat line by line."""

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslite.app.commands import flags
from dslite.app.commands.flags import flag, system_message
from dslite.app.settings.sampling import chosen
from dslite.runtime.downloads.hub import locate, parse_model
from dslite.runtime.errors import DsliteError, UsageError

if TYPE_CHECKING:
    from dslite.app.chat.launch import ChatLaunch
    from dslite.app.sessions.store import Conversation, SessionStore

_CHAT_MODEL = "chat"


def chat(
    *,
    plain: Annotated[bool, flag("--plain", help="Line by line: for screen readers and simple terminals.")] = False,
    model: flags.Model = None,
    revision: flags.Revision = None,
    device: flags.Device = "auto",
    dtype: flags.Dtype = "bfloat16",
    ctx_size: flags.CtxSize = None,
    threads: flags.Threads = None,
    offline: flags.Offline = False,
    vram: flags.Vram = None,
    ram: flags.Ram = None,
    expert_slots: flags.ExpertSlots = None,
    miss: flags.Miss = "auto",
    endpoint: flags.Endpoint = None,
    endpoint_key_env: flags.EndpointKeyEnv = None,
    system: flags.System = None,
    system_file: flags.SystemFile = None,
    profile: flags.Profile = None,
    save_profile: flags.SaveProfile = None,
    continue_: flags.Continue = False,
    session: flags.Session = None,
    no_save: flags.NoSave = False,
    temperature: flags.Temperature = None,
    top_p: flags.TopP = None,
    top_k: flags.TopK = None,
    min_p: flags.MinP = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    seed: flags.Seed = None,
    max_tokens: flags.MaxTokens = None,
    stop: flags.Stop = None,
) -> None:
    """Chat with a model in the terminal."""
    from dslite.app.settings.precedence import AnswerSettings, as_profile
    from dslite.app.settings.profiles import save_profile as keep_profile

    sampling = chosen(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        max_tokens=max_tokens,
        stop=stop,
    )
    given = AnswerSettings(model, system=system_message(system, system_file), sampling=sampling)
    if continue_ and session is not None:
        raise UsageError("--session does not go with --continue", "leave one of them out")
    if save_profile is not None:
        keep_profile(as_profile(save_profile, given, profile))
    plain = plain or os.environ.get("TERM") in ("dumb", "")
    talk = _find(latest=continue_, id=session)
    engine_options = {"device": device, "dtype": dtype, "ctx_size": ctx_size, "threads": threads, "offline": offline}
    engine_options |= flags.placing(vram, ram, expert_slots, miss)
    start = _start(
        given, profile, talk, revision, engine_options, saving=not no_save, server=(endpoint, endpoint_key_env)
    )
    if not plain and not (sys.stdin.isatty() and sys.stderr.isatty()):
        if endpoint is None:
            locate(start.ref)  # a model that is absent is told first: a terminal alone would not help
        raise UsageError("chat needs a terminal", "use dslite chat --plain, or dslite complete")
    if plain:
        from dslite.app.commands.model_prompt import ensure_model
        from dslite.app.plain.chat import run_plain

        if endpoint is None:
            start = replace(start, ref=ensure_model(start.ref, offline=offline))
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
        SessionStore,  # by the recorder's thread: the first picture does not wait for SQLite
    )

    return SessionStore.open()


def _start(
    given: Any,
    profile: str | None,
    talk: "Conversation | None",
    revision: str | None,
    engine_options: dict[str, Any],
    *,
    saving: bool,
    server: tuple[str | None, str | None],
) -> "ChatLaunch":
    """Put together with what the chat begins. A broken config.toml is told, and the chat goes on without it."""
    from dslite.app.chat.autosave import ConversationWriter
    from dslite.app.chat.launch import ChatConfig, ChatLaunch
    from dslite.app.chat.model_loading import opener, remote_opener
    from dslite.app.chat.model_setup import FirstRun
    from dslite.app.chat.settings import ChatSettings
    from dslite.app.errors import ConfigFileError
    from dslite.app.settings.config_file import Config, config_path, read_config
    from dslite.app.settings.endpoint import find_served
    from dslite.app.settings.precedence import settle
    from dslite.app.settings.profiles import default_values

    warnings: list[DsliteError] = []
    try:
        config: Config = read_config()
        made = settle(given, profile, talk, raw=False)
        defaults = default_values(config)
        looks = ChatConfig.of_config(config)
    except ConfigFileError as error:
        if profile is not None:
            raise
        warnings.append(error)
        made, defaults, looks = given, {}, ChatConfig.of_config(Config(config_path(), {}))
    served = find_served(*server, given.model, made.model)
    ref = served.ref if served else parse_model(made.model or _CHAT_MODEL, revision)
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
        open_model=remote_opener(served) if served else opener(engine_options),
        recorder=ConversationWriter(_open_store, saving=saving),
        resume=(lambda _: identity) if identity else None,
        looks=looks,
        first_run=FirstRun.of(offline=engine_options["offline"]),
        warnings=warnings,
    )
