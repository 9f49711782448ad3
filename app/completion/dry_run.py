"""`complete --dry-run`: how many tokens a prompt has and whether it fits, by the tokenizer alone.

Nothing here imports torch, and no weights need to be here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslite.app.completion.protocol import CompletionOptions, messages_of
from dslite.app.terminal.tables import print_table
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import ContextFullError
from dslite.runtime.text.chat_template import ChatTemplate
from dslite.runtime.text.message import Message
from dslite.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class DryRun:
    """Tokens of the system message and of each file by themselves, of the whole prompt, and of the context."""

    system_tokens: int
    files: tuple[tuple[str, int], ...]
    prompt_tokens: int
    context: int

    @property
    def room(self) -> int:
        """Tokens that are left for the answer."""
        return max(self.context - self.prompt_tokens, 0)

    @property
    def exit_code(self) -> int:
        return 0 if self.room else ContextFullError.exit_code

    def to_dict(self) -> dict[str, Any]:
        return {
            "system_tokens": self.system_tokens,
            "files": [{"name": name, "tokens": tokens} for name, tokens in self.files],
            "prompt_tokens": self.prompt_tokens,
            "context": self.context,
            "room": self.room,
        }


def count_tokens(
    folder: Path,
    options: CompletionOptions,
    prompt: str,
    files: Sequence[tuple[str, str]],
    *,
    before: Sequence[Message] = (),
    context: int,
) -> DryRun:
    """Count a prompt for the model in a folder. `files` are names and texts as they stand in it; `before` are the
    messages of the conversation that it goes on with. Raises CheckpointError, UsageError."""
    tokenizer = Tokenizer.from_folder(folder)
    named = tuple((name, len(tokenizer.encode(text))) for name, text in files)
    if options.raw:
        ids = tokenizer.encode(prompt, parse_special=options.parse_special)
        return DryRun(0, named, len(ids) + options.bos, context)
    params = SamplingParams(**options.sampling)
    messages = options.told(messages_of([*before, Message("user", prompt)], options.system), params)
    system = messages[0].content if messages[0].role == "system" else ""
    whole = ChatTemplate(tokenizer).encode(messages)
    return DryRun(len(tokenizer.encode(system)) if system else 0, named, len(whole), context)


def print_counts(found: DryRun, *, as_json: bool) -> None:
    """Print the counts on stdout, as a table or as one JSON object."""
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
        return
    rows = [("system message", found.system_tokens), *found.files, ("prompt", found.prompt_tokens)]
    rows += [("context", found.context), ("room for the answer", found.room)]
    print_table(("", "tokens"), [(name, f"{tokens:,}") for name, tokens in rows])
