"""Messages to token ids by the checkpoint's own Jinja template.

Two properties hold. Text of a message stays text, whatever it spells: an added token comes only from what the template
itself writes. And an answer goes back in as the ids that the model generated, never encoded again, so that the cache of
the last turn is found whole.
"""

from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dslite.runtime.errors import CheckpointError, UsageError
from dslite.runtime.text.message import Message, begun_answer
from dslite.runtime.text.tokenizer import Tokenizer


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
        # An added token needs its telltale character: masked in messages, it never matches there.
        self._telltales = {next((char for char in name if not char.isascii()), name[0]) for name in tokenizer.added}

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

    def encode_continued(self, messages: Sequence[Message], end_tokens: Collection[int]) -> tuple[list[int], int]:
        """Token ids of a conversation whose last message, an answer, the model is to go on with.

        Spaces at the end are left out (see begun_answer), and of an empty answer the one that the template leaves
        before it. Returns how many of them AnswerSpacing is to remove from what the model writes.
        """
        *before, last = messages
        ids = self.encode(before)
        if last.token_ids is None:
            content = begun_answer(messages)
            spaces = len(last.content) - len(content)
            return (ids + self._tokenizer.encode(" " + content), spaces) if content else (ids, 1 + spaces)
        generated = [token for token in last.token_ids if token not in end_tokens]
        return ids + generated, 0 if generated else 1

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
        for plain, added in self._tokenizer.split_added(text):
            ids += self._tokenizer.encode(plain.translate(unmask))
            ids += [] if added is None else [added]
        return ids


def _unused(used: Any, count: int) -> list[str]:
    """Characters of a private plane that are not among the used ones."""
    taken = set(used)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in taken)
    return [char for char, _ in zip(free, range(count), strict=False)]


def _without_end(token_ids: Sequence[int], end: int | None) -> Sequence[int]:
    return token_ids[:-1] if token_ids and token_ids[-1] == end else token_ids


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
