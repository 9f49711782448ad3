"""The database of conversations: its schema, its migrations, its search index, and its faults as SessionsError.

Messages are a tree and rows are never replaced: another answer, or an edited question, is one more child. The search
index knows a message once it is whole; text that still grows is left out, as indexing it anew every second would cost.
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path

from dslite.app.errors import SessionsError

Migration = Sequence[str]

# The index of the search. SQLite before 3.34 has no trigrams: then there is none, and texts are gone through.
_SEARCH_INDEX: Migration = (
    # Trigrams find words inside words, and Chinese, which has no spaces between them. Two spaces behind every text
    # let its last two characters begin a trigram, too: so two characters can be found by the trigrams they begin.
    "CREATE VIEW padded_messages AS SELECT id, content || '  ' AS content FROM messages",
    """CREATE VIRTUAL TABLE message_search USING fts5 (
        content, content = 'padded_messages', content_rowid = 'id', tokenize = 'trigram'
    )""",
    "CREATE VIRTUAL TABLE message_trigrams USING fts5vocab (message_search, row)",
    """CREATE TRIGGER message_added AFTER INSERT ON messages WHEN NOT new.growing BEGIN
        INSERT INTO message_search (rowid, content) VALUES (new.id, new.content || '  ');
    END""",
    # One trigger, not two: SQLite does not say which of two would run first.
    """CREATE TRIGGER message_changed AFTER UPDATE OF content, growing ON messages BEGIN
        INSERT INTO message_search (message_search, rowid, content)
        SELECT 'delete', old.id, old.content || '  ' WHERE NOT old.growing;
        INSERT INTO message_search (rowid, content) SELECT new.id, new.content || '  ' WHERE NOT new.growing;
    END""",
    """CREATE TRIGGER message_gone AFTER DELETE ON messages WHEN NOT old.growing BEGIN
        INSERT INTO message_search (message_search, rowid, content)
        VALUES ('delete', old.id, old.content || '  ');
    END""",
)
# Those of 0.1.0 among them: message_left and message_whole, which lost answers that were saved whole at once.
_SEARCH_TRIGGERS = ("message_added", "message_changed", "message_left", "message_whole", "message_gone")

# A database at version N has run the first N. Never change one that was released; append another.
MIGRATIONS: tuple[Migration, ...] = (
    (
        """CREATE TABLE conversations (
            key INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            title TEXT NOT NULL,
            model TEXT NOT NULL,
            profile TEXT,
            system TEXT,
            leaf INTEGER REFERENCES messages (id) DEFERRABLE INITIALLY DEFERRED,
            created REAL NOT NULL,
            updated REAL NOT NULL,
            deleted REAL
        )""",
        "CREATE INDEX conversations_by_age ON conversations (updated, id) WHERE deleted IS NULL",
        # Without a cascade along `parent`: SQLite would recurse, and stop at a chain of 1,000 messages.
        """CREATE TABLE messages (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            conversation INTEGER NOT NULL REFERENCES conversations (key) ON DELETE CASCADE,
            parent INTEGER REFERENCES messages (id),
            role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
            content TEXT NOT NULL,
            token_ids BLOB,
            finish_reason TEXT,
            info TEXT NOT NULL DEFAULT '{}',
            growing INTEGER NOT NULL DEFAULT 0,
            created REAL NOT NULL,
            updated REAL NOT NULL
        )""",
        "CREATE INDEX messages_in_conversation ON messages (conversation, parent)",
        "CREATE INDEX messages_under ON messages (parent)",
        "CREATE INDEX messages_growing ON messages (updated) WHERE growing",
        "CREATE INDEX messages_of_user ON messages (id) WHERE role = 'user'",
    ),
    (
        "ALTER TABLE conversations ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX conversations_pinned ON conversations (updated, id) WHERE pinned AND deleted IS NULL",
    ),
)
VERSION = len(MIGRATIONS)
_WAIT_S = 5.0  # for another dslite that is writing
_VACUUM_SHARE = 4  # the file is written anew when a quarter of it is free
# The file's application id says what is left of deleted texts in it. 0: an earlier version deleted without overwriting.
_ERASED = 0x64736C74  # nothing ("dslt")
_TRACES = 0x64736C75  # a process was killed, or another one was reading, before all was overwritten
_FEW_DELETED = "CREATE INDEX IF NOT EXISTS conversations_deleted ON conversations (deleted) WHERE deleted IS NOT NULL"

log = logging.getLogger(__name__)


def find_damage(path: Path) -> str | None:
    """What SQLite finds wrong with a database; None where it is sound or there is none. Changes nothing."""
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            found = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
    except sqlite3.Error as error:
        return str(error)
    return None if found == ["ok"] else str(found[0])


class Database:
    """One connection, for any thread, one at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, indexed: bool) -> None:
        self.path = path
        self.indexed = indexed  # whether messages are in the search index
        self._connection = connection
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path, *, trigrams: bool | None = None) -> "Database":
        """Open or create; bring an older schema up to date. Raises SessionsError, with a newer schema untouched.

        `trigrams`: whether SQLite can index them; None asks it.
        """
        with _sessions_errors(path):
            connection = _connect(path)
            try:
                connection.row_factory = sqlite3.Row
                _check_version(path, connection)
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten
                if _version(connection) < VERSION:
                    _migrate(path, connection)
                indexed = _match_index(connection, has_trigrams() if trigrams is None else trigrams)
                _erase_leftovers(connection, indexed)
                # With a write-ahead log, NORMAL loses nothing when the process is killed.
                connection.execute("PRAGMA synchronous = NORMAL")
            except BaseException:
                connection.close()
                raise
        return cls(path, connection, indexed=indexed)

    def close(self) -> None:
        with self._lock, _sessions_errors(self.path):
            self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for queries. Faults become SessionsError."""
        with self._lock, _sessions_errors(self.path):
            yield self._connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection in a transaction: all of it or nothing. Faults become SessionsError."""
        with self._lock, _sessions_errors(self.path), _transaction(self._connection):
            yield self._connection

    def delete_conversations(self, condition: str, *values: object) -> list[str]:
        """Delete conversations for good: unreadable in the file, in its log and in the search index. Returns their ids.

        `condition` is one of SQL over `conversations`. Faults: SessionsError.
        """
        with self.writing() as db:
            gone = db.execute(f"DELETE FROM conversations WHERE {condition} RETURNING id", values).fetchall()
            if gone and _application(db) == _ERASED:
                db.execute(f"PRAGMA application_id = {_TRACES}")
        if gone:
            with self._lock, _sessions_errors(self.path):
                _erase(self._connection, self.indexed)
        return [row["id"] for row in gone]


def _application(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA application_id").fetchone()[0])


def _erase_leftovers(connection: sqlite3.Connection, indexed: bool) -> None:
    """Overwrite what an earlier version or a killed process has left of deleted texts."""
    if (found := _application(connection)) == _ERASED:
        return
    try:
        connection.execute(_FEW_DELETED)
        if found != _TRACES:
            connection.execute("VACUUM")
        _erase(connection, indexed)
    except sqlite3.OperationalError as error:  # a file that only reads, a full disk, another process: another time
        log.warning("deleted texts may be left in the file: %s", error)


def _erase(connection: sqlite3.Connection, indexed: bool) -> None:
    """Overwrite deleted texts where secure_delete does not, and shrink the file where much of it is free."""
    if indexed:
        # Removed entries stay in the index until its parts are merged.
        connection.execute("INSERT INTO message_search (message_search) VALUES ('optimize')")
    pages, free = (int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count"))
    if free * _VACUUM_SHARE > pages:
        with suppress(sqlite3.OperationalError):  # another process uses the file: another time
            connection.execute("VACUUM")
    # Not where another process reads; then the next opening does it.
    if not connection.execute("PRAGMA wal_checkpoint (TRUNCATE)").fetchone()[0]:
        connection.execute(f"PRAGMA application_id = {_ERASED}")


@cache
def has_trigrams() -> bool:
    """Whether this SQLite has a full-text index of trigrams."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE probe USING fts5 (content, tokenize = 'trigram')")
    except sqlite3.Error:
        return False
    finally:
        connection.close()
    return True


def _match_index(connection: sqlite3.Connection, trigrams: bool) -> bool:
    """Build the search index where it is missing and possible; stop its upkeep where this SQLite cannot do it."""
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    if "message_changed" in names if trigrams else names.isdisjoint(_SEARCH_TRIGGERS):
        return trigrams
    try:
        with _transaction(connection):
            for trigger in _SEARCH_TRIGGERS:
                connection.execute(f"DROP TRIGGER IF EXISTS {trigger}")
            if not trigrams:
                return False
            for statement in _SEARCH_INDEX:
                if "message_search" not in names or "TRIGGER" in statement:
                    connection.execute(statement)
            connection.execute("INSERT INTO message_search (message_search) VALUES ('rebuild')")
            # The index holds whole messages only, as the triggers expect.
            for row in connection.execute("SELECT id, content FROM messages WHERE growing").fetchall():
                connection.execute(
                    "INSERT INTO message_search (message_search, rowid, content) VALUES ('delete', ?, ?)",
                    (row[0], row[1] + "  "),
                )
    except sqlite3.OperationalError:
        return False  # a file that only reads is searched without an index
    return True


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that may write, or one that only reads where the file allows no more."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # what people write is theirs alone
        writable = True
    except OSError:
        if not path.is_file():
            raise
        writable = False
    connection = _open_uri(path, "mode=rw" if writable else "mode=ro")
    try:
        _version(connection)
    except sqlite3.OperationalError as error:
        connection.close()
        if not writable:
            # The log's files cannot be created beside it, by no process: so the file does not change.
            return _open_uri(path, "immutable=1")
        if _error_name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise
        # A write-ahead log that was begun on another file system: this one has no shared memory for it.
        connection = _open_uri(path, "mode=rw")
        _use_rollback_journal(connection)
    return connection


def _open_uri(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
    )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_version(path: Path, connection: sqlite3.Connection) -> None:
    version = _version(connection)
    if version > VERSION:
        raise SessionsError(
            f"{path} was written by a newer dslite: its version is {version}, and this one knows {VERSION}",
            "update dslite, or point DSLITE_DATA_DIR to another folder; the file was not touched",
        )


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    choose_journal(connection)
    with _transaction(connection):
        _check_version(path, connection)  # another dslite may have been faster
        if not _version(connection):
            connection.execute(f"PRAGMA application_id = {_ERASED}")
        for migration in MIGRATIONS[_version(connection) :]:
            for statement in migration:
                connection.execute(statement)
        connection.execute(_FEW_DELETED)
        connection.execute(f"PRAGMA user_version = {VERSION}")


def choose_journal(connection: sqlite3.Connection) -> None:
    """A write-ahead log, or a rollback journal where the file system has no shared memory (network drives)."""
    try:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # uses it
    except sqlite3.OperationalError as error:
        log.warning("no write-ahead log: %s", error)
        mode = _use_rollback_journal(connection)
    log.info("journal mode %s", mode)


def _use_rollback_journal(connection: sqlite3.Connection) -> str:
    """Leave a write-ahead log, without shared memory, after what stands in it was written to the file."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    mode = str(connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0])
    connection.execute("PRAGMA locking_mode = NORMAL")
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # lets the lock go
    return mode


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    # IMMEDIATE: a transaction that begins by reading could not wait its turn to write.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has already rolled it back
            connection.execute("ROLLBACK")
        raise


@contextmanager
def _sessions_errors(path: Path) -> Iterator[None]:
    """Turn what the database or the file system says into SessionsError; mistakes of our own stay what they are."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.DatabaseError as error:
        raise SessionsError(f"{path}: {error}", _remedy(error)) from None
    except OSError as error:
        raise SessionsError(
            f"{path}: {error.strerror}", "check the folder's permissions, or set DSLITE_DATA_DIR"
        ) from None


def _remedy(error: sqlite3.DatabaseError) -> str:
    name = _error_name(error)
    if name.startswith("SQLITE_FULL"):
        return "make room on the disk"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return "another dslite is writing: try again"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return "the file is damaged: move it away, and dslite begins a new one"
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PROTOCOL", "SQLITE_IOERR")):
        return "check the disk and the folder's permissions, or set DSLITE_DATA_DIR to a folder on a local disk"
    return "check the file's permissions and the disk, or set DSLITE_DATA_DIR"


def _error_name(error: sqlite3.Error) -> str:
    """SQLite's name of an error, such as SQLITE_BUSY; empty where the error has none."""
    return getattr(error, "sqlite_errorname", "") or ""
