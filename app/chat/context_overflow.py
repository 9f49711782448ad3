"""A conversation that fills the context: forget the oldest turns, go on in a new chat with a summary, or stop.

The user chooses once for each conversation, or config.toml for all.
"""

from collections.abc import Callable

from dslite.app.chat import summary
from dslite.app.chat.launch import WhenFull
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.reply import Reply
from dslite.app.chat.reply_lifecycle import ReplyLifecycle
from dslite.app.chat.state import ChatState, UnsentMessage
from dslite.app.chat.status import WARN_AT
from dslite.model.errors import DsliteError

_AT_THE_LIMIT: dict[WhenFull, str] = {
    "ask": "at its limit you may forget the oldest turns, or go on in a new chat with a summary",
    "forget": "at its limit the oldest turns are forgotten",
    "summary": "at its limit a new chat begins with a summary of this one",
    "stop": "at its limit this chat ends",
}


class ContextOverflow:
    """The choice for the active conversation, and what follows from it.

    `begin` makes another conversation the active one and keeps the choice.
    """

    def __init__(
        self, chat: ChatState, replies: ReplyLifecycle, begin: Callable[[MessageTree], None], when_full: WhenFull
    ) -> None:
        self._chat, self._replies, self._begin = chat, replies, begin
        self._default = self._choice = when_full
        self._warned = False
        self._error: DsliteError | None = None  # while the user is asked

    @property
    def asks(self) -> bool:
        """Whether the user is asked and has not answered."""
        return self._error is not None

    def reset(self, *, keep_choice: bool = False) -> None:
        """Another conversation is active; one that goes on from a summary keeps the choice."""
        self._choice = self._choice if keep_choice else self._default
        self._warned, self._error = False, None

    def choose(self, choice: WhenFull) -> None:
        """Set the choice for this conversation; after `stop` the next question asks again."""
        if choice != "stop":
            self._choice = choice

    def answer(self, choice: WhenFull | None) -> None:
        """The user's answer to `ask_overflow_choice`; None leaves it open, and the error is shown."""
        error, self._error = self._error, None
        if error is not None:
            self.choose(choice or "stop")
            self._apply(choice or "stop", error)

    def on_full(self, error: DsliteError) -> None:
        """A question, or an answer that goes on, does not fit."""
        questions = sum(node.role == "user" for node in self._chat.tree.path())
        self._apply(self._choice if questions > 1 else "stop", error)  # with one there is no older turn to leave out

    def _apply(self, choice: WhenFull, error: DsliteError) -> None:
        leaf = self._chat.tree.leaf
        match choice:
            case "ask":
                self._error = error
                self._chat.view.ask_overflow_choice(error)
            case "forget" if leaf is not None and leaf.role == "user":
                self._replies.ask(leaf, trim=True)
            case "forget" if leaf is not None:
                self._replies.continue_answer(trim=True)
            case "summary" if leaf is not None:
                question = leaf if leaf.role == "user" else None
                end = leaf.parent if question is not None else leaf
                node = Node("assistant", "", growing=True)
                self._replies.start(Reply(node, end, trim=True, is_summary=True, question=question))
            case _:
                self._chat.view.error(error)
                self._chat.return_queue()

    def on_finished(self, reply: Reply) -> None:
        """A reply ended: begin the chat that its summary is for, and warn once when the limit is near."""
        if reply.is_summary:
            self._begin_from_summary(reply)
        if not self._warned and self._chat.status.fullness >= WARN_AT:
            self._warned = True
            text = f"the context is {self._chat.status.fullness:.0%} full: {_AT_THE_LIMIT[self._choice]}"
            self._chat.view.notice(text, warning=True)

    def _begin_from_summary(self, reply: Reply) -> None:
        """Begin the new chat, and ask there the question that did not fit."""
        chat, text = self._chat, reply.node.content.strip()
        if reply.node.finish_reason == "interrupted" or not text:
            chat.view.notice(summary.NONE_CAME)
            return
        old, system = chat.tree, summary.system_message(chat.tree.system, text)
        waiting = [*([UnsentMessage.of(reply.question)] if reply.question is not None else []), *chat.queue]
        chat.queue.clear()
        chat.settings.system = system
        self._begin(MessageTree(model=old.model, profile=old.profile, system=system, title=old.title))
        saved = "; it is saved" if chat.writer.saving else ""
        chat.view.summary_used(text, f"this chat goes on from a summary of the one before{saved}")
        chat.queue += waiting
