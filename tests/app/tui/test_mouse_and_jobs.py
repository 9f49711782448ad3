"""On a real pseudo-terminal: the colours of a selection, pastes, and the job control of a shell."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from rich.color import Color as RichColor
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from support.terminal import Terminal
from textual.color import Color

from dslite.app.tui.style.themes import THEMES

ROOT = Path(__file__).parents[3]
TEXT = "Some *words* of an answer.\n\n```python\ndef two():\n    return 'two', 2  # words\n```\n"


def command(home: Path, text: str = TEXT) -> tuple[list[str], dict[str, str]]:
    """The chat with a fake model that answers with a text, and its environment."""
    settings = {"data": str(home), "text": text, "rate": None}
    environment = {f"DSLITE_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "CACHE")}
    environment["PYTHONPATH"] = str(ROOT / "tests")
    return [sys.executable, "-m", "support.fake_chat", json.dumps(settings)], environment


def fake(home: Path, text: str = TEXT) -> Terminal:
    words, environment = command(home, text)
    return Terminal(words, environment=environment)


def color_of(name: str, *, foreground: bool) -> Color:
    """A colour as pyte names it; the sixteen of the terminal are those of xterm."""
    if re.fullmatch("[0-9a-f]{6}", name):
        return Color.parse(f"#{name}")
    names = {"brown": "yellow", "brightbrown": "bright_yellow"}
    parsed = RichColor.parse(names.get(name, name.replace("bright", "bright_")))
    return Color(*parsed.get_truecolor(DEFAULT_TERMINAL_THEME, foreground=foreground))


def contrast(one: Color, other: Color) -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(color: Color) -> float:
        parts = [part / 255 for part in color.rgb]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def is_marked(terminal: Terminal, line: int, column: int) -> bool:
    """Whether a word that begins at a column has another background than the letter before it."""
    cells = terminal.screen.buffer[line]
    return bool(cells[column].bg != cells[column - 2].bg)


@pytest.mark.parametrize("theme", [theme.name for theme in THEMES])
def test_what_is_dragged_over_is_written_in_colours_that_contrast(home: Path, theme: str) -> None:
    with fake(home) as terminal:
        terminal.wait("ready")
        terminal.type(f"/theme {theme}\r")
        terminal.wait(lambda: f"theme {theme}" in terminal.text and "/theme" not in terminal.text)
        terminal.type("go\r")
        terminal.wait(lambda: "# words" in terminal.text and "tok/s last" in terminal.text)
        lines = terminal.screen.display
        first = next(number for number, line in enumerate(lines) if "Some words" in line)
        last = next(number for number, line in enumerate(lines) if "# words" in line)
        column = lines[first].index("words")
        terminal.type(f"\x1b[<0;{column + 1};{first + 1}M\x1b[<32;30;{last + 1}M\x1b[<0;30;{last + 1}m")

        def ends_are_drawn() -> bool:
            """Whether the selection is drawn up to its end: a frame may arrive in parts."""
            line = terminal.screen.buffer[last]
            return is_marked(terminal, first, column) and line[7].bg == line[27].bg != line[60].bg

        terminal.wait(ends_are_drawn)
        cells = [terminal.screen.buffer[first][column + place] for place in range(20)]
        cells += [terminal.screen.buffer[last][place] for place in range(7, 28)]
        for cell in cells:
            colours = color_of(cell.fg, foreground=True), color_of(cell.bg, foreground=False)
            assert contrast(*colours) >= 4.5, cell
            assert not cell.reverse


def test_a_paste_with_escapes_is_text_in_the_input_and_sends_nothing(home: Path) -> None:
    with fake(home) as terminal:
        terminal.wait("ready")
        terminal.paste("first\x1b\r\x07second\x1b[A\x1bOP\rthird")
        terminal.wait("third")
        assert "second[AOP" in terminal.text
        assert "You" not in terminal.text
        assert "Command palette" not in terminal.text


def test_lines_pasted_without_brackets_wait_in_the_input(home: Path) -> None:
    with fake(home) as terminal:
        terminal.wait("ready")
        terminal.type("one line\ranother line\rthe last line\r")
        terminal.wait("the last line")
        assert "another line" in terminal.text
        assert "You" not in terminal.text


def test_control_z_gives_the_shell_back_and_fg_draws_the_screen_again(home: Path) -> None:
    words, environment = command(home)
    with Terminal(["bash", "--norc", "--noprofile", "-i"], environment={**environment, "PS1": "shell> "}) as terminal:
        terminal.wait("shell>")
        terminal.type(shlex.join(words) + "\r")
        terminal.wait("ready")
        for _ in range(2):
            terminal.press("ctrl+z")
            terminal.wait("Stopped")
            terminal.type("clear; echo out$((1 + 1))side\r")
            terminal.wait("out2side")
            terminal.type("fg\r")
            terminal.wait("ready")
            terminal.wait("New chat")
        terminal.type("typed again")
        terminal.wait("typed again")
        terminal.press("ctrl+c", "ctrl+d")
        terminal.wait("shell>")


def test_without_a_shell_control_z_says_so(home: Path) -> None:
    with fake(home) as terminal:
        terminal.wait("ready")
        terminal.press("ctrl+z")
        terminal.wait("no shell waits")
        terminal.type("goes on")
        terminal.wait("goes on")
