"""What the user wants answered: words, -p, files and piped text, put together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dslite.app.terminal import streams
from dslite.app.terminal.attached_file import file_block
from dslite.runtime.downloads.hub import ModelRef, locate
from dslite.runtime.errors import DsliteError, UsageError
from dslite.runtime.text.prompt_limit import ByteLimit, longest_token_of

# Where the model is not known, or not here: the most that any of its kind takes.
ANY_MODEL = ByteLimit(163_840, lambda: 128)
_CHECKED_CHARACTERS = 1 << 20  # shorter prompts are left to the backend, which knows the context


@dataclass(frozen=True)
class PromptText:
    """A prompt and the attached files in it: their names, and their texts as they stand in the prompt."""

    text: str = ""
    files: tuple[tuple[str, str], ...] = ()


def read_prompt(
    words: Sequence[str],
    option: str | None,
    files: Sequence[Path],
    *,
    limit: Callable[[], ByteLimit],
    stdin: bool = True,
    may_be_empty: bool = False,
) -> PromptText:
    """The whole prompt: attached files, then piped text, a blank line, and the prompt.

    `-` among the words, or no words with a pipe on stdin, reads stdin; without `stdin` it is not read. `limit` is asked
    for long texts only. Raises UsageError, and ContextFullError for what cannot fit, before all of it is read.
    """
    limit = cache(limit)
    if words and option is not None:
        raise UsageError("the prompt is given twice, as words and with --prompt", "give it once")
    wants_stdin = list(words) == ["-"]
    if wants_stdin and not stdin:
        raise UsageError("- reads stdin, and --no-stdin forbids it", "leave one of them out")
    given = option if option is not None else ("" if wants_stdin else " ".join(words))
    piped = ""
    if stdin and (wants_stdin or not streams.stdin_is_terminal()):
        data = streams.read_stdin(optional=bool(given or files), most=lambda: limit().most_bytes())
        piped = _text(data, "stdin", limit)
    attached = [(str(file), file_block(str(file), _file_text(file, limit))) for file in files]
    parts = [*(text for _, text in attached), piped.rstrip("\n") if given else piped, given]
    prompt = "\n\n".join(part for part in parts if part)
    if not prompt.strip() and not may_be_empty:
        raise UsageError("the prompt is empty", 'ask something: dslite complete "Why is the sky blue?"')
    if len(prompt) > _CHECKED_CHARACTERS:
        limit().check(len(prompt.encode("utf-8", "surrogatepass")))
    return PromptText(prompt, tuple(attached))


def _file_text(file: Path, limit: Callable[[], ByteLimit]) -> str:
    data = streams.read_file(file, "the file", most=lambda: limit().most_bytes())
    return _text(data, f"the file {file}", limit)


def _text(data: bytes, what: str, limit: Callable[[], ByteLimit]) -> str:
    if len(data) > _CHECKED_CHARACTERS:
        limit().check(len(data))
    return streams.decode(data, what)


def prompt_limit(ref: ModelRef, ctx_size: int | None) -> ByteLimit:
    """What the context of a model takes, found without loading it."""
    from dslite.runtime.downloads.model_config import config_of
    from dslite.runtime.planning.placement import DEFAULT_CONTEXT

    try:
        config = config_of(ref, offline=True)
        longest = longest_token_of(locate(ref))
    except (DsliteError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return ANY_MODEL  # what is wrong with the model is reported when it is opened
    return ByteLimit(ctx_size or min(DEFAULT_CONTEXT, config.max_position_embeddings), lambda: longest)


def read_stdin(*, optional: bool = False) -> str:
    """All of stdin as text. Raises UsageError."""
    return streams.decode(streams.read_stdin(optional=optional), "stdin")
