"""`dslite complete`: one answer on stdout, then exit."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dslite.app.commands import flags
from dslite.app.commands.flags import flag, system_message
from dslite.app.commands.model_prompt import ensure_model
from dslite.app.commands.prompt_input import read_batch, read_prompt
from dslite.app.settings.endpoint import RemoteModelRef, find_served
from dslite.app.settings.sampling import chosen
from dslite.app.terminal.output_file import Output, check_output
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.errors import UsageError

if TYPE_CHECKING:
    from dslite.app.completion.protocol import CompletionBackend, CompletionOptions
    from dslite.app.sessions.store import Conversation, SessionStore
    from dslite.app.settings.precedence import AnswerSettings


def complete(
    words: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]", help="The prompt; - reads stdin.")] = None,
    *,
    prompt: Annotated[str | None, flag("--prompt", "-p", help="The prompt.")] = None,
    file: Annotated[list[Path] | None, flag("--file", "-f", help="Put a file before the prompt (repeatable).")] = None,
    raw: Annotated[bool, flag("--raw", help="Complete the text itself, without the chat template.")] = False,
    no_bos: Annotated[bool, flag("--no-bos", help="With --raw: no begin-of-sentence token.")] = False,
    output: Annotated[str, flag("--output", "-o", help="text, json or jsonl.")] = "text",
    as_json: flags.AsJson = False,
    output_file: Annotated[Path | None, flag("--output-file", help="Write the answer into a file.")] = None,
    no_stream: Annotated[bool, flag("--no-stream", help="Print the answer at its end.")] = False,
    extract: Annotated[bool, flag("--extract", "-x", help="Print only the first fenced code block.")] = False,
    stats: Annotated[bool, flag("--stats", help="Speeds, to stderr.")] = False,
    logprobs: Annotated[int | None, flag("--logprobs", help="Log-probabilities and the K best; 0: own only.")] = None,
    echo: Annotated[bool, flag("--echo", help="The prompt's tokens first.")] = False,
    batch: Annotated[str | None, flag("--batch", help="JSON lines in, JSON lines out; - is stdin.")] = None,
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
    temperature: flags.Temperature = None,
    top_p: flags.TopP = None,
    top_k: flags.TopK = None,
    min_p: flags.MinP = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    seed: flags.Seed = None,
    max_tokens: flags.MaxTokens = None,
    stop: flags.Stop = None,
    profile: flags.Profile = None,
    save_profile: flags.SaveProfile = None,
    continue_: flags.Continue = False,
    session: flags.Session = None,
    no_save: flags.NoSave = False,
) -> None:
    """Answer one prompt on stdout."""
    from dslite.app.settings.precedence import AnswerSettings, as_profile, settle
    from dslite.app.settings.profiles import save_profile as keep_profile

    # Whatever can be wrong with the request is found before torch is imported: an error should not take seconds.
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
    if logprobs is not None and not 0 <= logprobs <= 20:
        raise UsageError(f"--logprobs is {logprobs}; it must be from 0 to 20")
    placement = flags.placing(vram, ram, expert_slots, miss)
    given = AnswerSettings(model, system=system_message(system, system_file), sampling=sampling)
    output_kind = "json" if as_json else output
    where = Output(output_kind, file=output_file, stream=not no_stream, extract=extract, stats=stats)
    check_output(output_file)
    goes_on = {"--continue": continue_, "--session": session is not None}
    _refuse_together("--session", session is not None, {"--continue": continue_})
    _refuse_together("--raw", raw, {"--system": given.system is not None} | goes_on)
    _refuse_together("--batch", batch is not None, {"a prompt": bool(words or prompt or file)} | goes_on)
    if save_profile is not None:
        keep_profile(as_profile(save_profile, given, profile))
    lines = None if batch is None else read_batch(batch)
    empty = (prompt is not None and raw and not no_bos) or save_profile is not None
    text = read_prompt(words or [], prompt, file or [], may_be_empty=empty) if lines is None else ""
    if save_profile is not None and lines is None and not text:
        return
    saves = lines is None and not raw and not no_save
    store, talk = _open_conversation(saves=saves, latest=continue_, id=session)
    with store or nullcontext():
        made_with = settle(given, profile, talk, raw=raw)
        served = find_served(endpoint, endpoint_key_env, model, made_with.model)
        named = parse_model(made_with.model or ("base" if raw else "chat"), revision)
        ref = served.ref if served else ensure_model(named, offline=offline)
        asked = _Asked(lines if lines is not None else text, made_with, where, store, talk, saves=saves)
        style = {"raw": raw, "bos": not no_bos, "logprobs": logprobs, "echo": echo}
        engine = {"device": device, "dtype": dtype, "ctx_size": ctx_size, "threads": threads, "offline": offline}
        raise typer.Exit(_answer(asked, ref, style, engine | placement, served))


@dataclass(frozen=True)
class _Asked:
    """A prompt or the lines of a batch, with what and into what the answer is made."""

    prompt: str | list[str]
    made_with: "AnswerSettings"
    output: Output
    store: "SessionStore | None"
    talk: "Conversation | None"
    saves: bool


def _answer(
    asked: _Asked, ref: ModelRef, style: dict[str, Any], engine_options: dict[str, Any], served: RemoteModelRef | None
) -> int:
    """Load the model, or turn to the server, and answer; return the exit code."""
    from dslite.app.completion.autosave import ConversationSaver
    from dslite.app.completion.batch import complete_batch
    from dslite.app.completion.protocol import CompletionOptions
    from dslite.app.completion.single import Question, complete_one

    made_with, store, talk = asked.made_with, asked.store, asked.talk
    drawn = CompletionOptions(made_with.sampling, system=made_with.system, **style)
    completer = _completer(ref, drawn, engine_options, served)
    if not isinstance(asked.prompt, str):
        return complete_batch(completer, asked.prompt, asked.output)
    branch = [] if store is None or talk is None else store.path(talk.leaf)
    question = Question(asked.prompt, [message.to_message(ref.key) for message in branch], talk.id if talk else None)
    saving = ConversationSaver(
        store if asked.saves else None, talk, model=ref.key, profile=made_with.profile.name, system=made_with.system
    )
    return complete_one(completer, question, asked.output, saving)


def _completer(
    ref: ModelRef, style: "CompletionOptions", engine_options: dict[str, Any], served: RemoteModelRef | None
) -> "CompletionBackend":
    if served is not None:
        from dslite.app.completion.remote import RemoteCompletion

        return RemoteCompletion(served, style)
    from dslite.app.completion.local import LocalCompletion
    from dslite.runtime.open_engine import EngineOptions

    return LocalCompletion.open(ref, style, EngineOptions(**engine_options))


def _refuse_together(name: str, given: bool, others: dict[str, bool]) -> None:
    for other, also_given in others.items():
        if given and also_given:
            raise UsageError(f"{name} does not go with {other}", "leave one of them out")


def _open_conversation(
    *, saves: bool, latest: bool, id: str | None
) -> "tuple[SessionStore | None, Conversation | None]":
    """The store, and the conversation to go on with; with -c there may be none yet.

    A store that only was to save may fail: the answer counts for more. Raises SessionsError, NotFoundError.
    """
    from dslite.app.sessions.store import SessionsError, SessionStore
    from dslite.app.terminal import console

    if not (saves or latest or id is not None):
        return None, None
    try:
        store = SessionStore.open()
    except SessionsError as error:
        if latest or id is not None:
            raise
        console.warn(f"the conversation is not saved: {error.message}")
        return None, None
    if id is not None:
        return store, store.find(id)
    return store, store.latest() if latest else None
