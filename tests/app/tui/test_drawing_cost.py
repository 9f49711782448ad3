"""Text that grows is drawn as seldom and as little as can be, and the screen still shows all of it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.chat import drive, open_chat
from support.chat_texts import fence, mixed, prose, table
from support.fake_engine import FakeBackend
from textual.scrollbar import ScrollBar
from textual.strip import Strip

from dslite.app.tui.textual_fixes.frame_rate import BESIDE_A_CPU, BESIDE_ANOTHER, RedrawThrottle
from dslite.app.tui.transcript.blocks import TranscriptItem
from dslite.app.tui.transcript.transcript import Transcript


@pytest.mark.parametrize("make", [prose, fence, table, mixed])
@drive
async def test_what_grew_on_screen_is_what_a_whole_drawing_shows(home: Path, make: Callable[[int], str]) -> None:
    text = make(250)
    async with open_chat(home, size=(60, 16)) as chat:
        await chat.ready()
        transcript = chat.transcript
        entry = TranscriptItem(99, "assistant", "demo", growing=True)
        transcript.add(entry)
        for start in range(0, len(text), 23):
            transcript.extend(entry, text[start : start + 23])
            await chat.pilot.pause()
            grown = chat.text
            transcript.refresh()
            await chat.pilot.pause()
            assert grown == chat.text


@drive
async def test_a_word_more_draws_one_line_and_no_scroll_bar(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[int] = []
    bars: list[ScrollBar] = []
    line_of, bar_of = Transcript.render_line, ScrollBar.render

    def render_line(self: Transcript, y: int) -> Strip:
        lines.append(y)
        return line_of(self, y)

    def render_bar(self: ScrollBar) -> Any:
        bars.append(self)
        return bar_of(self)

    async with open_chat(home, size=(100, 30)) as chat:
        await chat.ready()
        entry = TranscriptItem(99, "assistant", "demo", growing=True)
        chat.transcript.add(entry)
        chat.transcript.extend(entry, f"{prose(600)}\n\nThe last paragraph has " + "more than one line, " * 6)
        await chat.pilot.pause()
        monkeypatch.setattr(Transcript, "render_line", render_line)
        monkeypatch.setattr(ScrollBar, "render", render_bar)
        chat.transcript.extend(entry, "stays as")
        await chat.pilot.pause()
        assert len(lines) == 1
        assert not bars


def test_drawing_takes_no_more_than_its_share_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 100.0, "spent": 5.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(time, "thread_time", lambda: clock["spent"])

    def drawn(share: float, cost: float) -> int:
        """How often one draws in ten seconds of twelve ticks each, where one drawing takes `cost` seconds."""
        pace, count = RedrawThrottle(), 0
        for _ in range(120):
            clock["now"] += 1 / 12
            if pace.due(share):
                count += 1
                clock["spent"] += cost
        return count

    assert drawn(BESIDE_A_CPU, 0.003) == 120
    assert drawn(BESIDE_A_CPU, 0.005) == 60
    assert drawn(BESIDE_ANOTHER, 0.012) == 120
    assert drawn(BESIDE_A_CPU, 0.1) >= 30  # a slow drawing still comes four times a second
    assert BESIDE_A_CPU > 0.003 * 120 / 10
    assert BESIDE_A_CPU > 0.005 * 60 / 10


@drive
async def test_while_text_waits_to_be_drawn_what_is_saved_tells_text_and_ids_of_one_moment(home: Path) -> None:
    async with open_chat(home, FakeBackend(prose(400), rate=400)) as chat:
        seen: list[tuple[str, int]] = []
        update = chat.controller.writer.update_now_and_then

        def watch(tree: Any, node: Any, ids: Any) -> None:
            reply = chat.controller.reply
            seen.append((node.content, len(reply.pending)))
            update(tree, node, ids)

        chat.controller.writer.update_now_and_then = watch
        await chat.ask("go")
        assert len({text for text, _ in seen}) > 1
        assert {waiting for _, waiting in seen} == {0}
        assert chat.contents[-1] == prose(400)
