"""ConversationSaver a conversation beside the chat: a thread that waits for the disk, so that no screen does.

A fault of the database never ends a chat. It is told once; what could not be saved is tried again with the next
message.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.errors import SessionsError
from dslite.model.errors import DsliteError

if TYPE_CHECKING:
    from dslite.app.sessions.store import SessionStore

T = TypeVar("T")
_UPDATE_EVERY_S = 0.5


class ConversationWriter:
    """Writes messages in the order in which they were made. With `saving` off it only answers questions."""

    def __init__(
        self,
        open_store: Callable[[], "SessionStore"],
        *,
        saving: bool = True,
    ) -> None:
        """`told` hears of the first fault, and None once saving works again; the thread calls it."""
        self.saving = saving
        self.told: Callable[[DsliteError | None], None] = lambda _: None
        self._open_store = open_store
        self._store: SessionStore | None = None
        self._fault: DsliteError | None = None
        self._updated = 0.0
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="dslite-recorder", daemon=True)
        self._thread.start()

    # Writing.

    def append(self, dialogue: MessageTree, node: Node) -> None:
        """Save a new message, and those before it that could not be saved."""
        self._write(lambda store: self._save_path(store, dialogue, node))

    def update(self, dialogue: MessageTree, node: Node, ids: Sequence[int] | None) -> None:
        """Save an answer as far as it is: its text, and the tokens that it was made of."""
        content = node.content

        def save(store: "SessionStore") -> None:
            self._save_path(store, dialogue, node)
            if node.stored is not None:
                store.update_answer(node.stored, content, ids)

        self._write(save)

    def update_now_and_then(self, dialogue: MessageTree, node: Node, ids: Sequence[int]) -> None:
        """`update`, at most twice a second: a crash then costs less than a second of text."""
        now = time.monotonic()
        if node.content and now - self._updated > _UPDATE_EVERY_S:
            self._updated = now
            self.update(dialogue, node, tuple(ids) or None)

    def finish(self, dialogue: MessageTree, node: Node) -> None:
        """Save a whole answer."""
        content, ids, reason, info = node.content, node.token_ids, node.finish_reason or "stop", dict(node.info)

        def save(store: "SessionStore") -> None:
            self._save_path(store, dialogue, node)
            if node.stored is not None:
                store.finish_answer(node.stored, content, ids, reason, info)

        self._write(save)

    def rename(self, dialogue: MessageTree, title: str) -> None:
        self._write(lambda store: store.rename(dialogue.id, title) if dialogue.id else None)

    def configure(self, dialogue: MessageTree) -> None:
        """Save with what later answers are to be made."""
        model, profile, system = dialogue.model, dialogue.profile, dialogue.system
        self._write(
            lambda store: (
                store.configure(dialogue.id, model=model, profile=profile, system=system) if dialogue.id else None
            )
        )

    def set_leaf(self, dialogue: MessageTree) -> None:
        """Save which branch is on screen."""
        leaf = dialogue.leaf
        self._write(
            lambda store: (
                store.set_leaf(dialogue.id, leaf.stored) if dialogue.id and leaf and leaf.stored is not None else None
            )
        )

    def _save_path(self, store: "SessionStore", dialogue: MessageTree, node: Node) -> None:
        if dialogue.id is None:
            talk = store.create(
                model=dialogue.model, profile=dialogue.profile, system=dialogue.system, title=dialogue.title
            )
            dialogue.id = talk.id
        for message in dialogue.path(node):
            if message.stored is None:
                saved = store.append(
                    dialogue.id,
                    message.role,
                    message.content,
                    parent=message.parent.stored if message.parent else None,
                    token_ids=message.token_ids,
                    finish_reason=message.finish_reason,
                    info=message.info,
                    growing=message.growing,
                )
                message.stored = saved.id
                if not dialogue.title:
                    dialogue.title = store.get(dialogue.id).title

    # The thread.

    def ask(self, question: Callable[["SessionStore"], T]) -> "Future[T]":
        """Put a question to the store; the answer comes behind everything that was written before."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(question(self._opened()))
            except Exception as error:  # whoever asked gets it
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def close(self, timeout: float = 10.0) -> None:
        """Save what waits, and end."""
        self._jobs.put(None)
        self._thread.join(timeout)

    def _write(self, save: Callable[["SessionStore"], object]) -> None:
        def job() -> None:
            try:
                save(self._opened())
            except DsliteError as error:
                if self._fault is None:
                    self.told(error)
                self._fault = error
            else:
                if self._fault is not None:
                    self.told(None)
                self._fault = None

        if self.saving:
            self._jobs.put(job)

    def _opened(self) -> "SessionStore":
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # while the next one is waited for, this one's conversation may go
        if self._store is not None:
            try:
                self._store.close()
            except SessionsError as error:
                self.told(error)
