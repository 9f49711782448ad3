"""The groups of flags that commands share, and what they become. `command` expands them into a command's signature."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from dslite.app.commands import completion_values as complete
from dslite.app.commands.command import Describes, Excludes, Needs, Rule, flag
from dslite.app.commands.prompt_input import ANY_MODEL
from dslite.app.terminal.streams import decode, read_file
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.engine_options import (
    DTYPES,
    MISS_POLICIES,
    WEIGHTS,
    Dtype,
    EngineOptions,
    MissPolicy,
    Weights,
    check_choice,
)
from dslite.runtime.errors import UsageError
from dslite.runtime.units import parse_size

if TYPE_CHECKING:
    from dslite.app.completion.batch import BatchOptions
    from dslite.app.completion.output import OutputOptions
    from dslite.app.sessions.store import Conversation, SessionStore
    from dslite.app.settings.precedence import AnswerSettings
    from dslite.app.terminal.line_reader import LineReader

Model = Annotated[
    str | None,
    flag(
        "--model",
        "-m",
        help="chat, base, coder, coder-base, demo, a Hub id[@revision], or a folder.",
        autocompletion=complete.models,
    ),
]
Revision = Annotated[str | None, flag("--revision", help="Revision of a Hub id.")]
Device = Annotated[str, flag("--device", help="auto, cuda, cuda:N, mps or cpu.", autocompletion=complete.devices)]
Offline = Annotated[bool, flag("--offline", help="Never touch the network.")]
WeightsFlag = Annotated[
    str | None,
    flag(
        "--weights",
        help="bfloat16 as published, int8, or int4 (routed experts in 4 bits).",
        autocompletion=complete.values(*WEIGHTS),
    ),
]
Yes = Annotated[bool, flag("--yes", "-y", help="Write packed weights without asking.")]
OutputFile = Annotated[Path | None, flag("--output-file", help="Write into this file; - is stdout.")]


@dataclass(frozen=True)
class ModelFlags:
    """Which model, where it lies, and how much memory it may use: all that a plan needs."""

    RULES: ClassVar[tuple[Rule, ...]] = (Describes("revision", "model"),)

    model: Model = None
    revision: Revision = None
    device: Device = "auto"
    dtype: Annotated[
        str,
        flag("--dtype", help="bfloat16, or float32 to check numbers.", autocompletion=complete.values(*DTYPES)),
    ] = "bfloat16"
    ctx_size: Annotated[int | None, flag("--ctx-size", help="Most tokens in the context.")] = None
    offline: Offline = False
    vram: Annotated[str | None, flag("--vram", metavar="SIZE", help="Most GPU memory to use, such as 12GiB.")] = None
    ram: Annotated[str | None, flag("--ram", metavar="SIZE", help="Most host memory to use.")] = None
    expert_slots: Annotated[
        int | None, flag("--expert-slots", help="Routed experts per layer on the compute device.")
    ] = None
    miss: Annotated[
        str,
        flag(
            "--miss",
            choices=MISS_POLICIES,
            help="auto, fetch or compute: what to do about an expert without a slot.",
        ),
    ] = "auto"

    def __post_init__(self) -> None:
        if self.model is not None and not self.model.strip():
            raise UsageError("--model is empty", "name a model: chat, base, demo, a Hub id or a folder")

    def ref(self, otherwise: str) -> ModelRef:
        """The model that --model names. Raises UsageError."""
        return model_ref(self.model or otherwise, self.revision)

    def options(self, **others: Any) -> EngineOptions:
        """Checked options of the engine. Raises UsageError."""
        return EngineOptions(
            device=self.device,
            dtype=cast(Dtype, self.dtype),
            ctx_size=self.ctx_size,
            offline=self.offline,
            vram=None if self.vram is None else parse_size(self.vram, "--vram"),
            ram=None if self.ram is None else parse_size(self.ram, "--ram"),
            expert_slots=self.expert_slots,
            miss=cast(MissPolicy, self.miss),
            **others,
        )


@dataclass(frozen=True)
class EngineFlags(ModelFlags):
    """The same for a model that is run."""

    RULES: ClassVar[tuple[Rule, ...]] = (*ModelFlags.RULES, Excludes("no_pack", ("yes",)))

    weights: WeightsFlag = None
    no_pack: Annotated[bool, flag("--no-pack", help="Quantize while loading; keep nothing on disk.")] = False
    yes: Yes = False
    threads: Annotated[int | None, flag("--threads", help="CPU threads.")] = None

    @property
    def weights_given(self) -> Weights | None:
        """What --weights says, checked. Raises UsageError."""
        return None if self.weights is None else checked_weights(self.weights)

    def options(self, weights: Weights | None = None, **others: Any) -> EngineOptions:
        """The options; `weights` where the flag is not given."""
        chosen = self.weights_given or weights or "bfloat16"
        return super().options(weights=chosen, pack=not self.no_pack, threads=self.threads, **others)

    def settled_options(self) -> EngineOptions:
        """The options of a command without profiles: --weights, then [defaults]. Raises UsageError, ConfigFileError."""
        from dslite.app.settings.precedence import default_weights

        return self.options(self.weights_given or default_weights())


@dataclass(frozen=True)
class EndpointFlags:
    """A server that answers in place of the in-process runtime."""

    RULES: ClassVar[tuple[Rule, ...]] = (Needs("endpoint_key_env", "endpoint"),)

    endpoint: Annotated[
        str | None, flag("--endpoint", metavar="URL", help="Ask an OpenAI-compatible server instead.")
    ] = None
    endpoint_key_env: Annotated[
        str | None,
        flag("--endpoint-key-env", metavar="NAME", help="Environment variable with the key that it wants."),
    ] = None


@dataclass(frozen=True)
class WarmFlags:
    """Whether a warm engine may answer."""

    RULES: ClassVar[tuple[Rule, ...]] = ()

    no_warm: Annotated[bool, flag("--no-warm", help="Use no warm engine: compute in this process.")] = False


@dataclass(frozen=True)
class PromptFlags:
    """Where the prompt comes from, and whether it is a turn of a conversation or raw text."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Excludes("raw", ("system", "system_file", "continue_", "session")),
        Needs("no_bos", "raw"),
        Needs("parse_special", "raw"),
    )

    prompt: Annotated[str | None, flag("--prompt", "-p", help="The prompt.")] = None
    file: Annotated[list[Path] | None, flag("--file", "-f", help="Put a file before the prompt (repeatable).")] = None
    raw: Annotated[bool, flag("--raw", help="Complete the text itself, without the chat template.")] = False
    no_stdin: Annotated[bool, flag("--no-stdin", help="Read no stdin, as in a loop that reads it.")] = False
    no_bos: Annotated[bool, flag("--no-bos", help="With --raw: no begin-of-sentence token.")] = False
    parse_special: Annotated[
        bool, flag("--parse-special", help="With --raw: spellings of special tokens are those tokens.")
    ] = False

    @property
    def may_be_empty(self) -> bool:
        """Whether an empty prompt has a token to start from: the begin-of-sentence token."""
        return self.prompt is not None and self.raw and not self.no_bos

    @property
    def default_model(self) -> str:
        return "base" if self.raw else "chat"


@dataclass(frozen=True)
class AnswerFlags:
    """System message and sampling of an answer."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Excludes("system", ("system_file",), "the system message is given twice, with --system and --system-file"),
        Excludes("json_schema", ("regex", "grammar")),
        Excludes("regex", ("grammar",)),
    )

    system: Annotated[str | None, flag("--system", "-s", "--system-prompt", help="System message.")] = None
    system_file: Annotated[Path | None, flag("--system-file", help="System message from a file.")] = None
    temperature: Annotated[float | None, flag("--temperature", "-t", "--temp", help="0 is greedy.")] = None
    top_p: Annotated[float | None, flag("--top-p", help="Keep the likeliest tokens up to this mass.")] = None
    top_k: Annotated[int | None, flag("--top-k", help="Keep this many tokens; 0 is off.")] = None
    min_p: Annotated[float | None, flag("--min-p", help="Drop tokens below this share of the best one.")] = None
    repetition_penalty: Annotated[
        float | None, flag("--repetition-penalty", help="Above 1 discourages repetition.")
    ] = None
    seed: Annotated[int | None, flag("--seed", help="The same answer again.")] = None
    max_tokens: Annotated[int | None, flag("--max-tokens", "-n", help="Most tokens of the answer.")] = None
    stop: Annotated[list[str] | None, flag("--stop", metavar="TEXT", help="End before this text (repeatable).")] = None
    stop_token_ids: Annotated[
        list[int] | None, flag("--stop-token-id", metavar="N", help="End at this token (repeatable).")
    ] = None
    json_schema: Annotated[
        str | None, flag("--json-schema", metavar="FILE|TEXT", help="The answer is JSON of this schema.")
    ] = None
    regex: Annotated[str | None, flag("--regex", metavar="TEXT", help="The answer matches this.")] = None
    grammar: Annotated[str | None, flag("--grammar", metavar="FILE", help="The answer follows this Lark grammar.")] = (
        None
    )

    def settings(self, model: str | None, weights: "Weights | None") -> "AnswerSettings":
        """What the flags set, with the model that --model names and its weights. Raises UsageError."""
        from dslite.app.settings.precedence import AnswerSettings

        return AnswerSettings(model, system=self.system_message(), sampling=self.sampling(), weights=weights)

    def sampling(self) -> dict[str, Any]:
        """The sampling values that were given, checked. Raises UsageError."""
        from dslite.app.settings import sampling
        from dslite.app.settings.constraint_files import read_constraint

        values = {key: getattr(self, key) for key in sampling.KEYS}
        for kind in sampling.CONSTRAINTS:
            if values[kind] is not None:
                values[kind] = read_constraint(kind, values[kind])
        return sampling.chosen(**values)

    def system_message(self) -> str | None:
        """The text of --system or --system-file; an empty one takes a profile's away. Raises UsageError."""
        if self.system_file is None:
            return self.system
        return read_text(self.system_file, "the system message's file")


@dataclass(frozen=True)
class ConversationFlags:
    """Which profile, which conversation, and whether it is saved."""

    RULES: ClassVar[tuple[Rule, ...]] = (Excludes("session", ("continue_",)),)

    profile: Annotated[
        str | None,
        flag("--profile", metavar="NAME", help="Use this profile.", autocompletion=complete.profiles),
    ] = None
    save_profile: Annotated[
        str | None, flag("--save-profile", metavar="NAME", help="Keep these flags as a profile.")
    ] = None
    continue_: Annotated[bool, flag("--continue", "-c", help="Go on with the latest conversation.")] = False
    session: Annotated[
        str | None,
        flag("--session", metavar="ID", help="Go on with this conversation.", autocompletion=complete.sessions),
    ] = None
    no_save: Annotated[bool, flag("--no-save", help="Save no conversation.")] = False

    @property
    def continues(self) -> bool:
        return self.continue_ or self.session is not None

    def find(self, store: "SessionStore") -> "Conversation | None":
        """The conversation of --session, or the latest for --continue. Raises SessionsError, NotFoundError."""
        if self.session is not None:
            return store.find(self.session)
        return store.latest() if self.continue_ else None


@dataclass(frozen=True)
class BatchFlags:
    """Many prompts in one call."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Needs("unordered", "batch"),
        Needs("strict", "batch"),
        Needs("resume", "batch"),
    )

    batch: Annotated[str | None, flag("--batch", help="JSON lines in, JSON lines out; - is stdin.")] = None
    unordered: Annotated[bool, flag("--unordered", help="Results of a batch as they come.")] = False
    strict: Annotated[bool, flag("--strict", help="Exit 1 if a line of the batch failed.")] = False
    resume: Annotated[
        Path | None, flag("--resume", metavar="FILE", help="An earlier output of the batch: answer the rest.")
    ] = None

    def lines(self, *, stdin: bool) -> "LineReader | None":
        """The lines of the batch; None without one. Raises UsageError."""
        from dslite.app.terminal.line_reader import LineReader

        if self.batch == "-" and not stdin:
            raise UsageError("--batch - reads stdin, and --no-stdin forbids it", "leave one of them out")
        return None if self.batch is None else LineReader.open(self.batch, "the batch file")

    @contextmanager
    def opened(self, output: Path | None) -> "Iterator[BatchOptions | None]":
        """How the batch runs; an earlier output is locked meanwhile where it is the output too."""
        if self.batch is None:
            yield None
            return
        from dslite.app.completion.batch import BatchOptions
        from dslite.app.completion.batch_resume import resuming

        with resuming(self.resume, output) as earlier:
            yield BatchOptions(ordered=not self.unordered, strict=self.strict, earlier=earlier)


_JSON = Excludes("as_json", ("output",), alias=True)
AsJson = Annotated[bool, flag("--json", help="The same as -o json.")]


@dataclass(frozen=True)
class ListFlags:
    """In which form a list is printed."""

    RULES: ClassVar[tuple[Rule, ...]] = (_JSON,)

    output: Annotated[str, flag("--output", "-o", choices=("text", "json"), help="text or json.")] = "text"
    as_json: AsJson = False

    @property
    def json(self) -> bool:
        return self.as_json or self.output == "json"


@dataclass(frozen=True)
class ExportFlags:
    """In which form a conversation is exported."""

    RULES: ClassVar[tuple[Rule, ...]] = (_JSON,)

    output: Annotated[str, flag("--output", "-o", choices=("md", "json"), help="md or json.")] = "md"
    as_json: AsJson = False
    output_file: OutputFile = None

    @property
    def format(self) -> str:
        return "json" if self.as_json else self.output


@dataclass(frozen=True)
class OutputFlags:
    """In which form an answer is printed, and where to."""

    RULES: ClassVar[tuple[Rule, ...]] = (_JSON,)

    output: Annotated[str, flag("--output", "-o", choices=("text", "json", "jsonl"), help="text, json or jsonl.")] = (
        "text"
    )
    as_json: AsJson = False
    output_file: OutputFile = None
    no_stream: Annotated[bool, flag("--no-stream", help="Print the answer at its end.")] = False
    extract: Annotated[
        bool,
        flag(
            "--extract",
            "-x",
            help="Print only the first fenced code block; exit 1 without a whole one. "
            "Names of packages in it may be invented: check them before you install.",
        ),
    ] = False
    stats: Annotated[bool, flag("--stats", help="Speeds, to stderr.")] = False

    def target(self) -> "OutputOptions":
        """Form and place of the answer; checked, so that a model is not loaded for nothing. Raises UsageError."""
        from dslite.app.completion.output import OutputOptions
        from dslite.app.terminal.output_file import check_output

        check_output(self.output_file)
        form = "json" if self.as_json else self.output
        return OutputOptions(
            form, file=self.output_file, stream=not self.no_stream, extract=self.extract, stats=self.stats
        )


def model_ref(text: str, revision: str | None) -> ModelRef:
    """A model at a revision. Raises UsageError for the revision of a model that has none."""
    ref = parse_model(text, revision)
    if revision is not None and ref.revision != revision:
        raise UsageError(
            f"--revision is {revision!r}, and {text} has no revisions: only a model of the Hub has", "leave it out"
        )
    return ref


def checked_weights(text: str) -> Weights:
    """What --weights says. Raises UsageError."""
    check_choice("--weights", text, WEIGHTS)
    return cast(Weights, text)


def read_text(file: Path, what: str) -> str:
    """The text of a file that the user named. Raises UsageError, ContextFullError for what fits no model."""
    data = read_file(file, what, most=ANY_MODEL.most_bytes)
    ANY_MODEL.check(len(data))
    return decode(data, f"{what} {file}")
