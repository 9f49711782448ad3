"""Queries to the store of saved chats. They run on the writer's thread; their results are taken by `deliver`."""

import queue
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from dslite.app.chat.state import ChatState
from dslite.app.errors import shown_error

if TYPE_CHECKING:
    from dslite.app.sessions.store import SessionStore

T = TypeVar("T")


class SavedChats:
    """Finds, renames, deletes and restores saved chats."""

    def __init__(self, chat: ChatState) -> None:
        self._chat = chat
        self._results: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._deleted: list[tuple[str, str]] = []  # ids and titles, for undo
        self.pending = 0  # queries without a result

    def lookup(self, query: Callable[["SessionStore"], T], then: Callable[[T], None]) -> None:
        """Run a query; `then` gets its result in a later `deliver`. Errors are shown."""
        self.pending += 1
        self._chat.writer.ask(query).add_done_callback(lambda done: self._results.put(partial(self._take, done, then)))

    def _take(self, done: "Future[T]", then: Callable[[T], None]) -> None:
        self.pending -= 1
        error = done.exception()
        if error is None:
            then(done.result())
        else:
            self._chat.view.error(shown_error(error))  # type: ignore[arg-type]

    def deliver(self) -> None:
        """Hand out the results that have come."""
        while not self._results.empty():
            self._results.get()()

    def rename(self, identity: str, title: str, then: Callable[[], None]) -> None:
        """Rename any saved chat."""
        if identity == self._chat.tree.id:
            self._chat.tree.title = title
            self._chat.changed()
        self.lookup(lambda store: store.rename(identity, title), lambda _: then())

    def delete(self, identity: str, title: str, then: Callable[[], None]) -> None:
        """Delete a saved chat; `restore` takes it back while the program runs."""

        def deleted(_: object) -> None:
            self._deleted.append((identity, title))
            then()

        self.lookup(lambda store: store.delete(identity), deleted)

    def restore(self, then: Callable[[str], None]) -> bool:
        """Take back the last deletion; `then` gets the chat's title. False where nothing was deleted."""
        if not self._deleted:
            return False
        identity, title = self._deleted.pop()
        self.lookup(lambda store: store.restore(identity), lambda _: then(title))
        return True
