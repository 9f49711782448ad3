"""Messages → token ids, by the checkpoint's own Jinja template.

Two promises. A special token is one only where the template itself writes it: text of messages stays text, whatever it
spells. And what the model generated goes back in as the very ids that it generated, never encoded again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dslite.runtime.errors import CheckpointError, UsageError
from dslite.runtime.events import Done, Token
from dslite.runtime.text.tokenizer import Tokenizer

Role = Literal["system", "user", "assistant"]
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn. `token_ids` are what the model generated for it, where it did."""

    role: Role
    content: str
    token_ids: tuple[int, ...] | None = None

    @classmethod
    def from_dict(cls, raw: Any) -> "Message":
        """Parse {"role": …, "content": …}. Raises UsageError."""
        if not isinstance(raw, dict) or raw.get("role") not in _ROLES or not isinstance(raw.get("content"), str):
            raise UsageError(
                "a message must be an object with role (system, user or assistant) and content (text)",
                'write it as {"role": "user", "content": "…"}',
            )
        return cls(raw["role"], raw["content"])


@dataclass
class AnswerSpacing:
    """Takes away the space that a chat answer begins with: it is the template's, not the text's."""

    applies: bool
    _begun: bool = False

    def strip(self, event: Token | Done) -> Token | Done:
        """The event of an answer without that space, in what streams and in the whole text."""
        if not self.applies:
            return event
        if event.delta and not self._begun:
            event, self._begun = replace(event, delta=event.delta.removeprefix(" ")), True
        if isinstance(event, Done):
            event = replace(event, text=event.text.removeprefix(" "))
        return event


class ChatTemplate:
    """Renders and encodes conversations for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not isinstance(tokenizer.chat_template, str):
            raise CheckpointError("the model has no chat template", "complete plain text with --raw")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(tokenizer.chat_template)
        except jinja2.TemplateError as error:
            raise CheckpointError(
                f"the model's chat template is damaged: {error}", "download the model again"
            ) from None
        self._tokenizer = tokenizer
        names = sorted(tokenizer.special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        # A special token needs its telltale character: masked in messages, it is never theirs.
        self._telltales = {next((char for char in name if not char.isascii()), name[0]) for name in names}

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, ready for the model to answer."""
        masks = self._masks(messages)
        ids: list[int] = []
        covered = ""
        for place, message in enumerate(messages):
            if message.token_ids is None:
                continue
            before = self._render(messages[:place], masks, add_generation_prompt=True)
            after = self._render(messages[: place + 1], masks)
            tail = self._behind_answer(messages[:place], masks)
            if not before.startswith(covered) or not after.endswith(tail):
                break  # a template that rewrites earlier turns: encode the rest as text
            ids += self._encode_rendered(before[len(covered) :], masks)
            ids += _without_end(message.token_ids, self._tokenizer.special_tokens.get(self._tokenizer.eos_token))
            ids += self._encode_rendered(tail, masks)
            covered = after
        whole = self._render(messages, masks, add_generation_prompt=add_generation_prompt)
        if not whole.startswith(covered):
            return self._encode_rendered(whole, masks)
        return ids + self._encode_rendered(whole[len(covered) :], masks)

    def _behind_answer(self, messages: Sequence[Message], masks: dict[str, str]) -> str:
        """What the template writes behind an answer: the end-of-sentence token."""
        mark = _unused(masks.values(), 1)[0]
        return self._render([*messages, Message("assistant", mark)], masks).rpartition(mark)[2]

    def _masks(self, messages: Sequence[Message]) -> dict[str, str]:
        """Telltale character → a stand-in that no message contains."""
        used = {char for message in messages for char in message.content}
        return dict(zip(self._telltales, _unused(used, len(self._telltales)), strict=True))

    def _render(
        self, messages: Sequence[Message], masks: dict[str, str], *, add_generation_prompt: bool = False
    ) -> str:
        table = str.maketrans(masks)
        masked = [{"role": message.role, "content": message.content.translate(table)} for message in messages]
        try:
            return self._template.render(
                messages=masked,
                bos_token=self._tokenizer.bos_token,
                eos_token=self._tokenizer.eos_token,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:  # a template is foreign code: it may fail in any way
            raise UsageError(f"the model's chat template refuses these messages: {error}") from None

    def _encode_rendered(self, text: str, masks: dict[str, str]) -> list[int]:
        unmask = str.maketrans({stand_in: char for char, stand_in in masks.items()})
        ids: list[int] = []
        place = 0
        for found in self._special.finditer(text):
            ids += self._tokenizer.encode(text[place : found.start()].translate(unmask))
            ids.append(self._tokenizer.special_tokens[found.group()])
            place = found.end()
        return ids + self._tokenizer.encode(text[place:].translate(unmask))


def _unused(used: Any, count: int) -> list[str]:
    """Characters of a private plane that are not among the used ones."""
    taken = set(used)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in taken)
    return [char for char, _ in zip(free, range(count), strict=False)]


def _without_end(token_ids: Sequence[int], end: int | None) -> Sequence[int]:
    return token_ids[:-1] if token_ids and token_ids[-1] == end else token_ids


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
