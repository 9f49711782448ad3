"""The home folder: known, or missing in a service or a container whose user is in no list."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import path_variables

from dslite.runtime.errors import DsliteError
from dslite.runtime.system.folders import expand_home, require_home

# A process without HOME whose user has no entry: what `docker run --user 54321` may be.
HOMELESS = """
import pwd, sys
def unknown(_): raise KeyError("no such user")
pwd.getpwuid = pwd.getpwnam = unknown
from dslite.app.cli import main
sys.argv = ["dslite", *sys.argv[1:]]
main()
"""


def homeless(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "FAKE_SYSTEM")}
    return subprocess.run(
        [sys.executable, "-c", HOMELESS, *arguments],
        env=kept | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "command",
    [
        ("model", "list"),
        ("session", "list"),
        ("profile", "list"),
        ("complete", "-m", "demo", "hi"),
        ("--install-completion", "bash"),
        ("--install-completion", "zsh"),
        ("doctor",),
    ],
)
def test_without_a_home_folder_a_command_names_home(command: tuple[str, ...]) -> None:
    done = homeless(*command)
    assert done.returncode == 1
    assert "HOME" in done.stderr
    assert "unexpected" not in done.stderr
    assert "Traceback" not in done.stderr


def test_named_folders_need_no_home(tmp_path: Path) -> None:
    done = homeless("model", "list", **path_variables(tmp_path), HF_HOME=str(tmp_path / "hf"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout


def test_a_home_folder_is_put_in_place_of_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home("~/models") == Path("/home/me/models")
    assert require_home("~", "HF_HOME") == Path("/home/me")
    assert expand_home("/models/~x") == Path("/models/~x")


def test_a_user_that_is_not_known_stays_as_written() -> None:
    assert expand_home("~no-such-user/models") == Path("~no-such-user/models")
    with pytest.raises(DsliteError, match="no home folder") as caught:
        require_home("~no-such-user/models", "HF_HOME")
    assert "HF_HOME" in caught.value.remedy
