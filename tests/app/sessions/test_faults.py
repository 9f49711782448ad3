"""A database that is newer, older, damaged, full or not ours to write: one clear error, and nothing lost."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dslite.app.errors import SessionsError
from dslite.app.sessions import database
from dslite.app.sessions.database import MIGRATIONS, VERSION
from dslite.app.sessions.store import SessionStore

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with one conversation."""
    file = tmp_path / "sessions.db"
    with SessionStore.open(file) as store:
        talk = store.create(model="chat")
        store.append(talk.id, "user", "quicksort", parent=None)
    return file


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def not_root() -> Iterator[None]:
    """Permissions count for everybody but root: be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_database_from_a_newer_version_is_refused_untouched(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(SessionsError, match=f"newer dslite: its version is {VERSION + 1}") as caught:
        SessionStore.open(path)
    assert "update dslite" in caught.value.remedy
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_older_database_is_brought_up_to_date_with_its_conversations(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = (
        *MIGRATIONS,
        ("ALTER TABLE conversations ADD COLUMN colour TEXT", "UPDATE conversations SET colour = 'red'"),
    )
    monkeypatch.setattr(database, "MIGRATIONS", later)
    monkeypatch.setattr(database, "VERSION", len(later))
    with SessionStore.open(path) as store:
        assert [hit.title for hit in store.search("quicksort")] == ["quicksort"]
        with store.database.reading() as db:
            assert db.execute("SELECT colour FROM conversations").fetchone()[0] == "red"
            assert db.execute("PRAGMA user_version").fetchone()[0] == len(later)


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (*MIGRATIONS, ("ALTER TABLE conversations ADD COLUMN colour TEXT", "UPDATE nowhere SET x = 1"))
    with monkeypatch.context() as patched:
        patched.setattr(database, "MIGRATIONS", broken)
        patched.setattr(database, "VERSION", len(broken))
        with pytest.raises(SessionsError, match="nowhere"):
            SessionStore.open(path)
    with SessionStore.open(path) as store, store.database.reading() as db:
        assert "colour" not in [row["name"] for row in db.execute("PRAGMA table_info(conversations)")]
        assert len(store.conversations()) == 1


def test_a_file_that_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    file = tmp_path / "sessions.db"
    file.write_text("these are not the conversations you are looking for\n" * 100)
    before = file.read_bytes()
    with pytest.raises(SessionsError, match="not a database") as caught:
        SessionStore.open(file)
    assert "damaged" in caught.value.remedy
    assert file.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_a_sessions_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SessionsError, match="File exists"):
        SessionStore.open(tmp_path / "file" / "sessions.db")


def test_a_full_disk_is_a_sessions_error_and_what_was_saved_stays(path: Path) -> None:
    with SessionStore.open(path) as store:
        talk = store.latest()
        assert talk is not None
        with store.database.reading() as db:
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {pages + 1}")  # SQLite's own way to a disk that is full
        with pytest.raises(SessionsError, match="full") as caught:
            store.append(talk.id, "assistant", "long " * 100_000, parent=talk.leaf)
        assert caught.value.remedy == "make room on the disk"
        assert store.get(talk.id) == talk
        with store.database.reading() as db:
            db.execute("PRAGMA max_page_count = 1000000")
        store.append(talk.id, "assistant", "long " * 100_000, parent=talk.leaf)
        assert store.get(talk.id).messages == 2


@pytest.mark.parametrize("folder_mode", [0o755, 0o555])
def test_a_read_only_database_can_be_read_and_refuses_to_be_written(
    shared_folder: Path, folder_mode: int, request: pytest.FixtureRequest
) -> None:
    path = shared_folder / "sessions.db"
    with SessionStore.open(path) as store:
        talk = store.create(model="chat")
        store.append(talk.id, "assistant", "half", parent=None, growing=True)
        with store.database.writing() as db:
            db.execute("UPDATE messages SET updated = 0")  # opening would finish it, could it write
    path.chmod(0o444)
    shared_folder.chmod(folder_mode)
    request.getfixturevalue("not_root")
    with SessionStore.open(path) as store:
        assert [message.content for message in store.path(store.get(talk.id).leaf)] == ["half"]
        with pytest.raises(SessionsError, match="readonly"):
            store.rename(talk.id, "x")
        with pytest.raises(SessionsError, match="readonly"):
            store.create(model="chat")


def test_a_folder_without_permission_is_a_sessions_error(shared_folder: Path, request: pytest.FixtureRequest) -> None:
    shared_folder.chmod(0o555)
    request.getfixturevalue("not_root")
    with pytest.raises(SessionsError, match="Permission denied"):
        SessionStore.open(shared_folder / "sessions.db")


def test_another_process_that_never_ends_its_writing_is_a_sessions_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_WAIT_S", 0.05)
    blocking = sqlite3.connect(path, isolation_level=None)
    blocking.execute("BEGIN IMMEDIATE")
    with SessionStore.open(path) as store:
        assert len(store.conversations()) == 1  # reading goes on
        with pytest.raises(SessionsError, match="locked") as caught:
            store.create(model="chat")
        assert "another dslite" in caught.value.remedy
        blocking.execute("ROLLBACK")
        store.create(model="chat")
    blocking.close()


class WithoutSharedMemory(sqlite3.Connection):
    """A connection on a file system that has no shared memory for a write-ahead log."""

    def execute(self, sql: str, *more: Any) -> sqlite3.Cursor:
        if "WAL" in sql:
            raise sqlite3.OperationalError("locking protocol")
        return super().execute(sql, *more)


def test_where_a_write_ahead_log_fails_a_rollback_journal_is_used(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    with sqlite3.connect(path, factory=WithoutSharedMemory) as connection:
        database.choose_journal(connection)
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        assert connection.execute("PRAGMA locking_mode").fetchone()[0] == "normal"
    connection.close()
    with SessionStore.open(path) as store:
        assert store.conversations() == []


@pytest.mark.parametrize("logged", [False, True])
def test_a_log_is_left_on_a_file_system_without_shared_memory(tmp_path: Path, logged: bool) -> None:
    """A copied data folder: the shared memory of its log cannot be opened there."""
    path = tmp_path / "sessions.db"
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dslite.app.sessions.store import SessionStore\n"
        "store = SessionStore.open(Path(sys.argv[1]))\n"
        "store.append(store.create(model='chat').id, 'user', 'quicksort', parent=None)\n"
        f"{'os._exit(0)' if logged else 'store.close()'}\n"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    path.with_name("sessions.db-shm").unlink(missing_ok=True)
    path.with_name("sessions.db-shm").symlink_to("nowhere/at all")
    assert path.with_name("sessions.db-wal").exists() == logged
    for number in range(2):
        with SessionStore.open(path) as store, SessionStore.open(path) as other:
            assert len(store.search("quicksort")) == 1
            store.create(model="chat", title="another")
            assert len(other.conversations()) == 2 + number
            with store.database.reading() as db:
                assert db.execute("PRAGMA journal_mode").fetchone()[0] == "delete"


def test_a_log_that_cannot_be_opened_names_a_local_disk(path: Path) -> None:
    path.with_name("sessions.db-shm").symlink_to("nowhere/at all")
    path.with_name("sessions.db-wal").mkdir()
    with pytest.raises(SessionsError, match="unable to open") as caught:
        SessionStore.open(path)
    assert "DSLITE_DATA_DIR to a folder on a local disk" in caught.value.remedy


def test_only_the_user_may_read_the_conversations(path: Path, tmp_path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    with SessionStore.open(tmp_path / "new" / "sessions.db"):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
