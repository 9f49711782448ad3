"""Warm engines for tests: one in a thread of the test's process, and short folders for sockets.

with warm_engine(folder) as engine:
    client = engine.connect()
"""

import contextlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dslite.app.completion.warm_model import WarmModel
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine_loader import open_engine
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.events import Loading
from dslite.runtime.system import system_name
from dslite.runtime.warm.client import WarmClient, find_engine
from dslite.runtime.warm.connection import LoadedEngine
from dslite.runtime.warm.driver import EngineDriver
from dslite.runtime.warm.idle import IdleTimer
from dslite.runtime.warm.key import EngineKey
from dslite.runtime.warm.server import EngineSocket, WarmServer, serve
from support.cli_process import Dslite
from support.paths import path_variables

needs_engines = pytest.mark.skipif(system_name() != "linux", reason="warm engines are tried on Linux alone")

OPTIONS = EngineOptions(device="cpu", dtype="float32", threads=1)


def running(dslite: Dslite) -> list[dict[str, Any]]:
    """The engines in the background of a command."""
    found: list[dict[str, Any]] = json.loads(dslite("engine", "status", "-o", "json").out)
    return found


def start(dslite: Dslite, *model: str) -> int:
    """The process of an engine that a command starts in the background."""
    result = dslite("engine", "start", *model)
    assert result.code == 0, result.err
    (engine,) = running(dslite)
    return int(engine["pid"])


def keep_alive(dslite: Dslite, text: str) -> None:
    """Have a command start an engine at its first use."""
    config = Path(dslite.env["DSLITE_CONFIG_DIR"]) / "config.toml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(f'[engine]\nkeep_alive = "{text}"\n')


class FakeClock:
    """A clock that stands still until a test sets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class RunningEngine:
    """An engine that listens."""

    ref: ModelRef
    options: EngineOptions
    key: EngineKey
    engine: Engine
    server: WarmServer
    clock: FakeClock
    thread: threading.Thread
    clients: list[WarmClient] = field(default_factory=list)

    def connect(self) -> WarmClient:
        """A client; it is closed with the engine."""
        client = find_engine(self.key, lambda _: None)
        assert client is not None
        self.clients.append(client)
        return client

    def wait_until_left(self, connections: int) -> None:
        """Wait until no more connections are left."""
        with self.server._changed:
            assert self.server._changed.wait_for(lambda: len(self.server._connections) <= connections, 60)

    def begin(self, prompt: str, *, private: bool = False, **sampling: object) -> WarmClient:
        """A client whose request, of raw text, the engine has."""
        client = self.connect()
        prepare(client, prompt, private=private, **sampling)
        return client


def prepare(client: WarmClient, prompt: str, *, private: bool = False, **sampling: object) -> object:
    """Have the engine make the request of a raw text."""
    options = {"sampling": sampling, "raw": True}
    complete = {"prompt": {"text": prompt}, "overrides": None, "options": options}
    return client.call("prepare", private=private, complete=complete)


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A folder whose sockets have short names; pytest's own may be too long for them."""
    with tempfile.TemporaryDirectory(prefix="dslite-test-") as folder:
        yield Path(folder) / "run"


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The runtime folder of this process, not made yet, beside folders of its own."""
    with short_folder() as folder:
        for name, value in path_variables(tmp_path).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DSLITE_RUNTIME_DIR", str(folder))
        yield folder


@contextlib.contextmanager
def warm_engine(
    model: Path | str,
    *,
    options: EngineOptions = OPTIONS,
    keep_alive_s: float = 600.0,
    loading: Sequence[Loading] = (),
    hold: threading.Event | None = None,
) -> Iterator[RunningEngine]:
    """An engine in this process, under a clock that stands still.

    `loading` are reported while it loads; with `hold` the load then waits until that is set.
    """
    ref = parse_model(str(model))
    key, clock = EngineKey.of(ref, options), FakeClock()
    engine = open_engine(ref, options)
    folder = Path(model) if os.path.isdir(model) else ref.folder
    assert folder is not None
    with EngineSocket(key.name) as socket:
        assert socket.listener is not None
        server = WarmServer(socket.listener, key, IdleTimer(keep_alive_s, clock))
        driver = EngineDriver(engine, on_failure=server.end)
        driver.start()
        loaded = WarmModel(ref, folder, options.weights, engine, driver)

        def load(report: object) -> LoadedEngine:
            for event in loading:
                server.report(event)
            if hold is not None:
                hold.wait()
            return loaded

        thread = threading.Thread(target=lambda: serve(server, load))
        thread.start()
        running = RunningEngine(ref, options, key, engine, server, clock, thread)
        try:
            yield running
        finally:
            for client in running.clients:
                client.close()
            server.end()
            thread.join()
            socket.close()
            server.close()
            driver.stop()
