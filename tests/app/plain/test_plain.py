"""`dslite chat --plain` at the context's limit."""

import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from support.paths import path_variables

from dslite.app.sessions.store import SessionStore

QUESTION = "How do I save a profile?\n"


def chat(home: Path, config: str) -> subprocess.CompletedProcess[bytes]:
    """Six questions in a context of 160 tokens."""
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text(config)
    return subprocess.run(
        [Path(sys.executable).parent / "dslite", "chat", "--plain", "-m", "demo", "--ctx-size", "160", "-n", "40"],
        input=(QUESTION * 6).encode(),
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", **path_variables(home)},
        check=False,
    )


@pytest.mark.parametrize("way", ["forget", "stop"])
def test_the_config_says_what_a_chat_by_lines_does_at_the_limit(tmp_path: Path, way: str) -> None:
    done = chat(tmp_path, f'[chat]\nwhen_full = "{way}"\n')
    assert done.returncode == 0, done.stderr
    assert (b"no longer sees the oldest messages" in done.stderr) == (way == "forget")
    assert (b"the context holds 160" in done.stderr) == (way == "stop")
    with SessionStore.open(tmp_path / "data" / "sessions.db") as store:
        talk = store.latest()
        assert talk is not None
        roles = [message.role for message in store.tree(talk.id)]
    assert roles.count("user") == 6
    assert (roles.count("assistant") == 6) == (way == "forget")


def test_a_chat_by_lines_goes_on_from_a_summary_that_the_model_writes(tmp_path: Path) -> None:
    done = chat(tmp_path, '[chat]\nwhen_full = "summary"\n')
    assert done.returncode == 0, done.stderr
    written = [line.removeprefix("Summary: ") for line in done.stdout.decode().splitlines() if "Summary: " in line]
    with SessionStore.open(tmp_path / "data" / "sessions.db") as store:
        talks = store.conversations(limit=10)
        questions = [message.role for talk in talks for message in store.tree(talk.id)].count("user")
        systems = [store.get(talk.id).system or "" for talk in talks]
    assert written
    assert len(talks) == len(written) + 1
    assert questions == 6 + len(written)  # one is asked again in each new chat
    for text in written:
        assert any(text in system for system in systems), (text, systems)


def test_a_terminal_is_asked_once_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    program = Path(sys.executable).parent / "dslite"
    child = pexpect.spawn(
        str(program),
        ["chat", "--plain", "-m", "demo", "--ctx-size", "160", "-n", "40"],
        env={"PATH": "/usr/bin:/bin", "TERM": "dumb", **path_variables(tmp_path)},
        encoding="utf-8",
        timeout=60,
    )
    child.expect("> $")
    asked = 0
    for _ in range(6):
        child.send(QUESTION)
        if child.expect(["> $", r"or stop \(Enter\)\? $"]):
            asked += 1
            child.send("f\n")
            child.expect("no longer sees the oldest messages")
            child.expect("> $")
    child.sendeof()
    child.expect(pexpect.EOF)
    assert asked == 1
