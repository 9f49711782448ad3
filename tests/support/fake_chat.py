"""The chat with a fake model as a program of its own, for a pty: `python -m support.fake_chat '{"text": …}'`.

Keys of the JSON argument: text, rate (tokens/s), data (folder with sessions.db), log (a file for the times of events),
crash (Ctrl+G breaks the screen).
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dslite.app.chat.autosave import ConversationWriter
from dslite.app.chat.launch import ChatLaunch
from dslite.app.chat.settings import ChatSettings
from dslite.app.sessions.store import SessionStore
from dslite.app.tui.app import ChatApp, run_chat
from dslite.runtime.downloads.hub import parse_model
from dslite.runtime.events import ChatEvent, Prefilling
from support.fake_engine import FakeBackend, FakeLoader


class LoggingBackend(FakeBackend):
    """Notes the monotonic times at which an answer began and ended; the clock is one for all processes."""

    def __init__(self, log: Path | None, **settings: Any) -> None:
        super().__init__(**settings)
        self._log = log

    def reply(
        self,
        messages: Sequence[Any],
        params: Any,
        cancel: threading.Event,
        *,
        continue_final_message: bool = False,
        on_prefill: Callable[[Prefilling], None] | None = None,
    ) -> Iterator[ChatEvent]:
        began, count = time.monotonic(), 0
        events = super().reply(
            messages, params, cancel, continue_final_message=continue_final_message, on_prefill=on_prefill
        )
        for event in events:
            count += 1
            yield event
        if self._log is not None:
            with self._log.open("a") as file:
                print(json.dumps({"began": began, "ended": time.monotonic(), "events": count}), file=file)


def _broken(*_: object) -> None:
    raise RuntimeError("the screen broke")


def main() -> int:
    """Hold the chat."""
    options = json.loads(sys.argv[1])
    data = Path(options["data"])
    log = Path(options["log"]) if "log" in options else None
    backend = LoggingBackend(log, text=options.get("text", "Hello."), rate=options.get("rate"))
    writer = ConversationWriter(lambda: SessionStore.open(data / "sessions.db"), saving=options.get("saving", True))
    start = ChatLaunch(parse_model("demo"), ChatSettings("demo"), FakeLoader(backend), writer)
    if options.get("crash"):
        ChatApp.suspended = _broken  # type: ignore[method-assign,assignment]
    return run_chat(start)


if __name__ == "__main__":
    sys.exit(main())
