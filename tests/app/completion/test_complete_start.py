"""The console entry itself: its start, its ends, its terminal."""

import json
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli_process import Dslite

ENTRY = Path(sys.executable).with_name("dslite")
HEAVY = ("torch", "textual", "tokenizers", "transformers", "huggingface_hub", "tomlkit", "rich", "sqlite3", "numpy")


def loaded_by(args: list[str], env: dict[str, str]) -> set[str]:
    """The modules that a command has imported at its end."""
    script = (
        "import json, sys\n"
        "from dslite.app.cli import main\n"
        f"sys.argv = ['dslite', *{args!r}]\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["complete", "--help"], ["complete", "-t", "9", "x"]])
def test_help_and_usage_errors_import_nothing_heavy(dslite: Dslite, args: list[str]) -> None:
    assert not loaded_by(args, dslite.env) & set(HEAVY)


def test_lists_of_sessions_and_profiles_import_neither_torch_nor_textual(dslite: Dslite) -> None:
    for args in (["session", "list"], ["profile", "list"]):
        assert not loaded_by(args, dslite.env) & {"torch", "textual", "tokenizers", "tomlkit", "rich"}


def cpu_seconds(command: list[str], env: dict[str, str]) -> float:
    """CPU time of a command, the least of several runs: other work on the machine only adds to it."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True, env=env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(5))


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_help_takes_at_most_150_ms_of_cpu_more_than_python(dslite: Dslite, flag: str) -> None:
    python = cpu_seconds([sys.executable, "-c", ""], dslite.env)
    assert cpu_seconds([str(ENTRY), flag], dslite.env) - python <= 0.150


def test_the_console_entry_answers_and_exits_as_the_contract_says(dslite: Dslite, greeter: Path) -> None:
    done = subprocess.run(
        [str(ENTRY), "complete", "-m", str(greeter)], input=b"hello", capture_output=True, env=dslite.env, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hi\n", b"")


def test_a_list_into_a_closed_pipe_ends_quietly_with_0(dslite: Dslite) -> None:
    turns = [{"role": "user", "content": f"question {number} " + "word " * 12} for number in range(1)]
    talks = [{"messages": turns, "title": f"{number} " + "x" * 80} for number in range(2000)]
    (dslite.folder / "talks.json").write_text(json.dumps(talks))
    assert dslite("session", "import", "talks.json").code == 0
    reading, writing = os.pipe()
    with subprocess.Popen(
        [str(ENTRY), "session", "list"], stdout=writing, stderr=subprocess.PIPE, env=dslite.env
    ) as process:
        os.close(writing)
        assert os.read(reading, 2) == b"ID"
        os.close(reading)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_only_a_terminal_gets_progress_and_stdout_never_an_escape(dslite: Dslite, greeter: Path) -> None:
    ours, theirs = pty.openpty()
    running = dslite.start("complete", "-m", str(greeter), "hello", stderr=theirs)
    os.close(running.stdin)
    result = running.wait()
    os.close(theirs)
    shown = read_terminal(ours)
    assert (result.code, result.out) == (0, b"hi\n")
    assert "loading weights" in shown
    assert "\x1b" not in shown
    assert shown.endswith("\r")  # nothing is left on the line
    quiet = dslite.start("complete", "-m", str(greeter), "hello", "-q", stderr=(pair := pty.openpty())[1])
    os.close(quiet.stdin)
    assert quiet.wait().out == b"hi\n"
    os.close(pair[1])
    assert read_terminal(pair[0]) == ""


def read_terminal(descriptor: int) -> str:
    """What a terminal was sent, now that its other end is closed."""
    pieces: list[bytes] = []
    try:
        while piece := os.read(descriptor, 65536):
            pieces.append(piece)
    except OSError:  # how Linux tells the end
        pass
    os.close(descriptor)
    return b"".join(pieces).decode()


DEMO = Path(__file__).parents[3] / "assets" / "demo"


@pytest.mark.skipif(not (DEMO / "model.safetensors").is_file(), reason="the demo model is not in assets/demo")
def test_the_demo_model_answers_by_its_short_name(dslite: Dslite) -> None:
    result = dslite("complete", "-m", "demo", "How do I save a profile?", "-t", "0", "--json")
    assert result.code == 0, result.err
    assert (result.json["model"], result.json["finish_reason"]) == ("demo", "stop")
    assert "profile" in str(result.json["text"])
