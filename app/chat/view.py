"""What the controller of a chat needs of a front end. The full screen and the line mode implement it."""

from typing import TYPE_CHECKING, Protocol

from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef

if TYPE_CHECKING:
    from dslite.app.chat.message_tree import Node
    from dslite.app.chat.reply import Reply


class ChatView(Protocol):
    """Draws a chat. Every method is called on the front end's thread."""

    def show_conversation(self) -> None:
        """The active branch is another one: draw it anew."""
        ...

    def message_added(self, node: "Node") -> None:
        """A question stands at the end of the branch."""
        ...

    def answer_started(self, reply: "Reply") -> None:
        """An answer begins, or goes on (`reply.continues`), at the end of the branch."""
        ...

    def text_appended(self, reply: "Reply", text: str) -> None: ...

    def reasoning_appended(self, reply: "Reply") -> None:
        """`reply.node.reasoning` has grown. It is no part of the answer."""
        ...

    def answer_stopping(self, reply: "Reply") -> None:
        """The user has stopped an answer that the engine has not ended yet."""
        ...

    def answer_finished(self, reply: "Reply") -> None:
        """An answer is whole, or was cut; `reply.node` says which."""
        ...

    def answer_removed(self, reply: "Reply") -> None:
        """Nothing came of an answer, or it was no part of the conversation."""
        ...

    def messages_left_out(self, count: int) -> None:
        """The first `count` messages of the chat are too old for the context: the model no longer reads them."""
        ...

    def summary_used(self, text: str, note: str) -> None:
        """A new chat has begun with a summary; `note` says so."""
        ...

    def notice(self, text: str, *, warning: bool = False, above: bool = False) -> None:
        """A line that is no message. Below an answer that grows it waits for its end, unless `above` puts it above."""
        ...

    def error(self, error: DsliteError) -> None: ...

    def hint(self, text: str) -> None:
        """A line for a moment; an empty one takes the last away."""
        ...

    def copy_text(self, text: str, what: str) -> None:
        """Put a text into the clipboard, and say that `what` was copied."""
        ...

    def quit(self) -> None:
        """The user has asked to quit."""
        ...

    def put_into_input(self, text: str) -> None: ...

    def input_text(self) -> str:
        """What is being written."""
        ...

    def status_changed(self) -> None:
        """`controller.status` or the title may have changed."""
        ...

    def model_changed(self) -> None:
        """Model or profile are others: an empty chat says so."""
        ...

    def ask_overflow_choice(self, error: DsliteError) -> None:
        """The context is full: have the user call `controller.choose_overflow`."""
        ...

    def offer_model(self, ref: ModelRef, error: DsliteError) -> None:
        """A model is not on this machine: show what can be done."""
        ...
