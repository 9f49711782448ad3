"""The chat on a real pseudo-terminal: what a pilot cannot see."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support.terminal import Terminal, dslite

from dslite.app.sessions.store import SessionStore

ROOT = Path(__file__).parents[3]
WORDS = " ".join(f"w{number:04d}" for number in range(3000))


def fake(home: Path, *, no_color: bool = False, **options: object) -> Terminal:
    """The chat with a fake model that writes numbered words, 100 a second."""
    settings = {"data": str(home), "text": WORDS, "rate": 200, **options}
    environment = {f"DSLITE_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "CACHE")}
    environment |= {"PYTHONPATH": str(ROOT / "tests"), **({"NO_COLOR": "1"} if no_color else {})}
    return Terminal([sys.executable, "-m", "support.fake_chat", json.dumps(settings)], environment=environment)


def shown_words(terminal: Terminal) -> list[int]:
    return [int(number) for number in re.findall(r"w(\d{4})", terminal.text)]


def saved_answers(home: Path) -> list[tuple[str, str | None]]:
    with sqlite3.connect(home / "sessions.db") as connection:
        return connection.execute("SELECT content, finish_reason FROM messages WHERE role = 'assistant'").fetchall()


def test_two_turns_stop_quit_come_back_and_search_with_the_demo_model(home: Path) -> None:
    with dslite("chat", "-m", "demo", home=home) as terminal:
        terminal.wait("New chat")
        # Said again and again, words grow likelier: an answer that cannot end before Esc is pressed.
        terminal.type("/set repetition_penalty 0.1\r/set temperature 0\r")
        terminal.wait("temperature is 0")
        terminal.type("Tell me a very long story about a harbour\r")  # while the model loads: it waits and is answered
        terminal.wait(lambda: re.search(r"\d tok/s · Esc stops", terminal.text) and "reading" not in terminal.text)
        terminal.press("escape")
        terminal.wait("stopped here")
        terminal.type("/set repetition_penalty default\r")
        terminal.wait("is back at its default")
        terminal.type("How do I save a profile?\r")
        terminal.wait(lambda: [reason for _, reason in saved_answers(home / "data")] == ["interrupted", "stop"])
        terminal.press("ctrl+d")
        assert terminal.end() == 0
        assert terminal.restored
    with dslite("chat", "-c", home=home) as terminal:
        terminal.wait("ready")
        terminal.wait(lambda: "story about a harbour" in terminal.screen.display[0])
        assert "demo · profile plain" in terminal.screen.display[0]
        terminal.press("ctrl+n")
        terminal.wait(lambda: "New chat" in terminal.screen.display[0])
        terminal.press("ctrl+o")
        terminal.wait("search in titles")
        terminal.type("xharbo")
        terminal.wait("nothing found")
        terminal.press("ctrl+u")
        terminal.wait("story about a harbo")
        terminal.type("harbo")
        terminal.press("enter")
        terminal.wait(lambda: "story about a harbour" in terminal.screen.display[0])
        terminal.press("ctrl+c", "ctrl+c")  # not after the hint between them: it goes by itself
        assert terminal.end() == 0


def test_a_killed_chat_loses_less_than_a_second_of_its_answer(home: Path) -> None:
    with fake(home) as terminal:
        terminal.wait("ready")
        terminal.type("count\r")
        terminal.wait(lambda: max(shown_words(terminal), default=0) > 250)
        shown = max(shown_words(terminal))
        terminal.signal(signal.SIGKILL)
        assert terminal.end() == -signal.SIGKILL
    with SessionStore.open(home / "sessions.db") as store:
        talk = store.latest()
        assert talk is not None
        answer = store.path(talk.leaf)[-1]
    assert int(re.findall(r"w(\d{4})", answer.content)[-1]) >= shown - 100  # words of a second
    assert answer.token_ids is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_chat_saves_the_answer_and_restores_the_terminal(home: Path, number: int) -> None:
    with fake(home) as terminal:
        terminal.wait("ready")
        terminal.type("count\r")
        terminal.wait(lambda: len(shown_words(terminal)) > 20)
        terminal.signal(number)
        assert terminal.end() == 128 + number
        assert terminal.restored
    [(content, reason)] = saved_answers(home)
    assert content.startswith("w0000 w0001")
    assert reason == "interrupted"


def test_a_crash_restores_the_terminal_and_leaves_a_log(home: Path) -> None:
    with fake(home, crash=True) as terminal:
        terminal.wait("ready")
        terminal.press("ctrl+g")
        assert terminal.end() == 1
        assert terminal.restored
    assert "the screen broke" in (home / "data" / "dslite.log").read_text()


def colours(raw: bytes) -> set[bytes]:
    """Parts of SGR sequences that are neither a reset (0) nor an attribute (1 to 29)."""
    found = re.findall(rb"\x1b\[([\d;:]*)m", raw)
    return {part for parts in found for part in re.split(rb"[;:]", parts) if part and not 0 <= int(part) < 30}


def test_no_color_writes_no_colour_and_marks_by_reverse_what_is_chosen(home: Path) -> None:
    code = "So:\n\n```python\ndef two():\n    return 'two', 2  # words\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    with fake(home, no_color=True, text=code, rate=None) as terminal:
        terminal.wait("ready")
        terminal.type("some code\r")
        terminal.wait(lambda: "# words" in terminal.text and "tok/s last" in terminal.text)
        terminal.type("/nonsense\r")
        terminal.wait("there is no command")
        terminal.press("f2")
        terminal.wait("plain attention")
        terminal.press("f1")
        terminal.wait("Answer again")
        terminal.press("q")
        terminal.wait(lambda: "Answer again" not in terminal.text)
        terminal.press("f3")
        terminal.wait("translator")
        [line] = [number for number, line in enumerate(terminal.screen.display) if "plain  No system" in line]
        column = terminal.screen.display[line].index("plain  No system")
        assert terminal.screen.buffer[line][column].reverse
        assert not terminal.screen.buffer[line + 1][column].reverse
        terminal.press("down", "escape")
        terminal.wait(lambda: "translator" not in terminal.text)
        terminal.press("ctrl+c", "ctrl+d")
        assert terminal.end() == 0
        assert colours(bytes(terminal.raw)) == set()


def test_no_color_holds_for_the_first_run_and_an_empty_one_is_no_wish(home: Path) -> None:
    with dslite("chat", home=home, NO_COLOR="1") as terminal:
        terminal.wait("Use a folder on this machine")
        assert colours(bytes(terminal.raw)) == set()
    with dslite("chat", home=home, NO_COLOR="") as terminal:
        terminal.wait("Use a folder on this machine")
        assert b"38" in colours(bytes(terminal.raw))


def test_the_terminals_caret_stands_behind_wide_characters(home: Path) -> None:
    with fake(home) as terminal:
        terminal.wait("ready")
        terminal.type("你好")
        terminal.wait("你")
        terminal.wait(lambda: (terminal.screen.cursor.x, terminal.screen.cursor.y) == (1 + 2 + 4, 27))
        assert "你好" in terminal.text.replace(" ", "")


def test_control_j_and_alt_enter_reach_the_prompt_as_new_lines(home: Path) -> None:
    with fake(home) as terminal:
        terminal.wait("ready")
        terminal.type("one")
        terminal.press("ctrl+j")
        terminal.type("two")
        terminal.press("alt+enter")
        terminal.type("three")
        terminal.wait(lambda: all(word in terminal.text for word in ("one", "two", "three")))
        assert "You" not in terminal.text
        terminal.paste("four\nfive")
        terminal.wait(lambda: "five" in terminal.text)
        assert "You" not in terminal.text


@pytest.mark.slow
def test_the_picture_follows_a_resize_while_an_answer_streams(home: Path) -> None:
    with fake(home) as terminal:
        terminal.wait("ready")
        terminal.type("count\r")
        terminal.wait(lambda: len(shown_words(terminal)) > 20)
        for columns, lines in ((40, 10), (300, 80), (60, 20)):
            terminal.resize(columns, lines)
            terminal.wait(lambda: "count" in terminal.text or shown_words(terminal))
            before = max(shown_words(terminal), default=0)
            terminal.wait(lambda before=before: max(shown_words(terminal), default=0) > before + 5)
        assert len(terminal.screen.display) == 20


@pytest.mark.slow
def test_two_chats_save_into_one_database_at_once(home: Path) -> None:
    with fake(home, text="answer of one") as one, fake(home, text="answer of two") as two:
        for terminal in (one, two):
            terminal.wait("ready")
        one.type("first\r")
        two.type("second\r")
        one.wait("answer of one")
        two.wait("answer of two")
        for terminal in (one, two):
            terminal.press("ctrl+d")
            assert terminal.end() == 0
    assert sorted(content for content, _ in saved_answers(home)) == ["answer of one", "answer of two"]


def test_plain_answers_pipes_without_one_escape_byte(home: Path) -> None:
    environment = {f"DSLITE_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "CACHE")}
    typed = "How do I save a profile?\n/title ConversationSaver\n/set temperature 9\n/nonsense\n/quit\n"
    done = subprocess.run(
        [Path(sys.executable).parent / "dslite", "chat", "--plain", "-m", "demo"],
        input=typed.encode(),
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"profile" in done.stdout
    assert b"it must be from 0 to 2" in done.stderr
    assert b"there is no command /nonsense" in done.stderr
    with SessionStore.open(home / "data" / "sessions.db") as store:
        talk = store.latest()
        assert talk is not None
        assert talk.title == "ConversationSaver"
        assert [message.role for message in store.path(talk.leaf)] == ["user", "assistant"]


@pytest.mark.slow
def test_a_dumb_terminal_gets_the_line_mode(home: Path) -> None:
    with dslite("chat", "-m", "demo", home=home, TERM="dumb") as terminal:
        terminal.wait("/help lists the commands")
        terminal.type("/help\r")
        terminal.wait("/regen: Answer again")
        terminal.press("ctrl+d")
        assert terminal.end() == 0
    assert b"\x1b[?1049h" not in terminal.raw


def test_nothing_heavy_is_imported_before_the_first_picture(home: Path) -> None:
    heavy = "torch numpy tokenizers transformers huggingface_hub jinja2 pygments markdown_it sqlite3 pydantic"
    code = f"""
import pathlib, sys
from dslite.app.tui.app import ChatApp
def painted(self):
    pathlib.Path({str(home / "imported")!r}).write_text(" ".join(set({heavy!r}.split()) & set(sys.modules)))
    self.exit(0)
ChatApp._painted = painted
sys.argv = ["dslite", "chat", "-m", "demo"]
from dslite.app.__main__ import main
main()
"""
    places = {f"DSLITE_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "CACHE")}
    with Terminal([sys.executable, "-c", code], environment=places) as terminal:
        assert terminal.end() == 0
    assert (home / "imported").read_text() == ""


@pytest.mark.parametrize("size", [(110, 36), (80, 24)], ids=str)
def test_a_newcomers_hour_with_the_demo_model(home: Path, size: tuple[int, int]) -> None:
    """Attach a file, ask, find, go on from another token, compare, pin, quit, come back."""
    (home / "notes.txt").write_text("some notes about profiles")
    with dslite("chat", "-m", "demo", "-t", "0", home=home, size=size) as terminal:
        terminal.wait("ready")
        terminal.type(f"/file {home}/notes.txt\r")
        terminal.wait("+ notes.txt · ")
        terminal.type("How do I save a profile?\r")
        terminal.wait(lambda: len(saved_answers(home / "data")) == 1 and "▸ notes.txt · " in terminal.text)
        terminal.wait(lambda: saved_answers(home / "data")[0][1] == "stop")
        terminal.type("\x06profile")  # Ctrl+F
        terminal.wait("1 of ")
        terminal.press("enter")
        terminal.wait("2 of ")
        terminal.press("escape")
        terminal.wait(lambda: "find " not in terminal.text)
        terminal.type("/tokens\r")
        terminal.wait("Token 1 of")
        terminal.press("right")
        terminal.wait("Token 2 of")
        terminal.press("down")
        terminal.press("enter")
        terminal.wait("◂ 2 of 2 ▸")
        terminal.wait(lambda: [reason for _, reason in saved_answers(home / "data")] == ["stop", "stop"])
        terminal.wait("tok/s last")
        terminal.type("/compare\r")
        terminal.wait("Enter goes on with it")
        terminal.press("left")
        terminal.press("enter")
        terminal.wait("◂ 1 of 2 ▸")
        terminal.type("\x0f")  # Ctrl+O
        terminal.wait("search in titles")
        terminal.wait("3 messages" if size[1] > 20 else "How do I save")
        terminal.type("\x13")  # Ctrl+S
        terminal.wait("Pinned")
        terminal.press("escape")
        terminal.wait(lambda: "search in titles" not in terminal.text)
        terminal.press("ctrl+d")
        assert terminal.end() == 0
        assert b"is saved: dslite chat -c goes on" in terminal.raw
    with dslite("chat", "-c", home=home, size=size) as terminal:
        terminal.wait("◂ 1 of 2 ▸")
        terminal.wait("▸ notes.txt · ")
        terminal.press("ctrl+d")
        assert terminal.end() == 0
