"""config.toml: read with its faults named, edited so that all else survives, written whole or not at all."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, get_args

import pytest
from support.cli_process import Dslite

from dslite.app.errors import ConfigFileError
from dslite.app.settings import config_schema
from dslite.app.settings.config_file import config_path, editing, read_config, write_atomically
from dslite.app.settings.config_schema import clean_config
from dslite.runtime.locked_file import LockTimeoutError, file_lock


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
    faults: list[str] = []
    assert read_config(report=faults.append).table("profiles", "x") == {}
    (named,) = faults
    assert fault in named
    with pytest.raises(ConfigFileError, match="must be a table"), editing():
        pytest.fail("what is no table must not be edited")
    assert file.read_text() == text


SOUND = {
    "defaults": {"temperature": 0.5, "top_p": 1, "stop": ["a"], "weights": "int8", "model": "demo", "profile": "x"},
    "profiles": {"x": {"system": "s", "description": "d", "regex": "[a-z]+", "json_schema": {"type": "object"}}},
    "chat": {"theme": "dark", "mouse": False, "when_full": "stop", "auto_title": True, "bell": False},
    "keys": {"stop": "ctrl+q", "edit": "f6, ctrl+t"},
    "engine": {"keep_alive": "10m"},
    "snippets": {"fix": "Correct: {input}"},
    "shipped": {"removed": ["coder"]},
}


def test_every_key_that_the_documentation_names_is_taken_as_it_is() -> None:
    assert clean_config(SOUND) == (SOUND, [])


WRONG: list[Any] = [None, 3, -1, 1.5, "", "neon", True, [], [1], ["a", 2], {"a": 1}, "\ud800", float("nan"), 10**30]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
@pytest.mark.parametrize(
    ("table", "key"), [(table, key) for table in SOUND for key in SOUND[table] if table != "profiles"], ids=str
)
def test_one_bad_value_is_named_and_the_others_apply(table: str, key: str, wrong: Any) -> None:
    raw = {name: dict(values) for name, values in SOUND.items()}
    raw[table][key] = wrong
    values, problems = clean_config(raw)
    if not problems:
        assert values == raw
        return
    (problem,) = problems
    assert problem.startswith(f"[{table}]: {key} is {wrong!r}")
    del raw[table][key]
    assert values == raw


@pytest.mark.parametrize("key", sorted(SOUND["profiles"]["x"]))
def test_one_bad_value_of_a_profile_is_named_and_the_rest_applies(key: str) -> None:
    values, problems = clean_config({"profiles": {"x": {**SOUND["profiles"]["x"], key: 7}, "y": 3}})
    assert problems[0].startswith(f"[profiles.x]: {key} is 7; it must be")
    assert problems[1].startswith("profiles.y is 3; it must be a table")
    assert values["profiles"]["x"] == {name: value for name, value in SOUND["profiles"]["x"].items() if name != key}


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"chat": {"wrong": 1}}, "[chat]: wrong is unknown"),
        ({"chat": {"them": "dark"}}, "[chat]: them is unknown; did you mean theme?"),
        ({"defaults": {"temprature": 1}}, "[defaults]: temprature is unknown; did you mean temperature?"),
        ({"profiles": {"x": {"colour": "blue"}}}, "[profiles.x]: colour is unknown"),
        ({"keys": {"stopp": "f6"}}, "[keys]: stopp is unknown; did you mean stop?"),
        ({"chats": {}}, "the table [chats] is unknown; did you mean chat?"),
        ({"theme": "dark"}, "theme is unknown"),
    ],
)
def test_what_is_unknown_is_named(raw: dict[str, Any], problem: str) -> None:
    assert clean_config(raw)[1] == [problem]


def test_the_themes_of_the_file_are_those_of_the_screen() -> None:
    from textual.app import App

    from dslite.app.chat.launch import WhenFull
    from dslite.app.tui.style.themes import THEMES

    assert [theme.name for theme in THEMES] == list(config_schema.THEMES)
    assert sorted(App().available_themes) == list(config_schema.TEXTUAL_THEMES)
    assert get_args(WhenFull) == config_schema.WHEN_FULL


def test_problems_are_shown_once_and_the_rest_of_the_file_applies(dslite: Dslite) -> None:
    folder = Path(dslite.env["DSLITE_CONFIG_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    text = '[chat]\ntheme = "neon"\nwhen_full = "x"\nwrong = 1\n[keys]\nstop = "ctrl+q"\n'
    (folder / "config.toml").write_text(text + "[defaults]\ntemperature = 9\n[profiles.brief]\nsystem = 'Be brief.'\n")
    for words in (("profile", "show", "brief"), ("complete", "-m", "demo", "-n", "1", "--profile", "brief", "hi")):
        result = dslite(*words)
        assert result.code == 0
        for name in (b"theme is 'neon'", b"when_full is 'x'", b"wrong is unknown", b"temperature is 9"):
            assert result.err.count(name) == 1, name
        assert b"ctrl+q" not in result.err
    assert "Be brief." in dslite("profile", "show", "brief").text


@pytest.mark.parametrize(
    ("raw", "code", "words"),
    [
        (b"\xef\xbb\xbf[profiles.brief]\nsystem = 'x'\n", 0, b""),
        ("[profiles.brief]".encode("utf-16"), 1, b"is UTF-16"),
        ("[profiles.brief]".encode("utf-16-be"), 1, b"config.toml"),
        (b"[profiles.brief]\nsystem = \n", 1, b"line 2, column"),
    ],
)
def test_a_mark_of_byte_order_is_left_out_and_other_encodings_are_named(
    dslite: Dslite, raw: bytes, code: int, words: bytes
) -> None:
    folder = Path(dslite.env["DSLITE_CONFIG_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_bytes(raw)
    result = dslite("profile", "show", "brief")
    assert result.code == code
    assert words in result.err
    if code == 0:
        assert dslite("profile", "add", "other", "-t", "0.5").code == 0
        assert not (folder / "config.toml").read_bytes().startswith(b"\xef")


def test_ten_changes_at_once_are_all_kept(file: Path, tmp_path: Path) -> None:
    names = {f"p{number}" for number in range(10)}
    environment = {**os.environ, "DSLITE_CACHE_DIR": str(tmp_path / "cache")}
    words = [sys.executable, "-m", "dslite.app", "profile", "add"]
    running = [subprocess.Popen([*words, name, "-t", "0.5"], env=environment) for name in sorted(names)]
    assert [process.wait() for process in running] == [0] * 10
    assert set(read_config().table("profiles")) == names


def test_a_lock_that_another_process_keeps_is_an_error_with_a_remedy(file: Path) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with file_lock(file):
            held.set()
            done.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    with pytest.raises(LockTimeoutError), file_lock(file, timeout=0):
        pytest.fail("two hold one lock")
    done.set()
    other.join()
    with file_lock(file, timeout=0), file_lock(file.parent / "another", timeout=0):
        pass


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
