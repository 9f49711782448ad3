"""What helps to read: the end that is out of view, facts of a message, links, arrows and labels to click, the title."""

import re
from pathlib import Path

import pytest
from support.chat import Chat, drive, open_chat
from support.chat_texts import prose
from support.fake_engine import FakeBackend
from textual.events import AppBlur

from dslite.app.chat.launch import ChatConfig
from dslite.app.chat.message_tree import MessageTree, Node
from dslite.app.chat.reply import facts
from dslite.app.terminal import clipboard
from dslite.app.tui.app import resume_hint
from dslite.app.tui.messages import AnswerFinished
from dslite.app.tui.textual_fixes.driver_title import title_sequence


def place_of(chat: Chat, text: str) -> tuple[int, int]:
    """Column and row on screen of the first cell of a text of one cell a character."""
    rows = chat.text.splitlines()
    row = next(number for number, line in enumerate(rows) if text in line)
    return rows[row].index(text), row


@drive
async def test_the_rule_says_that_there_is_more_below_and_a_click_goes_there(home: Path) -> None:
    async with open_chat(home, FakeBackend(prose(3000)), size=(80, 24)) as chat:
        await chat.ask("go")
        assert "more below" not in chat.text
        await chat.press("pageup")
        await chat.until("↓ more below")
        await chat.pilot.click(offset=place_of(chat, "more below"))
        await chat.until(lambda: "more below" not in chat.text)
        assert chat.transcript.at_end


@drive
async def test_the_status_line_has_the_facts_of_the_marked_answer(home: Path) -> None:
    async with open_chat(home, size=(110, 30)) as chat:
        await chat.say("/set temperature 0.5")
        await chat.ask("go")
        await chat.press("shift+tab")
        await chat.until(
            lambda: re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d · \d+ tokens · .* · temperature 0.5", chat.status)
        )
        await chat.press("up")  # a question has none
        await chat.until(lambda: "temperature" not in chat.status)
        await chat.press("escape")
        await chat.until(lambda: "context" in chat.status)


@pytest.mark.parametrize(
    "info",
    [{"model": 7, "finished": "x"}, {"model": "m", "finished": 1e300, "decode_s": 0, "completion_tokens": "many"}, {}],
)
def test_odd_figures_of_an_imported_chat_are_left_out(info: dict[str, object]) -> None:
    assert facts(Node("assistant", "text", info=info)) in ("", "7", "m")


@drive
async def test_the_arrows_of_branches_can_be_clicked(home: Path) -> None:
    answers = iter(["first", "second"])
    async with open_chat(home, FakeBackend(lambda _: next(answers))) as chat:
        await chat.ask("go")
        await chat.press("ctrl+r")
        await chat.until("◂ 2 of 2 ▸")
        await chat.ready()
        await chat.pilot.click(offset=place_of(chat, "◂ 2 of 2"))
        await chat.until("◂ 1 of 2 ▸")
        assert chat.contents[-1] == "first"
        column, row = place_of(chat, "◂ 1 of 2 ▸")
        await chat.pilot.click(offset=(column + len("◂ 1 of 2 "), row))
        await chat.until(lambda: chat.contents[-1] == "second")


@drive
async def test_a_click_beside_a_code_block_copies_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    monkeypatch.setattr(clipboard, "copy_natively", lambda text: copied.append(text) or True)
    answer = "one\n\n```py\na = 1\n```\n\ntwo\n\n```py\nb = 2\n```\n"
    async with open_chat(home, FakeBackend(answer)) as chat:
        await chat.ask("go")
        await chat.until("copy: /copy 2")
        await chat.pilot.click(offset=place_of(chat, "copy: /copy 2"))
        await chat.until(lambda: copied == ["b = 2\n"])
        await chat.pilot.click(offset=place_of(chat, "a = 1"))
        assert copied == ["b = 2\n"]


@drive
async def test_links_of_the_web_are_links_of_the_terminal(home: Path) -> None:
    answer = (
        "[a](https://x.example/y) <https://z.example> [b](file:///etc/passwd) [c](javascript:alert) [d](mailto:a@b.c)"
    )
    async with open_chat(home, FakeBackend(answer)) as chat:
        await chat.ask("go")
        links = {
            segment.style.link
            for y in range(chat.transcript.size.height)
            for segment in chat.transcript.render_line(y)
            if segment.style is not None and segment.style.link
        }
        assert links == {"https://x.example/y", "https://z.example"}
        assert "a (https://x.example/y)" in chat.text


@drive
async def test_a_long_answer_rings_only_where_nobody_looks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rings: list[bool] = []
    for bell in (True, False):
        async with open_chat(home, config=ChatConfig(bell=bell)) as chat:
            monkeypatch.setattr(chat.app, "bell", lambda: rings.append(True))
            chat.app.chat.post_message(AnswerFinished(60.0))
            await chat.pilot.pause()
            assert rings == []
            chat.app.post_message(AppBlur())
            await chat.until(lambda chat=chat: not chat.app.app_focus)
            chat.app.chat.post_message(AnswerFinished(2.0))
            await chat.pilot.pause()
            assert rings == []
            chat.app.chat.post_message(AnswerFinished(60.0))
            await chat.pilot.pause()
            assert rings == [True] * bell
            rings.clear()


def test_no_control_of_a_title_reaches_the_window() -> None:
    sequence = title_sequence("a\x1b]0;b\x07c\u202ed\x9b你", first=False)
    assert sequence == "\x1b]2;a]0;bcd你\x1b\\"


def test_the_end_says_how_to_come_back_to_what_was_saved() -> None:
    tree = MessageTree(model="demo", title="whales\x1b[31m")
    assert resume_hint(tree) == ""
    tree.id = "01J"
    assert resume_hint(tree) == ""
    tree.add("user", "hi", parent=None)
    assert "\x1b" not in resume_hint(tree)
    assert resume_hint(tree).endswith("is saved: dslite chat -c goes on, or --session 01J")


@drive
async def test_the_prompt_stands_below_the_text_on_a_wide_screen(home: Path) -> None:
    async with open_chat(home, size=(200, 30)) as chat:
        await chat.ask("where is the text?")
        await chat.write("here")
        rows = chat.text.splitlines()
        text = next(row.index("where is") for row in rows[2:] if "where is" in row)
        prompt = next(row.index("› here") for row in rows if "› here" in row)
        assert 0 <= text - prompt <= 4
