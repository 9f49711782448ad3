"""Pasted text is never taken for keys, whatever is in it and however the terminal sends it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual import events
from textual.message import Message

from dslite.app.tui.textual_fixes.paste import PasteParser

OPEN, CLOSE = "\x1b[200~", "\x1b[201~"


def read(*chunks: str, seconds: Sequence[float] = ()) -> list[Message]:
    """Messages of what successive reads return; `seconds` is the time of each, one apart where none is given."""
    times = iter(seconds or range(len(chunks)))
    now = 0.0

    def clock() -> float:
        return now

    parser, messages = PasteParser(clock=clock), []
    for chunk in chunks:
        now = next(times)
        messages += list(parser.feed(chunk))
    return messages


def told(messages: Sequence[Message]) -> list[str]:
    """Keys by name, pastes as `paste: …`."""
    return [
        f"paste: {message.text}" if isinstance(message, events.Paste) else message.key
        for message in messages
        if isinstance(message, events.Paste | events.Key)
    ]


@pytest.mark.parametrize(
    ("pasted", "text"),
    [
        ("a\x1bb\rc", "ab\nc"),
        ("\x1b", ""),
        ("\x1b[A\x1bOP", "[AOP"),  # an arrow and F1
        ("\x07\x1b\r\n", "\n"),
        ("x\x1b\x1b[31mred\x1b[0m", "x[31mred[0m"),
        ("\x1b[200~nested", "[200~nested"),
        ("\x1b[<0;1;1M", "[<0;1;1M"),  # a press of the mouse
        ("\x9b31m\x85\x7f\x03\x04", "31m"),
        ("tab\there\r\nnext", "tab\there\nnext"),
        ("", ""),
        ("👩‍👩‍👧\x00é", "👩‍👩‍👧é"),
    ],
)
def test_all_up_to_the_closing_bracket_is_one_paste(pasted: str, text: str) -> None:
    assert told(read(f"{OPEN}{pasted}{CLOSE}x")) == [f"paste: {text}", "x"]
    assert told(read(*f"{OPEN}{pasted}{CLOSE}x")) == [f"paste: {text}", "x"]


@given(
    st.text(st.sampled_from("ab\x1b[]~0123OP\r\n\t\x07;<M你\x9b"), max_size=40).filter(lambda text: CLOSE not in text),
    st.lists(st.integers(1, 7), min_size=1, max_size=6),
)
def test_a_paste_is_the_same_however_it_is_cut(pasted: str, cuts: list[int]) -> None:
    stream, chunks, turn = f"a{OPEN}{pasted}{CLOSE}b", [], 0
    while stream:
        chunks.append(stream[: cuts[turn % len(cuts)]])
        stream, turn = stream[len(chunks[-1]) :], turn + 1
    assert told(read(*chunks))[0] == "a"
    assert told(read(*chunks))[-1] == "b"
    assert len(told(read(*chunks))) == 3


@pytest.mark.parametrize(
    "data",
    ["one\rtwo\rthree\r", "def f():\r\treturn 1\r", "one\ntwo", "a\r\rb", "x\r\ny\r\n" * 40, "/* c\r * comment */\r"],
)
def test_lines_that_come_in_one_read_are_a_paste(data: str) -> None:
    [paste] = read(data)
    assert isinstance(paste, events.Paste)
    assert paste.text == data.replace("\r\n", "\n").replace("\r", "\n")


def test_the_rest_of_such_a_paste_is_one_too_and_later_keys_are_keys() -> None:
    messages = read("one\rtwo", "three\r", "\r", seconds=[0, 0.01, 9])
    assert told(messages) == ["paste: one\ntwo", "paste: three\n", "enter"]


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ("hi\r", ["h", "i", "enter"]),
        ("\r", ["enter"]),
        ("/p\r/q\r", ["slash", "p", "enter", "slash", "q", "enter"]),
        ("a\r/quit\r", ["a", "enter", "slash", "q", "u", "i", "t", "enter"]),
        ("a\rb\x04", ["a", "enter", "b", "ctrl+d"]),
        ("\x1b[A\x1b[B", ["up", "down"]),
    ],
)
def test_what_is_typed_stays_keys(data: str, keys: list[str]) -> None:
    assert told(read(data)) == keys


@pytest.mark.parametrize("pasted", ["lost", "two\nlines\n", "\x1b[A half", "", "half of the end \x1b[20"])
def test_a_paste_that_is_never_closed_ends_after_a_silence_and_later_keys_are_keys(pasted: str) -> None:
    now = 0.0
    parser = PasteParser(clock=lambda: now)
    messages = list(parser.feed(f"{OPEN}{pasted}"))
    now = 1.5
    messages += [*parser.tick(), *parser.feed("!"), *parser.tick()]
    now = 3.0
    messages += parser.tick()
    assert told(messages) == []
    now = 4.0
    messages += [*parser.tick(), *parser.feed("x\r"), *parser.tick()]
    assert told(messages) == [f"paste: {pasted}!".replace("\x1b", ""), "x", "enter"]
    assert told(list(parser.feed(f"{CLOSE}y{OPEN}again{CLOSE}z"))) == ["y", "paste: again", "z"]


def test_a_paste_ends_at_a_size_too() -> None:
    messages = read(OPEN, *["x" * (1 << 22)] * 5, "y", seconds=range(7))
    [paste, key] = messages
    assert isinstance(paste, events.Paste)
    assert len(paste.text) == 5 << 22
    assert isinstance(key, events.Key)
