"""Saves a conversation as it grows: one thread writes to the database, so that no front end waits for the disk.

Jobs hold immutable snapshots of the conversation; the ids of the database are kept here by the keys of tree and
messages, and reported as events. A fault of the database never ends a chat: it is reported once, and what could not be
saved is written with the next message.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dslite.app.chat.message_tree import ConversationSnapshot, MessageTree, Node
from dslite.app.errors import SessionsError, shown_error
from dslite.model.errors import DsliteError

if TYPE_CHECKING:
    from dslite.app.sessions.store import SessionStore

T = TypeVar("T")
_UPDATE_EVERY_S = 0.5


@dataclass(frozen=True)
class ConversationStored:
    """A conversation has its id in the database. `key` is the tree's."""

    key: int
    id: str


@dataclass(frozen=True)
class SavingFailed:
    """The first fault; later ones are not reported until saving works again."""

    error: DsliteError


@dataclass(frozen=True)
class SavingResumed:
    """Saving works again, and everything is saved."""


WriterEvent = ConversationStored | SavingFailed | SavingResumed


class ConversationWriter:
    """Writes messages in order. With `saving` off it writes nothing and only runs queries."""

    def __init__(self, open_store: Callable[[], "SessionStore"], *, saving: bool = True) -> None:
        self.saving = saving
        self._open_store = open_store
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[WriterEvent] = queue.SimpleQueue()
        self._updated = 0.0
        # Of the thread:
        self._store: SessionStore | None = None
        self._fault: DsliteError | None = None
        self._conversations: dict[int, str] = {}  # key of a tree → id
        self._messages: dict[int, int] = {}  # key of a node → id
        self._thread = threading.Thread(target=self._run, name="dslite-writer", daemon=True)
        self._thread.start()

    def drain(self) -> list[WriterEvent]:
        """Events since the last call."""
        events: list[WriterEvent] = []
        while not self._events.empty():
            events.append(self._events.get())
        return events

    # Writing.

    def append(self, tree: MessageTree, node: Node) -> None:
        """Save a new message, and earlier ones that could not be saved."""
        conversation = tree.snapshot(node)
        self._write(lambda store: self._save(store, conversation))

    def update(self, tree: MessageTree, node: Node, ids: Sequence[int] | None) -> None:
        """Save the text and the token ids that an answer has by now."""
        conversation = tree.snapshot(node)
        content = node.content

        def save(store: "SessionStore") -> None:
            self._save(store, conversation)
            store.update_answer(self._messages[conversation.path[-1].key], content, ids)

        self._write(save)

    def update_now_and_then(self, tree: MessageTree, node: Node, ids: Sequence[int]) -> None:
        """`update`, at most twice a second: a crash loses less than a second of text."""
        now = time.monotonic()
        if node.content and now - self._updated > _UPDATE_EVERY_S:
            self._updated = now
            self.update(tree, node, tuple(ids) or None)

    def finish(self, tree: MessageTree, node: Node) -> None:
        """Save an answer that has ended."""
        conversation = tree.snapshot(node)
        answer = conversation.path[-1]

        def save(store: "SessionStore") -> None:
            self._save(store, conversation)
            stored, reason = self._messages[answer.key], answer.finish_reason or "stop"
            store.finish_answer(stored, answer.content, answer.token_ids, reason, dict(answer.info))

        self._write(save)

    def rename(self, tree: MessageTree, title: str) -> None:
        self._write_if_saved(tree, lambda store, identity: store.rename(identity, title))

    def configure(self, tree: MessageTree) -> None:
        """Save the model, profile and system message of later answers."""
        model, profile, system = tree.model, tree.profile, tree.system
        self._write_if_saved(
            tree, lambda store, identity: store.configure(identity, model=model, profile=profile, system=system)
        )

    def set_leaf(self, tree: MessageTree) -> None:
        """Save which branch is the active one."""
        if tree.leaf is None:
            return
        key, stored = tree.leaf.key, tree.leaf.stored

        def save(store: "SessionStore", identity: str) -> None:
            if (leaf := self._messages.get(key, stored)) is not None:
                store.set_leaf(identity, leaf)

        self._write_if_saved(tree, save)

    def ask(self, query: Callable[["SessionStore"], T]) -> "Future[T]":
        """Run a query on the writer's thread, after every write that was requested before it."""
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(query(self._open()))
            except Exception as error:  # of any kind: the caller of the future gets it
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def close(self, timeout: float = 10.0) -> None:
        """Write everything that is queued, and end the thread."""
        self._jobs.put(None)
        self._thread.join(timeout)

    # The thread.

    def _write_if_saved(self, tree: MessageTree, save: Callable[["SessionStore", str], object]) -> None:
        key, loaded = tree.key, tree.id

        def write(store: "SessionStore") -> None:
            if (identity := self._conversations.get(key, loaded)) is not None:
                save(store, identity)

        self._write(write)

    def _save(self, store: "SessionStore", conversation: ConversationSnapshot) -> None:
        """Write the messages of a branch that the database lacks."""
        identity = self._conversations.get(conversation.key, conversation.id)
        if identity is None:
            identity = store.create(
                model=conversation.model,
                profile=conversation.profile,
                system=conversation.system,
                title=conversation.title,
            ).id
            self._events.put(ConversationStored(conversation.key, identity))
        self._conversations[conversation.key] = identity
        for message in conversation.path:
            if message.stored is not None:
                self._messages.setdefault(message.key, message.stored)
            if message.key not in self._messages:
                saved = store.append(
                    identity,
                    message.role,
                    message.content,
                    parent=self._messages[message.parent] if message.parent is not None else None,
                    token_ids=message.token_ids,
                    finish_reason=message.finish_reason,
                    info=message.info,
                    growing=message.growing,
                )
                self._messages[message.key] = saved.id

    def _write(self, save: Callable[["SessionStore"], object]) -> None:
        def job() -> None:
            try:
                save(self._open())
            except Exception as error:  # of any kind: the thread must go on
                fault = shown_error(error)
                if self._fault is None:
                    self._events.put(SavingFailed(fault))
                self._fault = fault
            else:
                if self._fault is not None:
                    self._events.put(SavingResumed())
                self._fault = None

        if self.saving:
            self._jobs.put(job)

    def _open(self) -> "SessionStore":
        if self._store is None:
            self._store = self._open_store()
        return self._store

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # a snapshot is freed before the next job is waited for
        if self._store is not None:
            try:
                self._store.close()
            except SessionsError as error:
                self._events.put(SavingFailed(error))
