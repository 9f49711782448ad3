"""On a real pseudo-terminal: the colours of a selection, pastes, and the job control of a shell."""

import json
import shlex
import sys
from pathlib import Path

from support.terminal import Terminal

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
