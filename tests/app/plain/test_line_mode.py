"""What the line mode reads and prints: whole words, one message for one paste, the newest chat next to the prompt."""

import re
import sys
from pathlib import Path

import pexpect
import pytest
from support.fake_engine import FakeBackend, FakeLoader
from support.paths import path_variables

from dslite.app.chat.autosave import ConversationWriter
from dslite.app.chat.launch import ChatLaunch
from dslite.app.chat.settings import ChatSettings
from dslite.app.plain.chat import PlainChat
from dslite.app.plain.word_wrap import WordWrap
from dslite.app.sessions.store import SessionStore
from dslite.app.settings.config_file import config_path
from dslite.runtime.downloads.hub import parse_model


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("some words that wrap", "some words\nthat wrap\n"),
        ("a\n```\nprint('a long line of code')\n```\nb", "a\n```\nprint('a long line of code')\n```\nb\n"),
        ("| a | table | row |", "| a | table | row |\n"),
        ("你好你好你好", "你好你好你\n好\n"),
        ("  indented", "  indented\n"),
    ],
)
def test_no_word_is_broken_at_the_margin(text: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = WordWrap(wraps=True, width=10)
    for char in text:
        output.write(char)
    output.end_line()
    assert capsys.readouterr().out == printed


def line_mode(home: Path) -> "pexpect.spawn[str]":
    """The line mode with the demo model on a terminal, at its prompt."""
    child = pexpect.spawn(
        str(Path(sys.executable).parent / "dslite"),
        ["chat", "--plain", "-m", "demo", "-n", "3"],
        env={"PATH": "/usr/bin:/bin", "TERM": "xterm", **path_variables(home)},
        encoding="utf-8",
        timeout=60,
    )
    child.expect("Ctrl\\+D ends")
    child.expect("> $")
    return child


def test_a_pasted_text_of_several_lines_is_one_message(tmp_path: Path) -> None:
    child = line_mode(tmp_path)
    child.send("\x1b[200~first line\rsecond line\x1b[201~\r")
    child.expect("/continue goes on")
    child.expect("> $")
    child.sendeof()
    child.expect(pexpect.EOF)
    with SessionStore.open(tmp_path / "data" / "sessions.db") as store:
        [chat] = store.conversations()
        assert [message.content for message in store.tree(chat.id)][:1] == ["first line\nsecond line"]


def plain_chat(home: Path, answer: str) -> PlainChat:
    """A started chat whose model gives one answer."""
    writer = ConversationWriter(lambda: SessionStore.open(home / "sessions.db"))
    launch = ChatLaunch(parse_model("demo"), ChatSettings("demo"), FakeLoader(FakeBackend(answer)), writer)
    chat = PlainChat(launch)
    chat.start()
    return chat


def test_help_names_the_commands_that_make_and_show_branches(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = plain_chat(home, "text")
    chat.take("/help")
    chat.close()
    lines = capsys.readouterr().out.splitlines()
    for command in ("/regen [TEMPERATURE]: ", "/branch [N]: ", "/revise: "):
        assert any(line.startswith(command) for line in lines), command


@pytest.mark.parametrize("control", ["\u202e", "\u2066", "\x1b[31m", "\x9b2J", "\rover"])
def test_no_control_of_an_answer_a_title_or_a_question_reaches_the_terminal(
    home: Path, capsys: pytest.CaptureFixture[str], control: str
) -> None:
    hostile = f"safe {control}txt"
    chat = plain_chat(home, hostile)
    chat.take(hostile)
    chat.take("/copy 9")
    chat.take("/branch 1")
    first = chat.controller.tree
    while first.id is None:
        chat.controller.tick(timeout=0.01)
    chat.take("/new")
    chat.take("/load")
    chat.take(f"/load {first.id}")
    chat.take(f"/set {hostile} 1")
    chat.take(f"/system {hostile}")
    chat.take("/system")
    chat.close()
    printed = "".join(capsys.readouterr())
    assert printed.count("safe ") >= 4
    assert not set("\u202e\u2066\x1b\x9b\r") & set(printed)
    assert chat.controller.tree.path()[-1].content == hostile, "the saved text is as the model wrote it"


def test_the_newest_chat_is_listed_last(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = plain_chat(home, "text")
    for text in ("older", "newer"):
        chat.take(text)
        chat.take("/new")
    capsys.readouterr()
    chat.take("/load")
    chat.close()
    titles = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines() if "  " in line]
    assert titles == ["older", "newer"]


def test_find_names_each_place_with_what_stands_around_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = plain_chat(home, "A **whale** song\nis long. " + "words " * 40 + "And the WHALE song ends.")
    chat.take("what about a whale?")
    capsys.readouterr()
    chat.take("/find whale song")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["1 of 2 · Model", "2 of 2 · Model"]
    assert "And the WHALE song ends." in lines[1]
    chat.take("/find \x1b[31mshark")
    assert capsys.readouterr().out == "␛[31mshark: not found\n"
    chat.close()


def test_tab_completes_commands_and_their_values(tmp_path: Path) -> None:
    child = line_mode(tmp_path)
    child.send("/se\ttempe\t0.25\r")
    child.expect("temperature is 0.25")
    child.expect("> $")
    child.send("/show\r")
    child.expect("temperature 0.25 ")
    child.expect("> $")
    child.sendeof()
    child.expect(pexpect.EOF)


def test_a_snippet_and_a_quote_work_without_a_screen(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text('[snippets]\ntr = "Translate: {input}"\n')
    chat = plain_chat(home, "one\ntwo")
    chat.take("/p tr good morning")
    assert [node.content for node in chat.controller.tree.path()] == ["Translate: good morning", "one\ntwo"]
    chat.take("/quote")
    assert chat.input_text() == "> one\n> two\n\n"
    chat.take("/p nothing")
    assert "there is no snippet 'nothing'" in capsys.readouterr().err
    chat.close()


def test_a_file_is_attached_without_a_screen_and_comes_back_folded(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "notes.txt").write_text("some notes")
    chat = plain_chat(home, "answer")
    chat.take(f"/file {home}/notes.txt")
    assert re.search(r"\[notes\.txt · \d+ tokens\]", capsys.readouterr().out)
    chat.take("what do they say?")
    [question, _] = chat.controller.tree.path()
    assert question.content == f"{home}/notes.txt:\nsome notes\n\nwhat do they say?"
    while (identity := chat.controller.tree.id) is None:
        chat.controller.tick(timeout=0.05)
    chat.take("/new")
    capsys.readouterr()
    chat.take(f"/load {identity}")
    shown = capsys.readouterr().out
    assert "some notes" not in shown
    assert re.search(r"You: \[notes\.txt · \d+ tokens\]\nwhat do they say\?", shown)
    (home / "more").mkdir()
    (home / "more" / "one.txt").write_text("one")
    chat.take(f"/file {home}/more")  # a folder asks, and here nobody can answer
    assert "nothing was attached" in capsys.readouterr().out
    chat.close()


def test_two_answers_are_printed_one_below_the_other(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat = plain_chat(home, "an answer")
    chat.take("what is it?")
    capsys.readouterr()
    chat.take("/compare 0.2 0.9")
    assert capsys.readouterr().out == "[1] temperature 0.2\nan answer\n\n[2] temperature 0.9\nan answer\n\n"
    tree = chat.controller.tree
    assert tree.leaf is not None
    assert tree.siblings(tree.leaf).index(tree.leaf) == 0  # nobody was asked: as it was
    assert len(tree.siblings(tree.leaf)) == 3
    chat.close()
