"""Starting an engine in the background: one process at a time does so, and it inherits no secrets and no terminal."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import LoadingEvent
from dslite.runtime.locked_file import LockTimeoutError, file_lock
from dslite.runtime.paths import log_dir
from dslite.runtime.system.folders import expand_home
from dslite.runtime.system.local_socket import has_local_sockets
from dslite.runtime.warm.address import find_folder, make_folder, socket_file
from dslite.runtime.warm.client import WarmClient, find_engine, open_channel
from dslite.runtime.warm.key import EngineKey

_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
_OF_DSLITE = re.compile(r"DSLITE_(?!(CONFIG|DATA|CACHE|RUNTIME)_DIR$)")  # flags: the engine is given its own
_FOLDERS = (*(f"DSLITE_{name}_DIR" for name in ("CONFIG", "DATA", "CACHE", "RUNTIME")), "HF_HOME", "HF_HUB_CACHE")
_START_S = 60.0


def obtain_engine(
    ref: ModelRef, options: EngineOptions, keep_alive_s: float | None, report: Callable[[LoadingEvent], None]
) -> WarmClient | None:
    """The engine that runs for a model and its options, or one that is started; None where none runs or may be.

    `keep_alive_s` None: none is started. `report` gets the progress of its load.

    Raises EngineRefusedError, DsliteError.
    """
    if not has_local_sockets() or (not keep_alive_s and find_folder() is None):
        return None
    key = EngineKey.of(ref, options)
    client = find_engine(key, report)
    if client is None and keep_alive_s:
        launch(key, ref, options, keep_alive_s)
        client = find_engine(key, report)
    return client


def launch(key: EngineKey, ref: ModelRef, options: EngineOptions, keep_alive_s: float | None) -> None:
    """Start the engine of a model; when this returns its socket listens, or that of one that ran already.

    Raises DsliteError.
    """
    file = socket_file(make_folder(), key.name)
    try:
        with file_lock(file, timeout=_START_S):
            if (channel := open_channel(file)) is None:
                _start(ref, options, keep_alive_s)
            else:
                channel.close()
    except LockTimeoutError:
        raise DsliteError(
            "another dslite has been starting the warm engine for a minute", "the log may say why"
        ) from None


def _start(ref: ModelRef, options: EngineOptions, keep_alive_s: float | None) -> None:
    spec = json.dumps({"model": ref.key, "options": asdict(options), "keep_alive_s": keep_alive_s})
    command = [sys.executable, "-P", "-m", "dslite.app", "engine", "run", spec]
    log = log_dir().absolute()
    try:
        log.mkdir(parents=True, exist_ok=True)
        with (log / "dslite.log").open("ab") as stderr:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=Path.home().anchor,
                env=engine_environment(os.environ),
                start_new_session=True,
                timeout=_START_S,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DsliteError(f"the warm engine was not started: {error}", "the log has the details") from None
    if done.returncode:
        raise DsliteError("the warm engine was not started", f"{log / 'dslite.log'} has the details")


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of an engine: without tokens, keys, passwords and flags of dslite; its folders are absolute."""
    kept = {
        name: value for name, value in environment.items() if not _SECRET.search(name) and not _OF_DSLITE.match(name)
    }
    return kept | {name: str(expand_home(kept[name]).absolute()) for name in _FOLDERS if kept.get(name)}
