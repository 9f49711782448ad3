"""`dslite chat --plain` at the context's limit."""

import subprocess
import sys
from pathlib import Path

import pytest

from dslite.app.sessions import SessionStore

QUESTION = "How do I save a profile?\n"


def chat(home: Path, config: str) -> subprocess.CompletedProcess[bytes]:
    """Six questions in a context of 160 tokens."""
    (home / "config").mkdir()
    (home / "config" / "config.toml").write_text(config)
    return subprocess.run(
        [Path(sys.executable).parent / "dslite", "chat", "--plain", "-m", "demo", "--ctx-size", "160", "-n", "40"],
        input=(QUESTION * 6).encode(),
        capture_output=True,
        env={"PATH": "/usr/bin:/bin"}
        | {f"DSLITE_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "CACHE")},
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
