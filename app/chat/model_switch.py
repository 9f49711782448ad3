"""Changes the model of a chat, and takes the events of its loading."""

from dslite.app.chat.model_loading import ModelLoader
from dslite.app.chat.reply_lifecycle import ReplyLifecycle
from dslite.app.chat.state import ChatState
from dslite.app.chat.status import ModelState, ReplyState
from dslite.model.errors import DsliteError
from dslite.runtime.chat.protocol import ModelStats
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.events import LoadingEvent


class ModelSwitch:
    """Loads one model in place of another."""

    def __init__(self, chat: ChatState, replies: ReplyLifecycle, loader: ModelLoader) -> None:
        self._chat, self._replies, self._loader = chat, replies, loader
        self._was_ready = False

    def load(self, ref: ModelRef) -> None:
        self._chat.status.model = ModelState.STARTING
        self._chat.worker.load(ref)

    def use(self, name: str) -> None:
        """Load another model; it answers a message that waits. Raises UsageError.

        Until it is found the loaded one stays, and until it is loaded nothing is saved under its name.
        """
        if self._chat.reply is not None and self._chat.reply.state is not ReplyState.QUEUED:
            self._chat.refuse_while_answering()
        self.load(self._loader.parse(name))
        self._chat.changed()

    def on_loading(self, event: LoadingEvent | None) -> None:
        """Weights are read, and those of the model before are gone. None: no byte is read yet."""
        status = self._chat.status
        status.model, status.loading, status.stats = ModelState.LOADING, event, None

    def on_ready(self, ref: ModelRef, stats: ModelStats) -> None:
        """A model is loaded: later answers are saved with its name."""
        chat = self._chat
        chat.status.stats, chat.status.model, chat.absent = stats, ModelState.READY, None
        self._was_ready = True
        if ref.key != chat.ref.key:
            chat.tree.model = ref.key
            chat.writer.configure(chat.tree)
        chat.ref, chat.settings.model = ref, ref.name
        chat.view.model_changed()
        self._replies.submit_waiting()

    def on_unavailable(self, ref: ModelRef, error: DsliteError, *, absent: bool, kept: bool) -> None:
        """A model was not loaded. A message that waits for one goes on waiting: the user may choose another."""
        chat = self._chat
        chat.status.model = ModelState.READY if kept else ModelState.NONE
        chat.absent = (ref, error) if absent else None
        if absent:
            chat.view.offer_model(ref, error)
        else:
            chat.view.error(error)
        if kept:
            self._replies.submit_waiting()
        elif self._was_ready and ref.key != chat.ref.key:
            chat.view.notice(f"loading {chat.ref.name} again")
            self.load(chat.ref)
