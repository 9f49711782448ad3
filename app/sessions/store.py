"""Saved conversations.

    with SessionStore.open() as store:
        conversation = store.create(model="chat")
        question = store.append(conversation.id, "user", "Why is the sky blue?", parent=None)
        answer = store.append(conversation.id, "assistant", "", parent=question.id, growing=True)
        store.update_answer(answer.id, "Because", [13, 7])          # at most once or twice a second
        store.finish_answer(answer.id, "Because of …", [13, 7, 9], "stop")

Every call is one transaction: what it wrote is kept when the process is killed. Calls come from any thread; they may
wait up to five seconds for another dslite that writes, so a screen's thread should not make them. Every fault of the
file or the disk is a SessionsError.
"""

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dslite.app.errors import NoConversationError, SessionsError
from dslite.app.sessions import search
from dslite.app.sessions.attachments import split_attachments
from dslite.app.sessions.database import Database
from dslite.app.sessions.ids import clean, new_id, title_of
from dslite.app.sessions.records import (
    CONVERSATIONS,
    MESSAGES,
    UPWARD,
    Conversation,
    Role,
    StoredMessage,
    pack,
    stored_message,
    to_json,
)
from dslite.app.sessions.search import Hit
from dslite.runtime.paths import data_dir, remove_saved_cache

__all__ = ["Conversation", "Hit", "Role", "SessionStore", "SessionsError", "StoredMessage", "title_of"]

_UNDO_DAYS = 7
_ABANDONED_S = 60.0  # an answer that has not grown for so long belongs to a process that was killed


class SessionStore:
    """The conversations of one user."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @classmethod
    def open(cls, path: Path | None = None) -> "SessionStore":
        """Open or create `path`, by default sessions.db in the data folder. Raises SessionsError."""
        store = cls(Database.open(path or data_dir() / "sessions.db"))
        store._close_abandoned()
        with suppress(SessionsError):  # a file that only reads is still worth reading
            store._end_deleted()
        return store

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> "SessionStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Conversations.

    def create(
        self, *, model: str, profile: str | None = None, system: str | None = None, title: str = ""
    ) -> Conversation:
        """Begin a conversation. An empty title is filled by the first message of the user."""
        now = time.time()
        identity = new_id(now)
        with self.database.writing() as db:
            db.execute(
                "INSERT INTO conversations (id, title, model, profile, system, created, updated)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (identity, clean(title), model, profile, system and clean(system), now, now),
            )
        return Conversation(identity, clean(title), model, profile, system, None, now, now, 0)

    def get(self, conversation_id: str) -> Conversation:
        """Raises NoConversationError."""
        with self.database.reading() as db:
            row = db.execute(f"{CONVERSATIONS} WHERE c.id = ? AND c.deleted IS NULL", (conversation_id,)).fetchone()
        if row is None:
            raise NoConversationError(f"there is no conversation {conversation_id}", "see dslite session list")
        return Conversation.of_row(row)

    def find(self, prefix: str, *, deleted: bool = False) -> Conversation:
        """The one conversation whose id begins so. Raises NoConversationError when there is none or more than one."""
        start = prefix.upper()
        where = f"WHERE c.id >= ? AND c.id < ? AND c.deleted IS {'NOT NULL' if deleted else 'NULL'}"
        with self.database.reading() as db:
            rows = db.execute(f"{CONVERSATIONS} {where} LIMIT 2", (start, start + "~")).fetchall() if start else []
        if len(rows) != 1:
            what = (
                "more than one conversation has an id that begins" if rows else "no conversation has an id that begins"
            )
            raise NoConversationError(f"{what} with {prefix!r}", "see dslite session list")
        return Conversation.of_row(rows[0])

    def latest(self) -> Conversation | None:
        """The conversation that was changed last."""
        return next(iter(self.conversations(limit=1)), None)

    def conversations(
        self, *, limit: int | None = 50, before: Conversation | None = None, pinned: bool | None = None
    ) -> list[Conversation]:
        """Conversations, the last changed first; `before` is the last one of the page before. `pinned`: those that are,
        or that are not."""
        where, values = "WHERE c.deleted IS NULL", []
        if pinned is not None:
            where += " AND c.pinned" if pinned else " AND NOT c.pinned"
        if before is not None:
            where += " AND (c.updated, c.id) < (?, ?)"
            values = [before.updated, before.id]
        with self.database.reading() as db:
            rows = db.execute(
                f"{CONVERSATIONS} {where} ORDER BY c.updated DESC, c.id DESC LIMIT ?",
                [*values, -1 if limit is None else limit],
            ).fetchall()
        return [Conversation.of_row(row) for row in rows]

    def search(self, text: str, *, limit: int = 50) -> list[Hit]:
        """Conversations with a message or a title that holds every word of `text`, the newest message first."""
        with self.database.reading() as db:
            return search.search(db, text, limit, indexed=self.database.indexed)

    def rename(self, conversation_id: str, title: str) -> None:
        self._change(conversation_id, title=clean(title))

    def configure(self, conversation_id: str, *, model: str, profile: str | None, system: str | None) -> None:
        """Keep what later answers of a conversation are to be made with."""
        self._change(conversation_id, model=model, profile=profile, system=system and clean(system))

    def pin(self, conversation_id: str, *, pinned: bool) -> None:
        """Put a conversation above the others in lists, or back among them."""
        self._change(conversation_id, pinned=pinned)

    def delete(self, conversation_id: str) -> None:
        """Take a conversation out of every list. `restore` brings it back for a week; then the next opening ends it."""
        self._change(conversation_id, deleted=time.time())
        self._end_deleted()

    def purge(self, conversation_id: str) -> None:
        """Delete a conversation for good."""
        self._purge_where("id = ?", conversation_id)

    def _end_deleted(self) -> None:
        """Delete for good what was deleted over a week ago."""
        before = time.time() - _UNDO_DAYS * 86400
        with self.database.reading() as db:
            if not db.execute("SELECT 1 FROM conversations WHERE deleted < ?", (before,)).fetchone():
                return
        self._purge_where("deleted < ?", before)

    def _purge_where(self, condition: str, *values: object) -> None:
        """Remove the last traces of conversations: in the file, and what the model computed of them."""
        for identity in self.database.delete_conversations(condition, *values):
            remove_saved_cache(identity)

    def restore(self, conversation_id: str) -> None:
        """Undo a delete."""
        self._change(conversation_id, deleted=None)

    def _change(self, conversation_id: str, **values: Any) -> None:
        columns = ", ".join(f"{name} = ?" for name in values)
        with self.database.writing() as db:
            found = db.execute(f"UPDATE conversations SET {columns} WHERE id = ?", (*values.values(), conversation_id))
            if not found.rowcount:
                raise NoConversationError(f"there is no conversation {conversation_id}", "see dslite session list")

    # Messages.

    def append(
        self,
        conversation_id: str,
        role: Role,
        content: str,
        *,
        parent: int | None,
        token_ids: Sequence[int] | None = None,
        finish_reason: str | None = None,
        info: Mapping[str, Any] | None = None,
        growing: bool = False,
    ) -> StoredMessage:
        """Add a message under `parent` (None: a first one) and make it the end of the active branch.

        A parent that has children already gets one more branch. `growing` is for an answer that begins.
        """
        now = time.time()
        with self.database.writing() as db:
            key, title = self._key_and_title(db, conversation_id)
            if not title and role == "user":
                title = title_of(content)
            cursor = db.execute(
                "INSERT INTO messages (conversation, parent, role, content, token_ids, finish_reason, info, growing,"
                " created, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (key, parent, role, clean(content), pack(token_ids), finish_reason, to_json(info), growing, now, now),
            )
            db.execute(
                "UPDATE conversations SET leaf = ?, title = ?, updated = ? WHERE key = ?",
                (cursor.lastrowid, title, now, key),
            )
            return self._message(db, int(cursor.lastrowid or 0))

    def update_answer(self, message_id: int, content: str, token_ids: Sequence[int] | None = None) -> None:
        """Save an answer as far as it is; a finished one grows again."""
        with self.database.writing() as db:
            db.execute(
                "UPDATE messages SET content = ?, token_ids = ?, growing = 1, updated = ? WHERE id = ?",
                (clean(content), pack(token_ids), time.time(), message_id),
            )

    def finish_answer(
        self,
        message_id: int,
        content: str,
        token_ids: Sequence[int] | None,
        finish_reason: str,
        info: Mapping[str, Any] | None = None,
    ) -> StoredMessage:
        """Save a whole answer; from now on it is found by search."""
        now = time.time()
        with self.database.writing() as db:
            db.execute(
                "UPDATE messages SET content = ?, token_ids = ?, finish_reason = ?, info = ?, growing = 0, updated = ?"
                " WHERE id = ?",
                (clean(content), pack(token_ids), finish_reason, to_json(info), now, message_id),
            )
            db.execute(
                "UPDATE conversations SET updated = ? WHERE key = (SELECT conversation FROM messages WHERE id = ?)",
                (now, message_id),
            )
            return self._message(db, message_id)

    def path(self, leaf: int | None) -> list[StoredMessage]:
        """The branch that ends in `leaf`, its first message first; None is an empty one."""
        with self.database.reading() as db:
            rows = db.execute(f"{UPWARD} {MESSAGES} JOIN up ON up.id = m.id ORDER BY m.id", (leaf,)).fetchall()
        return [stored_message(row) for row in rows]

    def tree(self, conversation_id: str) -> list[StoredMessage]:
        """All messages of all branches, parents before children."""
        with self.database.reading() as db:
            rows = db.execute(f"{MESSAGES} WHERE c.id = ? ORDER BY m.id", (conversation_id,)).fetchall()
        return [stored_message(row) for row in rows]

    def set_leaf(self, conversation_id: str, leaf: int | None) -> None:
        """End the active branch at a message."""
        self._change(conversation_id, leaf=leaf)

    def inputs(self, limit: int = 500) -> list[str]:
        """What the user wrote in any conversation, the newest first, each text once."""
        with self.database.reading() as db:
            rows = db.execute(
                "SELECT m.content, m.info FROM messages m JOIN conversations c ON c.key = m.conversation"
                " WHERE m.role = 'user' AND c.deleted IS NULL ORDER BY m.id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        texts = (split_attachments(row["content"], json.loads(row["info"]))[1] for row in rows)
        return list(dict.fromkeys(filter(None, texts)))

    def _close_abandoned(self) -> None:
        """Finish the answers of processes that were killed, so that they can be found."""
        before = time.time() - _ABANDONED_S
        with self.database.reading() as db:
            if not db.execute("SELECT 1 FROM messages WHERE growing AND updated < ?", (before,)).fetchone():
                return
        try:
            with self.database.writing() as db:
                db.execute(
                    "UPDATE messages SET growing = 0, finish_reason = 'interrupted' WHERE growing AND updated < ?",
                    (before,),
                )
        except SessionsError:
            return  # a file that only reads is still worth reading

    @staticmethod
    def _key_and_title(db: sqlite3.Connection, conversation_id: str) -> tuple[int, str]:
        row = db.execute("SELECT key, title FROM conversations WHERE id = ?", (conversation_id,)).fetchone()
        if row is None:
            raise NoConversationError(f"there is no conversation {conversation_id}", "see dslite session list")
        return row["key"], row["title"]

    @staticmethod
    def _message(db: sqlite3.Connection, message_id: int) -> StoredMessage:
        row = db.execute(f"{MESSAGES} WHERE m.id = ?", (message_id,)).fetchone()
        if row is None:
            raise NoConversationError(f"there is no message {message_id}")
        return stored_message(row)
