"""Markdown as it streams, and the transcript that draws only what is seen."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style
from support.chat import Chat, drive, open_chat
from support.chat_texts import fence, mixed, prose, table
from support.fake_engine import FakeBackend
from textual.selection import SELECT_ALL

from dslite.app.chat.markdown_blocks import Block, CodeBlock, Splitter, code_blocks
from dslite.app.sessions.store import SessionStore
from dslite.app.tui.style.palette import Palette
from dslite.app.tui.transcript.blocks import RenderBlock
from dslite.app.tui.transcript.markdown import draw
from dslite.app.tui.transcript.virtual_list import KEPT
from dslite.app.tui.transcript.wrapping import wrap_plain

PALETTE = Palette.of_theme({}, Style())
LINES = st.sampled_from(
    ["", "text", "\\[ x_1", "\\]", "$$", "<div>", "- [x] done", "  > 1. deep", "* * *", "\\begin{align}",
     "| \\(a|b\\) |",
     "# Head", "- item", "  - inner", "1. one", "   more", "```python", "```", "    code", "| a | b |",
     "|---|--:|", "> quote", "---", "===", "~~~", "*x* `y` **z", "[a](b)", "   ```", "你好 世界", "a | b"]
)  # fmt: skip


def drawn_text(chat: Chat) -> list[str]:
    """Every line of the transcript."""
    column = chat.transcript.virtual_list
    return [strip.text.rstrip() for block in column.blocks for strip in column.draw(block)]


def kept(chat: Chat) -> list[RenderBlock]:
    """Pieces whose lines are in memory."""
    return [block for block in chat.transcript.virtual_list.blocks if block.strips is not None]


def whole(text: str) -> list[Block]:
    splitter = Splitter(text)
    splitter.finish()
    return splitter.blocks


@given(st.lists(LINES, max_size=25), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_blocks_are_the_same_however_the_text_is_cut(lines: list[str], cuts: list[int]) -> None:
    text = "\n".join(lines)
    splitter, place, turn = Splitter(), 0, 0
    while place < len(text):
        size = cuts[turn % len(cuts)]
        splitter.feed(text[place : place + size])
        place, turn = place + size, turn + 1
    splitter.finish()
    assert splitter.blocks == whole(text)


@given(st.lists(LINES, max_size=25), st.integers(12, 90))
def test_every_line_fits_the_width_and_no_word_is_lost(lines: list[str], width: int) -> None:
    blocks = whole("\n".join(lines))
    for block in blocks:
        drawn = [[segment.text for segment in line.segments] for line in draw(block, width, PALETTE)]
        assert all(cell_len("".join(line)) <= width for line in drawn)
        if block.kind == "fence":
            shown = "".join("".join(line).replace("┃", "") for line in drawn).replace(" ", "")
            assert "".join(block.lines).replace(" ", "") in shown


@given(st.text(st.sampled_from("ab 你好，。é👍 "), max_size=60), st.integers(4, 30))
def test_wrapping_keeps_every_character_but_spaces_at_the_ends(text: str, width: int) -> None:
    lines = wrap_plain(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(cell_len(line.rstrip()) <= width for line in lines)


def test_a_chinese_line_breaks_between_characters_and_not_before_a_comma() -> None:
    assert wrap_plain("ab 你好，世界", 8) == ["ab 你", "好，世界"]


def test_code_blocks_are_numbered_and_copied_without_their_indentation() -> None:
    text = "1. one\n\n   ```sh\n   ls\n     -l\n   ```\n\n~~~\n```\n~~~\n"
    assert [block.text for block in code_blocks(text)] == ["ls\n  -l\n", "```\n"]


def test_an_open_fence_ends_with_the_answer() -> None:
    assert code_blocks("```python\nprint(1)\nprint(2)") == [CodeBlock("python", "print(1)\nprint(2)\n", closed=False)]


@pytest.mark.parametrize("make", [prose, fence, table, mixed])
@drive
async def test_what_streams_in_is_what_a_saved_answer_shows(home: Path, make: Callable[[int], str]) -> None:
    text = make(1500)
    async with open_chat(home, FakeBackend(text)) as chat:
        await chat.ask("go")
        assert chat.contents[1] == text
        streamed = [block.block for block in chat.transcript.items[-1].blocks if block.block]
        assert streamed == whole(text)
        await chat.until(lambda: all(block.colours for block in kept(chat) if block.wants_colours))
        before = drawn_text(chat)
        chat.app.chat.view.show_conversation()
        await chat.until(lambda: drawn_text(chat) == before)


def save_long_chat(home: Path, questions: int, words: int) -> str:
    """The id of a saved conversation with answers of so many words."""
    with SessionStore.open(home / "sessions.db") as store:
        talk, parent = store.create(model="demo", title="long"), None
        for number in range(questions):
            asked = store.append(talk.id, "user", f"question {number}", parent=parent)
            parent = store.append(talk.id, "assistant", mixed(words), parent=asked.id, finish_reason="stop").id
    return talk.id


@drive
async def test_a_long_chat_keeps_only_what_is_seen_as_lines_and_one_widget(home: Path) -> None:
    talk = save_long_chat(home, 40, 800)
    async with open_chat(home, resume=lambda _: talk) as chat:
        await chat.until(lambda: len(chat.contents) == 80)
        await chat.pilot.pause()
        widgets = len(chat.app.screen.query("*"))
        assert widgets < 25
        assert len(kept(chat)) < 60
        assert len(chat.transcript.virtual_list.blocks) > 1000
        chat.transcript.scroll_to(y=0, animate=False)
        await chat.until("question 0")
        for _ in range(40):
            chat.transcript.scroll_relative(y=200, animate=False)
            await chat.pilot.pause()
        assert len(kept(chat)) <= KEPT


@drive
async def test_reading_above_is_not_disturbed_by_what_streams_below(home: Path) -> None:
    async with open_chat(home, FakeBackend(prose(3000), rate=1500)) as chat:
        await chat.say("go")
        await chat.until(lambda: chat.transcript.max_scroll_y > 60)
        await chat.press("pageup", "pageup")
        await chat.pilot.pause()
        top = chat.transcript.scroll_offset.y
        text = chat.transcript.line_text(top)
        await chat.until(lambda: chat.controller.reply is None)
        assert chat.transcript.scroll_offset.y == top
        assert chat.transcript.line_text(top) == text


@drive
async def test_all_is_copied_though_most_was_never_on_screen_and_nothing_moves(home: Path) -> None:
    talk = save_long_chat(home, 10, 300)
    async with open_chat(home, resume=lambda _: talk) as chat:
        await chat.until(lambda: len(chat.contents) == 20)
        chat.transcript.scroll_to(y=100, animate=False)
        await chat.pilot.pause()
        transcript = chat.transcript
        top = transcript.virtual_list.at(transcript.scroll_offset.y)
        text, _ = transcript.get_selection(SELECT_ALL)
        assert text == "\n\n".join(content.strip("\n") for content in chat.contents)
        assert transcript.virtual_list.at(transcript.scroll_offset.y) == top
