"""Text selected with the mouse: what is copied, what it looks like, and that a click moves nothing."""

import re
from pathlib import Path

import pytest
from rich.style import Style
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from support.chat import Chat, drive, open_chat
from support.chat_texts import prose
from support.fake_engine import FakeBackend
from textual.color import Color
from textual.events import MouseMove
from textual.geometry import Offset
from textual.selection import Selection

from dslite.app.tui.style.themes import THEMES

WORDS = " ".join(f"word{number}" for number in range(60))
ANSWER = f"""# Headline

First {WORDS} *italic* end.
Second `code` line, \\* star &amp; more.

1. one
2. **two**

> quoted

```make
all:
\techo start
\techo {WORDS}
```

| a | right |
|---|------:|
| cell \\| bar | 1700 |

- [x] done
\\[ formula_{{1}} \\\\ \\, zeta \\]

Family 👩‍👩‍👧 你好."""


def place_of(chat: Chat, word: str, *, behind: bool = False) -> Offset:
    """Where the first character of a word is drawn, or the cell behind its last one."""
    lines = [chat.transcript.line_text(line) for line in range(chat.transcript.virtual_list.height)]
    places = [
        (number, match) for number, line in enumerate(lines) for match in re.finditer(rf"{re.escape(word)}(?!\d)", line)
    ]
    number, match = places[0]
    return Offset((match.end() if behind else match.start()) + chat.transcript._text_left, number)


def copied(chat: Chat, first: str, last: str) -> str:
    selection = Selection(place_of(chat, first), place_of(chat, last, behind=True))
    text, _ = chat.transcript.get_selection(selection)
    return str(text)


def between(first: str, last: str) -> str:
    """The source from one text to the end of another."""
    start = ANSWER.index(first)
    return ANSWER[start : ANSWER.index(last, start) + len(last)]


@pytest.mark.parametrize("size", [(110, 36), (80, 24), (40, 10)])
@drive
async def test_what_is_copied_is_the_source_between_the_ends(home: Path, size: tuple[int, int]) -> None:
    async with open_chat(home, FakeBackend(ANSWER), size=size) as chat:
        await chat.ask("go")
        for first, last in [
            ("Headline", "Family"),
            ("word3", "word44"),  # wrapped, and whole again
            ("word50", "Second"),  # through emphasis and a line end of the source
            ("star", "more"),  # an entity
            ("one", "two"),
            ("two", "quoted"),
            ("all:", "start"),  # a tab
            ("Second", "start"),
            ("done", "done"),
            ("formula_{1}", "zeta"),
            ("Family", "你好"),
        ]:
            assert copied(chat, first, last) == between(first, last), (first, last)
        assert copied(chat, "bar", "1700") == "bar | 1700"
        assert copied(chat, "* star", "star") == "\\* star"


@drive
async def test_all_of_a_block_is_selected_from_its_margins_with_its_markdown(home: Path) -> None:
    async with open_chat(home, FakeBackend(ANSWER), size=(110, 36)) as chat:
        await chat.ask("go")
        await chat.until("copy: /copy 1")  # drawn once the answer is whole
        code = place_of(chat, "copy: /copy 1")
        text, _ = chat.transcript.get_selection(Selection(Offset(0, code.y), Offset(109, code.y + 1)))
        assert text == "```make\nall:"
        two = place_of(chat, "two")
        text, _ = chat.transcript.get_selection(Selection(Offset(0, two.y), Offset(109, two.y)))
        assert text == "2. **two**"
        head = place_of(chat, "Headline")
        text, _ = chat.transcript.get_selection(Selection(Offset(0, head.y - 1), Offset(109, head.y)))
        assert text == "# Headline"


@drive
async def test_a_selection_over_messages_has_no_names_and_keeps_what_was_typed(home: Path) -> None:
    question = "first line\n  second\tline " + WORDS
    async with open_chat(home, FakeBackend("**answer** here"), size=(60, 30)) as chat:
        await chat.ask(question)
        text = copied(chat, "second", "here")
        assert text == question[question.index("second") :] + "\n\n**answer** here"


async def scrolled_into(chat: Chat) -> int:
    """Scroll to the middle of an answer that is taller than the screen; return the line on top."""
    await chat.ask("go")
    chat.transcript.scroll_to(y=chat.transcript.max_scroll_y // 2, animate=False)
    await chat.pilot.pause()
    return int(chat.transcript.scroll_offset.y)


@drive
async def test_a_click_in_a_tall_answer_chooses_it_and_scrolls_nothing(home: Path) -> None:
    async with open_chat(home, FakeBackend(prose(3000)), size=(80, 24)) as chat:
        top = await scrolled_into(chat)
        await chat.pilot.mouse_down(chat.transcript, offset=(10, 8))
        await chat.pilot.pause()
        assert chat.transcript.scroll_offset.y == top
        await chat.pilot.mouse_up(chat.transcript, offset=(10, 8))
        await chat.pilot.click(chat.transcript, offset=(12, 3))
        await chat.pilot.pause()
        assert chat.transcript.scroll_offset.y == top
        assert chat.transcript.chosen is chat.transcript.items[-1]


@drive
async def test_a_double_click_selects_a_word_and_a_second_drag_is_no_double_click(home: Path) -> None:
    async with open_chat(home, FakeBackend(ANSWER), size=(110, 60)) as chat:
        await chat.ask("go")
        place = place_of(chat, "star") - Offset(0, round(chat.transcript.scroll_offset.y))
        await chat.pilot.click(chat.transcript, offset=place + Offset(1, 0), times=2)
        await chat.pilot.pause()
        assert chat.app.screen.get_selected_text() == "star"
        for _ in range(2):
            await chat.pilot.mouse_down(chat.transcript, offset=place)
            await chat.pilot.hover(chat.transcript, offset=place + Offset(2, 0))
            await chat.pilot.mouse_up(chat.transcript, offset=place + Offset(2, 0))
            await chat.pilot.pause()
            assert chat.app.screen.get_selected_text() == "sta"


@pytest.mark.parametrize("cluster", ["👩‍👩‍👧", "🇩🇪", "👍🏽", "❤️", "e\u0301", "a"])
@drive
async def test_backspace_and_delete_take_a_whole_cluster_of_the_input(home: Path, cluster: str) -> None:
    async with open_chat(home) as chat:
        chat.prompt.put(f"x{cluster}{cluster}")
        await chat.press("backspace")
        assert chat.prompt.text == f"x{cluster}"
        await chat.press("left", "delete")
        assert chat.prompt.text == "x"


@pytest.mark.parametrize("narrower", [(50, 24), (80, 12), (40, 10), (120, 40)])
@drive
async def test_a_resize_keeps_the_line_that_is_being_read(home: Path, narrower: tuple[int, int]) -> None:
    answer = "\n\n".join(f"p{number:03d} {'some words of a paragraph ' * 12}" for number in range(80))
    async with open_chat(home, FakeBackend(answer), size=(80, 24)) as chat:
        top = await scrolled_into(chat)
        renderer, at = chat.transcript.virtual_list.renderer, chat.transcript.virtual_list.at(top)
        word = first_paragraph(chat)
        assert renderer is not None
        assert at[0].block is not None
        await chat.pilot.resize_terminal(*narrower)
        await chat.pilot.pause()
        assert not chat.transcript.at_end
        assert abs(first_paragraph(chat) - word) <= 1
        await chat.pilot.resize_terminal(80, 24)
        await chat.pilot.pause()
        assert abs(first_paragraph(chat) - word) <= 1


def first_paragraph(chat: Chat) -> int:
    """The number of the paragraph on the first line in view."""
    transcript = chat.transcript
    block, _ = transcript.virtual_list.at(transcript.scroll_offset.y)
    assert block.block is not None
    return int(block.block.lines[0][1:4])


def contrast(one: Color, other: Color) -> float:
    """The contrast ratio of WCAG 2.2."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: Color) -> float:
    parts = [part / 255 for part in color.rgb]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def shown_colours(style: Style) -> tuple[Color, Color]:
    """The colours of a cell's text and background, with those of xterm for the sixteen of the terminal."""
    assert style.color is not None
    assert style.bgcolor is not None
    front = Color(*style.color.get_truecolor(DEFAULT_TERMINAL_THEME, foreground=True))
    back = Color(*style.bgcolor.get_truecolor(DEFAULT_TERMINAL_THEME, foreground=False))
    return (back, front) if style.reverse else (front, back)


@pytest.mark.parametrize("theme", [theme.name for theme in THEMES])
@drive
async def test_selected_text_has_a_contrast_of_at_least_four_and_a_half(home: Path, theme: str) -> None:
    async with open_chat(home, FakeBackend(ANSWER), size=(100, 60)) as chat:
        await chat.ask("go")
        chat.app.theme = theme
        await chat.pilot.pause()
        await chat.pilot.mouse_down(chat.transcript, offset=(3, 1))
        await chat.pilot.hover(chat.transcript, offset=(60, 40))
        await chat.pilot.pause()
        cells = [
            segment.style
            for strip in chat.app.screen._compositor.render_strips()
            for segment in strip
            if segment.text.strip() and segment.style and segment.style.bgcolor
        ]
        selected_background = chat.app.theme_variables["screen-selection-background"]
        selection = Color.parse(selected_background).rich_color
        selected = [style for style in cells if style.bgcolor == selection]
        assert len(selected) > 20
        for style in selected:
            assert not style.dim
            assert contrast(*shown_colours(style)) >= 4.5, style


@pytest.mark.parametrize("theme", [theme.name for theme in THEMES])
@drive
async def test_text_selected_in_the_prompt_has_that_contrast_too(home: Path, theme: str) -> None:
    async with open_chat(home) as chat:
        chat.app.theme = theme
        chat.prompt.put("selected words")
        await chat.press("shift+home")
        await chat.pilot.pause()
        segments = [
            segment.style
            for strip in chat.app.screen._compositor.render_strips()
            for segment in strip
            if "elected" in segment.text and segment.style
        ]
        [style] = segments
        assert contrast(*shown_colours(style)) >= 4.5


@drive
async def test_three_clicks_select_the_line_and_nothing_around_it(home: Path) -> None:
    async with open_chat(home, FakeBackend("one *two* three\n\nanother line"), size=(60, 20)) as chat:
        await chat.ask("go")
        place = place_of(chat, "two")
        await chat.pilot.click(chat.transcript, offset=place, times=3)
        await chat.pilot.pause()
        assert chat.app.screen.get_selected_text() == "one *two* three"


@pytest.mark.parametrize("beyond", [Offset(30, -2), Offset(-1, -1), Offset(30, 99), Offset(200, 21), Offset(4, 20)])
@drive
async def test_a_drag_beyond_an_edge_scrolls_and_selects_what_is_between(home: Path, beyond: Offset) -> None:
    text = "\n\n".join(f"paragraph {number} of many" for number in range(200))
    async with open_chat(home, FakeBackend(text), size=(60, 26)) as chat:
        top = await scrolled_into(chat)
        transcript, upwards = chat.transcript, beyond.y < 0
        start = Offset(0, 8) + transcript.region.offset
        end = Offset(min(max(beyond.x, 0), 59), min(max(beyond.y + transcript.region.y, 0), 25))
        await chat.pilot.mouse_down(None, offset=start)
        move = MouseMove(None, *end, 0, end.y - start.y, 1, False, False, False, screen_x=end.x, screen_y=end.y)
        chat.app.screen._forward_event(move)
        await chat.until(lambda: abs(transcript.scroll_offset.y - top) > 30)
        await chat.pilot.mouse_up(None, offset=end)
        await chat.pilot.pause()
        [(widget, selection)] = chat.app.screen.selections.items()
        assert widget is transcript
        lines = sorted([selection.start.y, selection.end.y])
        assert lines[upwards] == top + 8
        first = transcript.scroll_offset.y
        assert lines[not upwards] == (first if upwards else first + transcript.size.height - 1)
        copied_text = chat.app.screen.get_selected_text()
        assert copied_text
        assert copied_text in text
