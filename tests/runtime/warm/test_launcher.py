"""What an engine in the background inherits."""

import os
import signal
import threading
from pathlib import Path

import pytest
from support.warm import OPTIONS, needs_engines

from dslite.runtime.downloads.hub import parse_model
from dslite.runtime.warm import launcher
from dslite.runtime.warm.launcher import engine_environment, obtain_engine

pytestmark = needs_engines


def test_many_that_start_an_engine_at_once_get_one(runtime_dir: Path) -> None:
    processes: list[int] = []

    def obtain() -> None:
        client = obtain_engine(parse_model("demo"), OPTIONS, 600.0, lambda _: None)
        assert client is not None
        processes.append(client.description["pid"])
        client.close()

    threads = [threading.Thread(target=obtain) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.kill(processes[0], signal.SIGKILL)
    assert processes == processes[:1] * 5


def test_tokens_keys_and_flags_are_not_inherited() -> None:
    secrets = "HF_TOKEN HUGGING_FACE_HUB_TOKEN OPENAI_API_KEY MY_KEY AWS_SECRET_ACCESS_KEY DB_PASSWORD SSH_AUTH_SOCK"
    flags = "DSLITE_TEMPERATURE DSLITE_MODEL DSLITE_NO_WARM DSLITE_API_KEY_ENV"
    kept = {"PATH": "/bin", "HOME": "/root", "HF_HUB_OFFLINE": "1", "DSLITE_DATA_DIR": "/data", "OMP_NUM_THREADS": "1"}
    given = kept | dict.fromkeys(f"{secrets} {flags}".split(), "secret")
    assert engine_environment(given) == kept


def test_folders_are_absolute_since_the_engine_runs_elsewhere() -> None:
    found = engine_environment({"DSLITE_CACHE_DIR": "here", "HF_HOME": "there", "DSLITE_DATA_DIR": ""})
    assert found["DSLITE_CACHE_DIR"].endswith("/here")
    assert found["DSLITE_CACHE_DIR"].startswith("/")
    assert found["HF_HOME"].startswith("/")
    assert found["DSLITE_DATA_DIR"] == ""


def test_where_the_system_has_no_such_sockets_there_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "has_local_sockets", lambda: False)
    assert obtain_engine(parse_model("demo"), OPTIONS, 600.0, lambda _: None) is None
