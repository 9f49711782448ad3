"""A title by the model, after the first answer of a chat: `[chat] auto_title`.

The prompt is the conversation with one more question, so that all but that question is found in the prefix cache. Where
it would cost the user seconds, on a CPU and at a server, it is made only when config.toml asks for it.
"""

import re
from types import MappingProxyType

from dslite.app.chat.engine_worker import GenerationEvent, GenerationFailed, GenerationJob, PrefillStarted
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.reply import Reply
from dslite.app.chat.state import ChatState, UnsentMessage
from dslite.app.sessions.ids import title_of
from dslite.app.settings.sampling import CONSTRAINTS
from dslite.runtime.events import Done, Token

_QUESTION = "Write a title for this conversation: at most six words, in its language, and nothing else."
_SAMPLING = MappingProxyType({"temperature": 0.0, "max_tokens": 24})
_FAST_DEVICES = ("cuda", "mps")
_MARKS = "\"'“”‘’«»「」*#` "


class AutoTitle:
    """Asks for the title of the active chat, once. The next message of the user takes precedence."""

    def __init__(self, chat: ChatState, wanted: bool | None) -> None:
        """`wanted` None: where a GPU of this machine computes."""
        self._chat, self._wanted = chat, wanted
        self._job: GenerationJob | None = None
        self._tree: MessageTree | None = None
        self._text = ""

    @property
    def running(self) -> bool:
        return self._job is not None

    def on_finished(self, reply: Reply) -> None:
        """An answer has ended: after the first one, ask for a title."""
        chat = self._chat
        if not self._is_first(reply.node) or not self._is_wanted or chat.queue:
            return
        from dslite.runtime.text.message import Message

        messages = (*chat.tree.messages(reply.node, chat.ref.key), Message("user", _QUESTION))
        sampling = {**dict.fromkeys(CONSTRAINTS), **_SAMPLING}
        # As a job of the conversation: its cache is what the next turn goes on from.
        self._job = GenerationJob(messages, MappingProxyType(sampling), chat.tree.key, chat.tree.id)
        self._tree, self._text = chat.tree, ""
        chat.worker.generate(self._job)

    def cancel(self) -> None:
        """The user goes on: the title is not waited for."""
        if self._job is not None:
            self._job.cancel.set()
            self._job = None

    def take(self, event: GenerationEvent | GenerationFailed | PrefillStarted) -> None:
        """An event of the engine's thread; those of other jobs are dropped."""
        if self._job is None or event.job is not self._job:
            return
        if not isinstance(event, GenerationEvent):
            self._job = self._job if isinstance(event, PrefillStarted) else None
            return
        if isinstance(event.event, Token | Done):
            self._text += event.event.delta
        if isinstance(event.event, Done):
            self._job = None
            self._use(_cleaned(self._text))

    def _use(self, title: str) -> None:
        tree, chat = self._tree, self._chat
        if title and tree is not None and tree is chat.tree and tree.title == _first_title(tree):
            tree.title = title
            chat.writer.rename(tree, title)
            chat.changed()

    def _is_first(self, node: Node) -> bool:
        tree = self._chat.tree
        path = tree.path()
        return len(path) == 2 and path[1] is node and bool(node.content) and tree.title == _first_title(tree)

    @property
    def _is_wanted(self) -> bool:
        if self._wanted is not None:
            return self._wanted
        stats = self._chat.status.stats
        return stats is not None and stats.device.split(":")[0] in _FAST_DEVICES


def _first_title(tree: MessageTree) -> str:
    """The title that a chat has from its first question."""
    path = tree.path()
    return title_of(UnsentMessage.of(path[0]).shown) if path else ""


def _cleaned(text: str) -> str:
    """A model's title as one short line: without quotes, the word Title, and the full stop at its end."""
    line = next((line for line in text.splitlines() if line.strip(_MARKS)), "").strip(_MARKS)
    line = re.sub(r"^(title|标题)\s*[:：]\s*", "", line, flags=re.IGNORECASE)
    return title_of(line.strip(_MARKS).rstrip(".。"))
