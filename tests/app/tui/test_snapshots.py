"""Pictures of the screens, compared with those that were looked at and found good.

After a wanted change: pytest tests/app/tui/test_snapshots.py --snapshot-update, and look at what changed.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_engine import FakeBackend, FakeLoader
from textual.pilot import Pilot

from dslite.app.chat.autosave import ConversationWriter
from dslite.app.chat.launch import ChatLaunch
from dslite.app.chat.model_setup import FirstRun
from dslite.app.chat.settings import ChatSettings
from dslite.app.sessions.store import SessionStore
from dslite.app.tui.app import ChatApp
from dslite.runtime.downloads.hub import parse_model
from dslite.runtime.errors import ModelUnavailableError
from dslite.runtime.events import Found

ANSWER = """\
Here is a **quicksort** that sorts in place:

```cpp
template <typename It>
void quicksort(It first, It last) {
    if (first == last) return;  // nothing left
    auto pivot = *first;
}
```

| case | time |
|---|--:|
| average | O(n log n) |
| worst | O(n²) |

1. It needs no extra memory.
2. 它很快。
"""
USES = [[(layer * 7 + expert * expert) % 23 for expert in range(64)] for layer in range(26)]
FACTS = {"uses": USES, "experts": {"slots": 44, "hits": 9000, "misses": 1000, "bytes_moved": 17_000_000_000}}


def made(home: Path, backend: FakeBackend, **more: Any) -> ChatApp:
    writer = ConversationWriter(lambda: SessionStore.open(home / "sessions.db"), saving=True)
    start = ChatLaunch(
        ref=parse_model(more.pop("model", "demo")),
        settings=ChatSettings("demo"),
        loader=more.pop("loader", None) or FakeLoader(backend),
        writer=writer,
        **more,
    )
    return ChatApp(start)


async def until(pilot: Pilot[Any], condition: Callable[[], object]) -> None:
    while not condition():
        await pilot.pause(0.01)


async def asked(pilot: Pilot[Any]) -> None:
    """One question and its answer, at a speed that is the same everywhere."""
    app: Any = pilot.app
    await until(pilot, lambda: app.controller.status.idle)
    app.chat.prompt.put("Write a piece of quicksort code in C++")
    await pilot.press("enter")
    await until(pilot, lambda: app.controller.tree.leaf and app.controller.reply is None)
    app.controller.status.rate = 41.0
    app.controller.status.rates.clear()
    app.controller.status.rates.extend([12.0, 30.0, 41.0, 40.0, 41.0])
    app.chat.refresh_lines()
    await pilot.pause()


async def inspected(pilot: Pilot[Any]) -> None:
    await asked(pilot)
    await pilot.press("f2")
    app: Any = pilot.app
    await until(pilot, lambda: app.chat.inspector.text)
    await pilot.pause()


async def helped(pilot: Pilot[Any]) -> None:
    await asked(pilot)
    await pilot.press("f1")
    await pilot.pause()


@pytest.mark.parametrize("size", [(110, 36), (40, 10), (300, 80)], ids=str)
def test_the_main_screen_looks_as_it_should(home: Path, snap_compare: Any, size: tuple[int, int]) -> None:
    assert snap_compare(made(home, FakeBackend(ANSWER)), terminal_size=size, run_before=asked)


@pytest.mark.parametrize("size", [(120, 60), (60, 40)], ids=str)
def test_the_inspector_looks_as_it_should(home: Path, snap_compare: Any, size: tuple[int, int]) -> None:
    assert snap_compare(made(home, FakeBackend(ANSWER, facts=FACTS)), terminal_size=size, run_before=inspected)


@pytest.mark.parametrize("size", [(110, 60), (40, 20)], ids=str)
def test_the_help_looks_as_it_should(home: Path, snap_compare: Any, size: tuple[int, int]) -> None:
    assert snap_compare(made(home, FakeBackend(ANSWER)), terminal_size=size, run_before=helped)


def test_the_first_run_looks_as_it_should(home: Path, snap_compare: Any) -> None:
    found = Found(
        "deepseek-ai/DeepSeek-V2-Lite-Chat", "c0", "DeepSeek model licence", "https://example.org/licence",
        31_400_000_000, 2_000_000_000, 90_000_000_000, Path("/home/you/.cache/huggingface/hub"),
    )  # fmt: skip
    held = threading.Event()

    def pull(*_: object) -> Any:
        yield found
        held.wait()

    def absent(_: object) -> Exception:
        return ModelUnavailableError("the model chat is not on this machine", "download it: dslite model pull chat")

    lines = ["GPU: none found; the processor computes", "memory: 22.0 GB free of 25.0 GB, 8 cores"]
    first_run = FirstRun(pull=pull, describe=lambda _: lines)
    backend = FakeBackend(ANSWER)
    app = made(home, backend, model="chat", loader=FakeLoader(backend, error=absent), first_run=first_run)

    async def shown(pilot: Pilot[Any]) -> None:
        await until(
            pilot, lambda: type(app.screen).__name__ == "FirstRunScreen" and len(app.screen.query("Static")) > 3
        )
        await until(pilot, lambda: "licence" in str(app.screen.query_one("#download-text").render()))
        await pilot.pause()

    assert snap_compare(app, terminal_size=(100, 34), run_before=shown)


def test_the_light_theme_looks_as_it_should(home: Path, snap_compare: Any) -> None:
    app = made(home, FakeBackend(ANSWER))
    app.theme = "light"
    assert snap_compare(app, terminal_size=(90, 30), run_before=asked)
