"""The state that the parts of a chat share. Only the front end's thread reads and writes it."""

from dataclasses import dataclass

from dslite.app.chat.engine_worker import EngineWorker
from dslite.app.chat.launch import ChatLaunch
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.reply import Reply
from dslite.app.chat.status import ChatStatus, ReplyState
from dslite.app.chat.view import ChatView
from dslite.app.sessions.attachments import Attachment, split_attachments
from dslite.model.errors import DsliteError
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.errors import UsageError


@dataclass(frozen=True)
class UnsentMessage:
    """A message before it is part of the conversation: what was typed, and the attached files."""

    text: str
    files: tuple[Attachment, ...] = ()

    @classmethod
    def of(cls, question: Node) -> "UnsentMessage":
        """A question as it was before it was asked."""
        files, text = split_attachments(question.content, question.info)
        return cls(text, tuple(files))

    @property
    def shown(self) -> str:
        return self.text or ", ".join(file.name for file in self.files)


class ChatState:
    """The active conversation, its reply, the messages that wait, and the threads and the view of the chat."""

    def __init__(self, launch: ChatLaunch, view: ChatView, worker: EngineWorker) -> None:
        self.view, self.worker, self.writer = view, worker, launch.writer
        self.settings, self.ref = launch.settings, launch.ref
        self.status = ChatStatus(unsaved="" if launch.writer.saving else "not saved (--no-save)")
        self.tree = self.new_tree()
        self.reply: Reply | None = None
        self.editing: Node | None = None  # the message whose text is in the input
        self.queue: list[UnsentMessage] = []  # messages that wait for the end of the answer
        self.attached: list[Attachment] = []  # files of the message that is being written
        self.absent: tuple[ModelRef, DsliteError] | None = None  # the model that is not on this machine

    def new_tree(self) -> MessageTree:
        return MessageTree(model=self.ref.key, profile=self.settings.profile.name, system=self.settings.system_message)

    def changed(self) -> None:
        """Bring the status up to date and have the view draw it."""
        self.status.reply = self.reply.state if self.reply is not None else ReplyState.DONE
        self.status.waiting = tuple(message.shown for message in self.queue)
        self.view.status_changed()

    def refuse_while_answering(self) -> None:
        """Raises UsageError while there is a reply."""
        if self.reply is not None:
            raise UsageError("an answer is being generated", "stop it first, with Esc or Ctrl+C")

    def return_queue(self) -> None:
        """Put messages that will not be sent back into the input, in front of the text that is there."""
        if self.queue:
            texts = [*(message.text for message in self.queue), self.view.input_text()]
            self.attached[:0] = [file for message in self.queue for file in message.files]
            self.queue.clear()
            self.view.put_into_input("\n".join(filter(None, texts)))
            self.view.attachments_changed()
