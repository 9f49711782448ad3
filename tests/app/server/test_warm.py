"""`serve --warm`: commands of this user share the model that is served."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cli_process import Dslite
from support.serving import Server, serving
from support.warm import needs_engines, running

pytestmark = needs_engines

EXACT = ("--device", "cpu", "--dtype", "float32", "--threads", "1")
COMPLETE = ("complete", "-m", "demo", *EXACT, "-t", "0", "--json")


@pytest.fixture
def server(warm: Dslite) -> Iterator[Server]:
    with serving("demo", *EXACT, "--warm", env=warm.env) as started:
        yield started


def asked(server: Server, text: str) -> str:
    chat = server.openai().chat.completions
    answer = chat.create(model="demo", messages=[{"role": "user", "content": text}], temperature=0, max_tokens=20)
    return str(answer.choices[0].message.content)


def test_commands_and_the_api_share_one_model(warm: Dslite, server: Server) -> None:
    (engine,) = running(warm)
    assert server.process is not None
    assert (engine["pid"], engine["model"], engine["keep_alive_s"]) == (server.process.pid, "demo", None)
    first = warm(*COMPLETE, "-n", "20", "What is a profile?").json
    here = warm(*COMPLETE, "-n", "20", "--no-warm", "What is a profile?").json
    assert (first["engine"], first["text"]) == ("warm", here["text"])
    assert asked(server, "What is a profile?") == here["text"]
    again = warm(*COMPLETE, "-n", "20", "What is a profile?").json
    assert int(str(again["cached_tokens"])) > 5


def test_both_are_answered_at_the_same_time(warm: Dslite, server: Server) -> None:
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(asked(server, "How do I save one?"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    there = warm(*COMPLETE, "-n", "20", "How do I save one?").json
    for thread in threads:
        thread.join()
    assert there["engine"] == "warm"
    assert texts == [there["text"]] * 4


def test_stop_ends_the_engine_and_not_the_server(warm: Dslite, server: Server) -> None:
    assert warm("engine", "stop").code == 0
    assert running(warm) == []
    assert "engine" not in warm(*COMPLETE, "-n", "1", "hi").json
    assert asked(server, "hi")


def test_the_end_of_the_server_leaves_no_socket(warm: Dslite, server: Server) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    server.process.wait()
    assert not list(Path(warm.env["DSLITE_RUNTIME_DIR"]).glob("*.socket"))


def test_a_second_engine_of_the_model_is_refused(warm: Dslite, server: Server) -> None:
    result = warm("serve", "-m", "demo", *EXACT, "--warm", "--port", "0")
    assert result.code == 1
    assert b"a warm engine of demo runs already" in result.err


def test_a_kill_of_the_server_in_the_middle_of_an_answer_loses_nothing(warm: Dslite, server: Server) -> None:
    flags = ("--raw", "-n", "5000", "--regex", "[a-z ]{2500}", "-o", "jsonl", "Once")
    wanted = warm(*COMPLETE[:-1], *flags, "--no-warm")
    command = warm.start(*COMPLETE[:-1], *flags)
    command.send(b"")
    command.read(1)
    assert server.process is not None
    server.process.kill()
    result = command.wait()
    last: dict[str, Any] = json.loads(result.out.splitlines()[-1])
    assert (result.code, last["text"]) == (0, wanted.lines[-1]["text"])
    assert b"the warm engine was lost" in result.err
