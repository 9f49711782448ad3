"""The contract's exit codes hold whatever happens to the standard streams, and with --debug too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli_process import Dslite
from support.paths import path_variables

from dslite.app import cli

FULL = Path("/dev/full")
COMMANDS = "bench chat complete doctor plan serve model profile session".split()
WRONG = [
    (["nosuch"], 2),
    (["complete", "--nosuch"], 2),
    (["complete", "--threads", "many", "x"], 2),
    (["complete", "-t", "9", "x"], 2),
    (["plan", "--vram", "much"], 2),
    (["bench", "-r", "0"], 2),
    (["session", "list", "-o", "xml"], 2),
    (["session", "show", "nosuch"], 1),
    (["profile", "show", "nosuch"], 1),
    (["model", "info", "nosuch/model", "--offline"], 3),
    (["complete", "-m", "nosuch/model", "--offline", "x"], 3),
]


def command(folder: Path, *args: str) -> tuple[list[str], dict[str, str]]:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    return [sys.executable, "-m", "dslite.app", *args], env | path_variables(folder)


def closed_pipe() -> int:
    """The writing end of a pipe that nothing reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_a_reader_that_has_enough_is_no_error(words: list[str], tmp_path: Path) -> None:
    line, env = command(tmp_path, *words)
    stdout = closed_pipe()
    done = subprocess.run(line, env=env, stdout=stdout, stderr=subprocess.PIPE)
    os.close(stdout)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(("words", "code"), WRONG)
def test_an_error_keeps_its_code_where_stderr_cannot_be_written(words: list[str], code: int, dslite: Dslite) -> None:
    with FULL.open("w") as stderr:
        running = dslite.start(*words, stderr=stderr.fileno())
    os.close(running.stdin)
    assert running.wait().code == code


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
def test_a_full_disk_under_both_streams_ends_a_usage_error_with_2(tmp_path: Path) -> None:
    line, env = command(tmp_path, "complete", "--nosuch")
    with FULL.open("w") as full:
        assert subprocess.run(line, env=env, stdout=full, stderr=full).returncode == 2


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("words", [["--version"], ["--help"], ["model", "list"], ["profile", "list", "-o", "json"]])
def test_stdout_on_a_full_disk_is_named(words: list[str], tmp_path: Path) -> None:
    line, env = command(tmp_path, *words)
    with FULL.open("w") as full:
        done = subprocess.run(line, env=env, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.startswith(b"dslite: stdout cannot be written")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("words", "code"), WRONG)
def test_debug_prints_the_traceback_and_keeps_the_code(words: list[str], code: int, dslite: Dslite) -> None:
    running = dslite.start("--debug", *words)
    os.close(running.stdin)
    done = running.wait()
    assert done.code == code
    assert b"Traceback" in done.err


def test_an_error_leaves_its_traceback_in_the_log_and_not_on_the_screen(dslite: Dslite) -> None:
    (dslite.folder / "config" / "config.toml").mkdir(parents=True)  # no file
    log = dslite.folder / "data" / "dslite.log"
    done = dslite("profile", "list")
    assert done.code == 1
    assert b"Traceback" not in done.err
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("debug", [False, True])
def test_an_unexpected_error_is_in_the_log_with_or_without_debug(
    debug: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise ZeroDivisionError("broken inside")

    monkeypatch.setenv("DSLITE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(sys, "argv", ["dslite", *(["--debug"] if debug else [])])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    shown = capsys.readouterr().err
    assert "dslite: unexpected ZeroDivisionError: broken inside" in shown
    assert ("Traceback" in shown) == debug
    log = (tmp_path / "dslite.log").read_text()
    assert "Traceback" in log
    assert 'raise ZeroDivisionError("broken inside")' in log


def test_a_usage_error_leaves_no_trace_in_the_log(dslite: Dslite) -> None:
    assert dslite("complete", "-t", "9", "secret").code == 2
    assert not (dslite.folder / "data" / "dslite.log").exists()
