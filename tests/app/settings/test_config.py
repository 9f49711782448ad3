"""config.toml: read with its faults named, edited so that all else survives, written whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from dslite.app.errors import ConfigFileError
from dslite.app.settings.config_file import config_path, editing, read_config, write_atomically


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSLITE_CONFIG_DIR", str(tmp_path))
    return tmp_path / "config.toml"


def test_the_file_lies_where_the_environment_says(file: Path) -> None:
    assert config_path() == file


def test_no_file_is_as_good_as_an_empty_one(file: Path) -> None:
    assert read_config().values == {}
    assert read_config().table("profiles", "x") == {}
    assert not file.exists()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"[defaults]\ntemperature = 0.2\ntop_p == 1\n", "line 3, column 8"),
        (b'a = "open\n', "line 1, column 10"),
        (b"[a]\n[a]\n", "line 2, column 3"),
        (b"a = 1\n# caf\xe9\n", "line 2, column 6"),
        (b"a = 1\nb = \n", "line 2, column 5"),
        (b"a = 1\nb = [1,\n\n", "line 2, column 8"),
        (b"\xff", "line 1, column 1"),
    ],
)
def test_a_broken_file_is_named_with_line_and_column_and_stays_as_it_is(file: Path, text: bytes, place: str) -> None:
    file.write_bytes(text)
    with pytest.raises(ConfigFileError, match=place) as caught:
        read_config()
    assert str(file) in caught.value.message
    with pytest.raises(ConfigFileError, match=place), editing():
        pytest.fail("a broken file must not be edited")
    assert file.read_bytes() == text
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("text", "fault"), [("profiles = 3", "profiles is 3"), ("[profiles]\nx = 'a'", "profiles.x is 'a'")]
)
def test_what_should_be_a_table_and_is_not_is_named(file: Path, text: str, fault: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigFileError, match=fault):
        read_config().table("profiles", "x")


def test_edits_keep_comments_order_unknown_keys_and_line_ends(file: Path) -> None:
    before = b"# top\r\nunknown = [ 1,2 ]   # odd spaces\r\n\r\n[defaults] # d\r\ntemperature = 0.20\r\n"
    before += b"\r\n[z]\r\na.b = 'c'\r\n"
    file.write_bytes(before)
    with editing() as document:
        document["defaults"]["temperature"] = 0.5
    assert file.read_bytes() == before.replace(b"0.20", b"0.5")


def test_an_edit_that_changes_nothing_writes_nothing(file: Path) -> None:
    file.write_text("a = 1")
    before = file.stat()
    with editing() as document:
        assert document["a"] == 1
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_ino == before.st_ino


def test_an_edit_that_fails_halfway_changes_nothing(file: Path) -> None:
    file.write_text("a = 1\n")

    def edit() -> None:
        with editing() as document:
            document["a"] = 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        edit()
    assert file.read_text() == "a = 1\n"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("a = 1\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigFileError, match="No space left on device"):
        write_atomically(file, "a = 2\n")
    assert file.read_text() == "a = 1\n"
    assert list(file.parent.iterdir()) == [file]


def test_a_reader_sees_the_old_text_until_the_new_one_is_on_the_disk(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("a = 1\n")
    seen: list[str] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        fsync(descriptor)
        seen.append(file.read_text())

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(file, "a = 2\n")
    assert seen == ["a = 1\n"]
    assert file.read_text() == "a = 2\n"


def test_a_link_stays_a_link_and_permissions_stay(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles" / "dslite.toml"
    target.parent.mkdir()
    target.write_text("a = 1\n")
    target.chmod(0o640)
    file.symlink_to(target)
    with editing() as document:
        document["a"] = 2
    assert file.is_symlink()
    assert target.read_text() == "a = 2\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
