"""Files in the chat: attached by the user's own act alone, shown folded, stored with the message."""

import os
from pathlib import Path

import pytest
from support.chat import drive, open_chat
from support.fake_engine import FakeBackend, FakeLoader, pieces
from textual.events import Paste

from dslite.app.sessions.store import SessionStore
from dslite.app.terminal.attached_file import find_files


def label(path: Path) -> str:
    block = f"{path}:\n{path.read_text().rstrip()}"
    return f"{path.name} · {len(pieces(block)):,} tokens"


@pytest.fixture
def notes(home: Path) -> Path:
    path = home / "笔记 notes.txt"
    path.write_text("first line\nsecond line\n" * 50)
    return path


@drive
async def test_a_file_is_read_when_it_is_attached_shown_folded_and_opened_by_enter(home: Path, notes: Path) -> None:
    async with open_chat(home, size=(100, 40)) as chat:
        await chat.ready()
        await chat.say(f"/file {notes}")
        await chat.until(f"+ {label(notes)} · room for")
        text = notes.read_text().rstrip()
        notes.write_text("changed since")
        await chat.ask("what does it say?")
        sent = chat.backend.asked[-1][-1].content
        assert sent == f"{notes}:\n{text}\n\nwhat does it say?"
        await chat.until(lambda: "room for" not in chat.text)
        assert "▸ 笔记 notes.txt · " in chat.text
        assert "second line" not in chat.text
        await chat.press("shift+tab", "up", "enter")
        await chat.until("second line")
        await chat.press("enter")
        await chat.until(lambda: "second line" not in chat.text)


@drive
async def test_a_file_comes_back_folded_and_with_an_edit_of_its_message(home: Path, notes: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ready()
        await chat.say(f"/file {notes}")
        await chat.ask("what does it say?")
        identity = chat.controller.tree.id
    async with open_chat(home, resume=lambda _: identity) as chat:
        await chat.until("▸ 笔记 notes.txt · ")
        assert chat.prompt.earlier.step(1, "") == "what does it say?"
        await chat.say("/revise")
        assert chat.prompt.text == "what does it say?"
        await chat.until(lambda: len(chat.controller.attachments.files) == 1)
        chat.prompt.put("and in English?")
        await chat.press("enter")
        await chat.until("◂ 2 of 2 ▸")
        await chat.ready()
        assert chat.backend.asked[-1][-1].content.startswith(f"{notes}:\nfirst line")
        assert chat.backend.asked[-1][-1].content.endswith("\n\nand in English?")
        assert chat.controller.attachments.files == ()
    with SessionStore.open(home / "sessions.db") as store:
        assert store.inputs()[:2] == ["and in English?", "what does it say?"]


@drive
async def test_at_and_tab_attach_a_file_and_leave_its_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "docs").mkdir()
    (home / "docs" / "plan.md").write_text("the plan")
    monkeypatch.chdir(home)
    async with open_chat(home) as chat:
        await chat.ready()
        await chat.write("sum up @do")
        await chat.until("docs/")
        await chat.press("tab")
        assert chat.prompt.text == "sum up @docs/"
        await chat.until("docs/plan.md")
        await chat.press("tab")
        assert chat.prompt.text == "sum up plan.md"
        await chat.until("+ plan.md · ")
        await chat.write(" now")
        await chat.press("enter")
        await chat.until(lambda: chat.contents[:1] == ["docs/plan.md:\nthe plan\n\nsum up plan.md now"])


@drive
async def test_dropped_paths_are_attached_and_any_other_paste_is_text(home: Path, notes: Path) -> None:
    other = home / "it's.txt"
    other.write_text("other")
    drops = [
        (str(notes).replace(" ", "\\ "), 1),
        (f"'{notes}' \"{other}\"\n", 2),
        (f"file://{str(notes).replace(' ', '%20')}", 1),
    ]
    async with open_chat(home) as chat:
        await chat.ready()
        for text, count in drops:
            chat.app.post_message(Paste(text))
            await chat.until(lambda count=count: len(chat.controller.attachments.files) == count)
            assert chat.prompt.text == ""
            await chat.press(*["backspace"] * count)
            await chat.until(lambda: chat.controller.attachments.files == ())
        for text in (f"see {other}", "@~/.ssh/id_rsa", f"@{other}", str(home), "/nowhere/at all", "notes.txt", "'"):
            chat.app.post_message(Paste(text))
            await chat.until(lambda text=text: chat.prompt.text == text)
            await chat.press("ctrl+u")
        assert chat.controller.attachments.files == ()


@drive
async def test_at_in_pasted_and_regenerated_text_stays_text(home: Path, notes: Path) -> None:
    async with open_chat(home) as chat:
        await chat.ready()
        chat.app.post_message(Paste(f"read @{notes}"))
        await chat.until(lambda: bool(chat.prompt.text))
        await chat.press("enter")
        await chat.until(lambda: len(chat.backend.asked) == 1)
        await chat.ready()
        await chat.press("ctrl+r")
        await chat.until(lambda: len(chat.backend.asked) == 2)
        assert [asked[-1].content for asked in chat.backend.asked] == [f"read @{notes}"] * 2


def hostile(home: Path) -> list[tuple[str, str]]:
    """Arguments of /file, and what the error says."""
    os.mkfifo(home / "pipe")
    (home / "big").write_bytes(b"a" * 20_000_001)
    (home / "binary").write_bytes(b"\x00\x01\xff" * 10)
    (home / "nul").write_bytes(b"text\0text")
    (home / "latin").write_bytes("Grüße".encode("latin-1"))
    (home / "wide").write_bytes("text".encode("utf-16"))
    (home / "below").mkdir()
    (home / "secret").write_text("secret")
    (home / "below" / "link").symlink_to(home / "secret")
    (home / "esc\x1b[31m").mkdir()
    (home / "many").mkdir()
    for number in range(501):
        (home / "many" / str(number)).touch()
    (home / "heavy").mkdir()
    for number in range(3):
        (home / "heavy" / str(number)).write_bytes(b"a" * 7_000_000)
    return [
        (f"{home}/pipe", "no regular file"),
        ("/dev/zero", "no regular file"),
        (f"{home}/big", "has more than"),
        (f"{home}/binary", "not valid UTF-8"),
        (f"{home}/nul", "is no text"),
        (f"{home}/latin", "not valid UTF-8"),
        (f"{home}/wide", "UTF-16"),
        (f"{home}/below/link", "in another folder"),
        (f"{home}/below", "no file to attach"),
        (f"{home}/many", "has more than 500 files"),
        (f"{home}/heavy", "the most is"),
        (f"{home}/gone", "cannot be read"),
        (f"{home}/*.none", "no file to attach"),
        (f"{home}/esc\x1b[31m/x", "no file to attach"),
    ]


@drive
async def test_what_is_no_text_file_is_refused_in_one_line_and_nothing_hangs(home: Path) -> None:
    async with open_chat(home, size=(300, 40)) as chat:
        await chat.ready()
        for path, fault in hostile(home):
            chat.app.chat.commands.run("file", path)
            await chat.until(fault)
            assert chat.controller.attachments.files == ()
            assert "\x1b" not in chat.text
            await chat.press("ctrl+n")


@drive
async def test_a_folder_asks_with_its_total_and_leaves_hidden_files_out(home: Path) -> None:
    folder = home / "src"
    (folder / ".git").mkdir(parents=True)
    for name in ("a.py", "b.py", ".env", ".git/config"):
        (folder / name).write_text(f"text of {name}")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    async with open_chat(home) as chat:
        await chat.ready()
        await chat.say(f"/file {folder}")
        await chat.until("Attach 2 files with")
        await chat.until(lambda: "no text" in chat.text)
        await chat.press("n")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        assert chat.controller.attachments.files == ()
        await chat.say(f"/file {folder}/*.py")
        await chat.until("Attach 2 files with")
        await chat.press("y")
        await chat.until(lambda: [file.name for file in chat.controller.attachments.files] == ["a.py", "b.py"])
        await chat.say("/file -")
        await chat.until(lambda: [file.name for file in chat.controller.attachments.files] == ["a.py"])


@pytest.mark.parametrize("pattern", ["*/*.txt", "**/*.txt"])
def test_a_pattern_leaves_out_what_lies_behind_a_link_to_another_folder(tmp_path: Path, pattern: str) -> None:
    for name in ("elsewhere/secret.txt", "src/sub/plan.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "src" / "link").symlink_to(tmp_path / "elsewhere")
    assert find_files(f"{tmp_path}/src/{pattern}") == [tmp_path / "src" / "sub" / "plan.txt"]


@drive
async def test_a_file_that_vanishes_after_its_completion_is_shown_is_not_attached(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home / "plan.md"
    path.write_text("the plan")
    monkeypatch.chdir(home)
    async with open_chat(home, size=(120, 40)) as chat:
        await chat.ready()
        await chat.write("sum up @pl")
        await chat.until("plan.md")
        path.unlink()
        await chat.press("down", "enter")
        await chat.until("cannot be read")
        assert chat.controller.attachments.files == ()


@drive
async def test_the_first_file_that_leaves_this_machine_is_asked_about(home: Path, notes: Path) -> None:
    loader = FakeLoader(FakeBackend())
    loader.remote_host = "gpu.example:8000"
    async with open_chat(home, loader=loader) as chat:
        await chat.ready()
        await chat.say(f"/file {notes}")
        await chat.until("to gpu.example:8000?")
        await chat.press("escape")
        await chat.until(lambda: len(chat.app.screen_stack) == 1)
        assert chat.controller.attachments.files == ()
        await chat.say(f"/file {notes}")
        await chat.until("to gpu.example:8000?")
        await chat.press("y")
        await chat.until(lambda: len(chat.controller.attachments.files) == 1)
        await chat.say(f"/file {notes}")
        await chat.until(lambda: len(chat.controller.attachments.files) == 2)
        await chat.press("ctrl+c")
        assert chat.controller.attachments.files == ()


@drive
async def test_a_message_that_waits_keeps_its_files(home: Path, notes: Path) -> None:
    import threading

    gate = threading.Semaphore(0)
    async with open_chat(home, FakeBackend("a b c", gate=gate)) as chat:
        await chat.ready()
        await chat.say("first")
        await chat.say(f"/file {notes}")
        await chat.until(lambda: len(chat.controller.attachments.files) == 1)
        await chat.press("enter")
        await chat.until("waits: 笔记 notes.txt")
        await chat.press("escape")
        await chat.until(lambda: len(chat.controller.attachments.files) == 1)


@drive
async def test_a_question_of_many_lines_is_folded(home: Path) -> None:
    async with open_chat(home, size=(80, 30)) as chat:
        await chat.ask("\n".join(f"line {number}" for number in range(5000)))
        await chat.until("▸ 5,000 lines · Enter opens")
        assert chat.transcript.virtual_list.height < 40
        await chat.press("shift+tab", "up", "enter")
        await chat.until(lambda: chat.transcript.virtual_list.height > 5000)
