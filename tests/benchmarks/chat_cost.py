"""What the chat's screen costs the real engine, measured within one answer.

    make_checkpoint.py /tmp/lite8 --layers 8        # real sizes, 8 layers, 9.2 GB of memory; or the real weights
    python tests/benchmarks/chat_cost.py /tmp/lite8

A shared machine is not the same machine from one answer to the next: `dslite complete` and `dslite chat` in
turns scatter by ten times the aim. So one answer is made in the chat on a pty, and its tokens take turns: sixteen go to
the screen as they come, sixteen are held back while the screen's timer sleeps (as if there were no screen), and so on.
The first two of each sixteen, which carry what was held back, are not counted.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.terminal import Terminal  # noqa: E402

from dslite.app.chat.autosave import ConversationWriter  # noqa: E402
from dslite.app.chat.launch import ChatLaunch  # noqa: E402
from dslite.app.chat.model_loading import LoadedModel, LocalModelLoader  # noqa: E402
from dslite.app.chat.settings import ChatSettings  # noqa: E402
from dslite.app.sessions.store import SessionStore  # noqa: E402
from dslite.app.tui.app import ChatApp  # noqa: E402
from dslite.runtime.downloads.hub import ModelRef, parse_model  # noqa: E402
from dslite.runtime.events import Event, Token  # noqa: E402

TOKENS, TURN, SKIPPED = 384, 16, 2
ANSWERS = 5
HELD, SHOWN = "held", "shown"


class Alternating:
    """A backend whose tokens go to the screen in every other turn alone, and which times them all."""

    def __init__(self, inner: Any, app: ChatApp, report: Path) -> None:
        self._inner, self._app, self._report = inner, app, report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def reply(self, *args: Any, **options: Any) -> Iterator[Event]:
        """The inner backend's events; the seconds between tokens are written to the report."""
        seconds: dict[str, list[float]] = {HELD: [], SHOWN: []}
        held: list[Event] = []
        count, told = 0, time.perf_counter()
        for event in self._inner.reply(*args, **options):
            if not isinstance(event, Token):
                yield event
                continue
            kind = (HELD, SHOWN)[count // TURN % 2]
            came = time.perf_counter()
            if count % TURN >= SKIPPED:
                seconds[kind].append(came - told)
            told = came
            if count % TURN == 0:
                (self._app._timer.pause if kind == HELD else self._app._timer.resume)()
                yield from held
                held.clear()
            count += 1
            if kind == HELD:
                held.append(event)
            else:
                yield event
        self._app._timer.resume()
        yield from held
        self._report.write_text(json.dumps(seconds))


def chat(model: str, folder: Path) -> None:
    """The chat itself, in the terminal that it was started in."""

    class Loader(LocalModelLoader):
        def load(self, ref: ModelRef, report: Any) -> LoadedModel:
            loaded = super().load(ref, report)
            return LoadedModel(Alternating(loaded.backend, app, folder / "report"), loaded.defaults)

    settings = ChatSettings(model, chosen={"max_tokens": TOKENS, "temperature": 0.0})
    writer = ConversationWriter(lambda: SessionStore.open(folder / "sessions.db"), saving=True)
    app = ChatApp(ChatLaunch(parse_model(model), settings, Loader({"threads": os.cpu_count()}), writer))
    app.run()


def measure(model: str) -> tuple[float, float]:
    """One answer: the mean seconds of a token, held back and shown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        homes = {f"DSLITE_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "CACHE")}
        command = [sys.executable, __file__, model, str(folder)]
        with Terminal(command, size=(110, 36), environment=homes) as terminal:
            terminal.wait("ready", patience=120)
            terminal.type("Count.\r")
            while not (folder / "report").exists():
                assert terminal.take(0.5), "the chat ended"  # bytes alone: drawing them would cost what we measure
            terminal.take(1)
            terminal.press("ctrl+d")
            terminal.end()
        seconds = json.loads((folder / "report").read_text())
    return statistics.mean(seconds[HELD]), statistics.mean(seconds[SHOWN])


def main(model: str) -> None:
    """Print the figures of some answers, and their median."""
    costs = []
    for number in range(ANSWERS):
        held, shown = measure(model)
        costs.append(100 * (shown / held - 1))
        print(f"answer {number + 1}: {1 / held:.2f} tok/s held, {1 / shown:.2f} shown: {costs[-1]:+.1f} %", flush=True)
    print(f"cost to decoding speed, median of {ANSWERS}: {statistics.median(costs):+.1f} % (aim: 3 % at most)")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        chat(sys.argv[1], Path(sys.argv[2]))
    else:
        main(sys.argv[1])
