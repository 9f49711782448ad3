"""Saves the conversation of `complete` while its answer is generated. A failure to save costs a warning, no answer."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dslite.app.errors import SessionsError
from dslite.app.terminal import console

if TYPE_CHECKING:
    from dslite.app.completion.protocol import Answer
    from dslite.app.sessions.store import Conversation, SessionStore, StoredMessage
    from dslite.app.settings.precedence import AnswerSettings

_EVERY_S = 0.8
_SLOW_S = 0.2  # tokens that come further apart are saved one by one: the next one may be long in coming


class ConversationSaver:
    """One question and its answer, at the end of a conversation's branch or as the first turn of a new one."""

    def __init__(
        self,
        store: "SessionStore | None",
        conversation: "Conversation | None",
        *,
        saves: bool,
        model: str,
        settings: "AnswerSettings",
    ) -> None:
        """`store` None: nothing is read or saved. Without `saves` the conversation is only read."""
        self._store = store if saves else None
        self._conversation = conversation
        self._settings: Any = {"model": model, "profile": settings.profile.name, "system": settings.system}
        path = [] if store is None or conversation is None else store.path(conversation.leaf)
        self.messages = [message.to_message(model) for message in path]
        self.continued = conversation.id if conversation else None
        self._answer: StoredMessage | None = None
        self._info: dict[str, Any] = {}
        self._saved = self._grew = 0.0

    @property
    def session(self) -> str | None:
        """The id of the saved conversation; None where nothing is saved."""
        saved = self._store is not None and self._answer is not None
        return self._conversation.id if saved and self._conversation else None

    def begin(self, question: str, info: Mapping[str, Any]) -> None:
        """Save the question. `info` has the model and the sampling of the answer."""
        self._info = dict(info)
        if self._store is None:
            return
        try:
            if self._conversation is None:
                self._conversation = self._store.create(**self._settings)
            else:
                self._store.configure(self._conversation.id, **self._settings)
            saved = self._store.append(self._conversation.id, "user", question, parent=self._conversation.leaf)
            self._answer = self._store.append(
                self._conversation.id, "assistant", "", parent=saved.id, info=self._info, growing=True
            )
        except SessionsError as error:
            self._give_up(error)

    def grow(self, answer: "Answer") -> None:
        """Save the answer so far, so that a kill loses less than a second of it."""
        if self._store is None or self._answer is None:
            return
        now, before = time.monotonic(), self._grew
        self._grew = now
        if now - self._saved < _EVERY_S and now - before < _SLOW_S:
            return
        self._saved = now
        try:
            self._store.update_answer(self._answer.id, _text(answer), _printed_ids(answer))
        except SessionsError as error:
            self._give_up(error)

    def finish(self, answer: "Answer") -> None:
        """Save the answer; one that broke off counts as interrupted."""
        if self._store is None or self._answer is None:
            return
        done = answer.done
        info = self._info | ({"timing": asdict(done.timing)} if done else {})
        reason = done.finish_reason if done else "interrupted"
        try:
            self._store.finish_answer(self._answer.id, _text(answer), _ids(answer), reason, info)
        except SessionsError as error:
            self._give_up(error)

    def _give_up(self, error: SessionsError) -> None:
        console.warn(f"the conversation is not saved: {error.message}")
        self._store = None


def _text(answer: "Answer") -> str:
    """The reply; behind an echoed prompt it still has the space that the template leaves before it."""
    echoed = bool(answer.tokens) and answer.tokens[0].in_prompt
    return answer.reply.removeprefix(" ") if echoed else answer.reply


def _printed_ids(answer: "Answer") -> list[int] | None:
    """The ids of what was generated, its end token left out; None where they are not known."""
    ids = [token.id for token in answer.generated]
    known = [token_id for token_id in ids if token_id is not None]
    return known if len(known) == len(ids) else None


def _ids(answer: "Answer") -> Sequence[int] | None:
    """The generated ids; None where a stop text cut the answer, so that the next turn reads what was printed."""
    printed = _printed_ids(answer)
    if answer.done is None or printed is None:
        return printed
    by_end_token = len(answer.done.token_ids) > len(printed)
    return answer.done.token_ids if by_end_token or answer.done.finish_reason != "stop" else None
