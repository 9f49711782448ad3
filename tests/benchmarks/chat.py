"""What the chat costs and how fast it is, on a pty: prints one row for each measure, with the aim beside it.

    python tests/benchmarks/chat.py            # all
    python tests/benchmarks/chat.py start keys # some

The model is a fake that emits at a set rate; what the screen costs the real engine is chat_cost.py's matter. Keys are
characters that occur nowhere else: one is on screen when its bytes come back.
"""

import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.chat_texts import fence, mixed, prose, table  # noqa: E402
from support.fake_engine import pieces  # noqa: E402
from support.terminal import Terminal, dslite  # noqa: E402

TOKENS = 4000
SIZE = (110, 36)
MARK = "THE-END-OF-IT"


def row(measure: str, value: str, aim: str) -> None:
    print(f"{measure:<52} {value:<44} {aim}", flush=True)


def fake(home: Path, **options: object) -> Terminal:
    """The chat with the fake model."""
    settings = {"data": str(home), **options}
    environment = {
        "PYTHONPATH": str(ROOT / "tests"),
        **{f"DSLITE_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "CACHE")},
    }
    terminal = Terminal(
        [sys.executable, "-m", "support.fake_chat", json.dumps(settings)], size=SIZE, environment=environment
    )
    terminal.wait("ready")
    return terminal


def until(terminal: Terminal, needle: bytes, *, patience: float = 60.0) -> float:
    """Take output until bytes come; return the time at which they came."""
    seen, end = len(terminal.raw), time.monotonic() + patience
    while needle not in terminal.raw[max(seen - len(needle), 0) :]:
        if time.monotonic() > end or not terminal.take(0.002):
            raise AssertionError(f"{needle!r} never came")
    return time.monotonic()


def start() -> None:
    """From the start of the program to its first picture, while the demo model loads behind."""
    spent = []
    for _ in range(10):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            with dslite("chat", "-m", "demo", home=Path(folder), size=SIZE) as terminal:
                spent.append(1000 * (until(terminal, b"New chat") - began))
    row("start to first paint, median of 10", f"{statistics.median(spent):.0f} ms (most {max(spent):.0f})", "≤ 700 ms")


def keys() -> None:
    """From a key to its character on screen while 200 tokens a second stream in."""
    for name, text in (("prose", prose), ("code fence", fence), ("table", table), ("mixed", mixed)):
        with tempfile.TemporaryDirectory() as folder, fake(Path(folder), text=text(TOKENS), rate=200) as terminal:
            terminal.type("go\r")
            until(terminal, b"tok/s")
            spent = sorted(_keys(terminal, seconds=TOKENS / 200 - 1.5))
        p95 = spent[int(len(spent) * 0.95)]
        value = f"p50 {spent[len(spent) // 2]:.0f}, p95 {p95:.0f}, max {spent[-1]:.0f} ms of {len(spent)}"
        row(f"key to screen, {TOKENS:,} tokens of {name} at 200/s", value, "p95 ≤ 50, max ≤ 150 ms")


def _keys(terminal: Terminal, *, seconds: float) -> list[float]:
    """Milliseconds that each of many keys took."""
    spent, rng, end = [], random.Random(0), time.monotonic() + seconds
    for place in range(100_000):
        if time.monotonic() > end:
            return spent
        wait = time.monotonic() + rng.uniform(0.05, 0.15)
        while time.monotonic() < wait:
            terminal.take(0.005)
        char = chr(0x3400 + place)  # rare ideographs: no answer has them
        began = time.monotonic()
        terminal.type(char)
        spent.append(1000 * (until(terminal, char.encode()) - began))
        if place % 20 == 19:
            terminal.press("ctrl+u")  # the input stays one line
    return spent


def rate() -> None:
    """What the screen takes in: every token, and how soon after the last one it shows."""
    for name, text, offered in (
        ("prose", prose, 400),
        ("code fence", fence, 400),
        ("table", table, 400),
        ("prose", prose, 2000),
        ("code fence", fence, 2000),
        ("table", table, 2000),
    ):
        with tempfile.TemporaryDirectory() as folder:
            home, log = Path(folder), Path(folder) / "log"
            answer = f"{text(TOKENS)}\n\n{MARK}"
            with fake(home, text=answer, rate=offered, log=str(log)) as terminal:
                terminal.type("go\r")
                shown = until(terminal, MARK.encode(), patience=120)
                terminal.wait("tok/s last")
                terminal.press("ctrl+d")
                terminal.end()
            times = json.loads(log.read_text().splitlines()[-1])
            kept = _saved_answer(home) == answer
            speed = len(pieces(answer)) / (shown - times["began"])
            drained = 1000 * (shown - times["ended"])
            value = f"{speed:.0f} tok/s, tail {max(drained, 0):.0f} ms, {'nothing lost' if kept else 'TEXT LOST'}"
            row(f"{name} offered at {offered} tok/s", value, "≥ 200 (prose 400) · tail ≤ 300 ms")


def _saved_answer(home: Path) -> str:
    from dslite.app.sessions.store import SessionStore

    with SessionStore.open(home / "sessions.db") as store:
        talk = store.latest()
        assert talk is not None
        return store.path(talk.leaf)[-1].content


def stop() -> None:
    """From Esc to the word that it stopped, and to the end of the engine's step."""
    seen, idle = [], []
    for number in range(10):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            with fake(Path(folder), text=mixed(TOKENS), rate=100, log=str(log)) as terminal:
                terminal.type("go\r")
                until(terminal, b"tok/s")
                for _ in range(20 + number):
                    terminal.take(0.02)
                began = time.monotonic()
                terminal.press("escape")
                seen.append(1000 * (until(terminal, b"stopped") - began))
                while not (log.exists() and log.read_text().endswith("\n")):
                    terminal.take(0.01)
                idle.append(1000 * (json.loads(log.read_text().splitlines()[-1])["ended"] - began))
    row(
        "Esc to stopped on screen, most of 10", f"{max(seen):.0f} ms (median {statistics.median(seen):.0f})", "≤ 100 ms"
    )
    row("Esc to the engine idle, most of 10 (10 ms a step)", f"{max(idle):.0f} ms", "one step, and the key's way")


def long() -> None:
    """A conversation of 32,000 tokens: opened, resized, and what it costs in memory."""
    from dslite.app.sessions.store import SessionStore

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with SessionStore.open(home / "sessions.db") as store:
            short = store.create(model="demo", title="a short one")
            store.append(short.id, "user", "hello", parent=None)
            _long_conversation(store)
        with fake(home) as terminal:
            _settle(terminal)
            empty = _rss(terminal.pid)
            opened, closed, memory = [], [], []
            for _ in range(10):
                opened.append(_open_by_search(terminal, "long", MARK))
                _settle(terminal)
                memory.append(_rss(terminal.pid) - empty)
                closed.append(_open_by_search(terminal, "short", "hello"))
            _open_by_search(terminal, "long", MARK)
            resized = [_resize(terminal, width) for width in (80, 120, 60, 110)]
        row(
            "32k tokens: opened to its tail, median of 10",
            f"{statistics.median(opened):.0f} ms (most {max(opened):.0f})",
            "≤ 300 ms",
        )
        row(
            "32k tokens: resized, median of 4",
            f"{statistics.median(resized):.0f} ms (most {max(resized):.0f})",
            "≤ 200 ms",
        )
        first, last = memory[0] / 2**20, memory[-1] / 2**20
        row("32k tokens: memory over empty, first · tenth opening", f"{first:.1f} · {last:.1f} MiB", "≤ 40 MiB, flat")


def _long_conversation(store: object) -> None:
    talk = store.create(model="demo", title="the long one")  # type: ignore[attr-defined]
    parent = None
    for number in range(40):
        asked = store.append(talk.id, "user", f"question {number}", parent=parent)  # type: ignore[attr-defined]
        text = mixed(800) + (f"\n\n{MARK}" if number == 39 else "")
        answer = store.append(talk.id, "assistant", text, parent=asked.id, finish_reason="stop")  # type: ignore[attr-defined]
        parent = answer.id


def _open_by_search(terminal: Terminal, title: str, needle: str) -> float:
    """Milliseconds from Enter in the panel to a text on screen."""
    terminal.press("ctrl+o")
    until(terminal, b"earch in titles")
    _settle(terminal, 0.3)
    terminal.type(title)
    _settle(terminal, 0.6)
    began = time.monotonic()
    terminal.press("enter")
    return 1000 * (until(terminal, needle.encode()) - began)


def _resize(terminal: Terminal, width: int) -> float:
    """Milliseconds from the new size to the end of the picture: its last line is the status line."""
    began = time.monotonic()
    terminal.resize(width, SIZE[1])
    until(terminal, MARK.encode())
    shown = until(terminal, b"F1")
    _settle(terminal)
    return 1000 * (shown - began)


def _settle(terminal: Terminal, seconds: float = 1.0) -> None:
    """Take output until none came for a while."""
    quiet = time.monotonic() + seconds
    while time.monotonic() < quiet:
        size = len(terminal.raw)
        terminal.take(0.02)
        if len(terminal.raw) != size:
            quiet = time.monotonic() + seconds


def _rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sessions() -> None:
    """10,000 saved conversations: the list's first paint, and a search."""
    from dslite.app.sessions.store import SessionStore

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with SessionStore.open(home / "sessions.db") as store:
            words = "amber birch cedar delta ember flint grove heath inlet juniper".split()
            rng = random.Random(1)
            for number in range(10_000):
                talk = store.create(model="demo", title=f"about {rng.choice(words)} {number}")
                said = store.append(talk.id, "user", " ".join(rng.choices(words, k=12)), parent=None)
                rare = " quokka" if number in (17, 5000) else ""
                store.append(talk.id, "assistant", " ".join(rng.choices(words, k=60)) + rare, parent=said.id)
        lists, searches = [], []
        with fake(home) as terminal:
            for _ in range(5):
                _settle(terminal, 0.5)
                began = time.monotonic()
                terminal.press("ctrl+o")
                lists.append(1000 * (until(terminal, b"about ") - began))
                _settle(terminal, 0.5)
                terminal.type("quokk")
                _settle(terminal, 0.5)
                began = time.monotonic()
                terminal.type("a")
                until(terminal, b"quokka")
                searches.append(1000 * (time.monotonic() - began))
                terminal.press("escape")
    row(
        "10,000 chats: first paint of the list, median of 5",
        f"{statistics.median(lists):.0f} ms (most {max(lists):.0f})",
        "≤ 150 ms",
    )
    row(
        "10,000 chats: search to its result, median of 5",
        f"{statistics.median(searches):.0f} ms (most {max(searches):.0f})",
        "≤ 100 ms",
    )


MEASURES: dict[str, Callable[[], None]] = {
    "start": start,
    "keys": keys,
    "rate": rate,
    "stop": stop,
    "long": long,
    "sessions": sessions,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or MEASURES:
        MEASURES[name]()
