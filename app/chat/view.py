"""The interface between the controller of a chat and a front end: the full screen or the line mode."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef

if TYPE_CHECKING:
    from dslite.app.chat.comparison import AnswerComparison
    from dslite.app.chat.message_tree import Node
    from dslite.app.chat.reply import Reply
    from dslite.app.chat.token_scores import ScoredAnswer


class ChatView(Protocol):
    """Draws a chat. Every method is called on the front end's thread."""

    def show_conversation(self) -> None:
        """The active branch has changed: draw it again."""

    def message_added(self, node: "Node") -> None:
        """A question was added at the end of the branch."""

    def answer_started(self, reply: "Reply") -> None:
        """An answer begins, or is continued (`reply.continues`), at the end of the branch."""

    def text_appended(self, reply: "Reply", text: str) -> None: ...

    def reasoning_appended(self, reply: "Reply") -> None:
        """`reply.node.reasoning` has grown. It is no part of the answer."""

    def answer_stopping(self, reply: "Reply") -> None:
        """The user has stopped an answer that the engine has not ended yet."""

    def answer_finished(self, reply: "Reply") -> None:
        """An answer ended; `reply.node.finish_reason` says how."""

    def answer_removed(self, reply: "Reply") -> None:
        """An answer without text was removed, or one that was no part of the conversation."""

    def messages_left_out(self, count: int) -> None:
        """The first `count` messages do not fit the context: the model no longer reads them."""

    def summary_used(self, text: str, note: str) -> None:
        """A new chat has begun with a summary; `note` says so."""

    def notice(self, text: str, *, warning: bool = False, above: bool = False) -> None:
        """Show a line that is no message: after the answer that grows, or `above` it."""

    def error(self, error: DsliteError) -> None: ...

    def hint(self, text: str) -> None:
        """Show a line for a moment; an empty one removes the last."""

    def copy_text(self, text: str, what: str) -> None:
        """Put a text into the clipboard, and say that `what` was copied."""

    def show_comparison(self, comparison: "AnswerComparison") -> None:
        """Show two answers beside each other as they grow; have the user call its `choose` or `leave` at the end."""

    def show_scores(self, answer: "ScoredAnswer") -> None:
        """Show how likely the tokens of an answer were; the user may call `controller.branch_at`."""

    def show_chats(self) -> None:
        """List the saved chats, so that one can be opened."""

    def show_profiles(self) -> None:
        """List the profiles, so that one can be used."""

    def quit(self) -> None:
        """Leave the chat."""

    def put_into_input(self, text: str, caret: int | None = None) -> None:
        """Replace the input; the caret stands at an offset, or at the end."""

    def attachments_changed(self) -> None:
        """`controller.attached`, the files of the message that is being written, has changed."""

    def confirm(self, question: str, then: Callable[[], None]) -> None:
        """Ask the user; `then` is called where the answer is yes."""

    def input_text(self) -> str:
        """The text in the input."""

    def status_changed(self) -> None:
        """`controller.status` or the title may have changed."""

    def model_changed(self) -> None:
        """Model or profile have changed: the greeting of an empty chat names them."""

    def ask_overflow_choice(self, error: DsliteError) -> None:
        """The context is full: have the user call `controller.choose_overflow`."""

    def offer_model(self, ref: ModelRef, error: DsliteError) -> None:
        """A model is not on this machine: show the ways to get one."""
