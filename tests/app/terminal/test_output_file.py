"""--output-file: files are replaced whole, everything else is written to, and a full disk costs no answer."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.cli_process import Dslite

ENTRY = str(Path(sys.executable).with_name("dslite"))


def ask(dslite: Dslite, folder: Path, *args: str, **shell: Any) -> Any:
    return dslite("complete", "-m", str(folder), *args, **shell)


def wait_for_bytes(folder: Path, least: int) -> None:
    """Until the temporary file of answer.txt has more than `least` bytes."""
    size = 0
    while size <= least:
        for file in folder.glob(".answer.txt.*"):
            with contextlib.suppress(FileNotFoundError):  # it was tried whether a file can be made there
                size = file.stat().st_size


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "-", "link", "linked/link"])
def test_the_open_stdout_is_written_to_behind_what_stands_in_it(dslite: Dslite, greeter: Path, name: str) -> None:
    (dslite.folder / "link").symlink_to("/dev/stdout")
    (dslite.folder / "linked").symlink_to(".")
    log = dslite.folder / "log"
    log.write_text("kept\n")
    result = ask(dslite, greeter, "hello", "--output-file", name, redirected={1: (str(log), os.O_WRONLY | os.O_APPEND)})
    assert (result.code, result.err) == (0, b"")
    assert log.read_text() == "kept\nhi\n"
    assert sorted(file.name for file in dslite.folder.glob("*log*")) == ["log"]


def test_stderr_and_other_descriptors_are_written_to(dslite: Dslite, greeter: Path) -> None:
    for name in ("/dev/stderr", "/dev/fd/2"):
        result = ask(dslite, greeter, "hello", "--output-file", name)
        assert (result.code, result.out, result.err) == (0, b"", b"hi\n")
    log = dslite.folder / "log"
    log.write_text("kept\n")
    command = f"'{ENTRY}' complete -m '{greeter}' hello --no-stdin --output-file /dev/fd/3 3>>'{log}'"
    done = subprocess.run(command, shell=True, capture_output=True, env=dslite.env, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert log.read_text() == "kept\nhi\n"


def test_a_pipe_is_written_to_and_stays_one(dslite: Dslite, greeter: Path) -> None:
    pipe = dslite.folder / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert ask(dslite, greeter, "hello", "--output-file", "pipe").code == 0
    reader.join()
    assert read == ["hi\n"]
    assert pipe.is_fifo()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_wait_for_a_reader_of_a_pipe(
    dslite: Dslite, greeter: Path, number: signal.Signals, code: int
) -> None:
    os.mkfifo(dslite.folder / "pipe")
    running = dslite.start("complete", "-m", str(greeter), "hello", "--no-stdin", "--output-file", "pipe")
    handled = 0
    while not handled >> (signal.SIGTERM - 1) & 1:
        status = Path(f"/proc/{running.pid}/status").read_text()
        handled = int(status.split("SigCgt:")[1].split()[0], 16)
    running.kill(number)
    os.close(running.stdin)
    assert running.wait().code == code


def test_a_link_to_a_file_stays_one(dslite: Dslite, greeter: Path) -> None:
    (dslite.folder / "real.txt").write_text("old")
    (dslite.folder / "link").symlink_to("real.txt")
    assert ask(dslite, greeter, "hello", "--output-file", "link").code == 0
    assert (dslite.folder / "link").is_symlink()
    assert (dslite.folder / "real.txt").read_text() == "hi\n"


def test_a_device_that_is_full_costs_no_answer(dslite: Dslite, greeter: Path) -> None:
    for args in ([], ["--json"], ["--no-stream"]):
        result = ask(dslite, greeter, "hello", *args, "--output-file", "/dev/full")
        assert result.code == 1
        assert b"hi" in result.out
        assert "/dev/full cannot be written: No space left on device" in result.err.decode()
        assert "printed instead" in result.err.decode()


def test_a_disk_that_fills_up_prints_all_of_the_answer_and_keeps_the_old_file(dslite: Dslite, babbler: Path) -> None:
    file = dslite.folder / "answer.txt"
    file.write_text("old")
    running = dslite.start(
        "complete", "-m", str(babbler), "x", "--no-save", "--no-stdin", "--output-file", "answer.txt"
    )
    wait_for_bytes(dslite.folder, 20)
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (64, 64))  # no file takes more
    while not running.read(80):
        os.sched_yield()
    running.kill(signal.SIGINT)
    os.close(running.stdin)
    result = running.wait()
    assert result.code == 1
    text = result.text.removesuffix("\n")
    assert len(text) > 64
    assert text == ("ho" * len(text))[: len(text)]
    assert "answer.txt cannot be written: File too large" in result.err.decode()
    assert file.read_text() == "old"
    assert not list(dslite.folder.glob(".answer*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_whole_file_and_nothing_beside_it(
    dslite: Dslite, babbler: Path, number: signal.Signals
) -> None:
    running = dslite.start("complete", "-m", str(babbler), "x", "--no-stdin", "--output-file", "answer.txt")
    wait_for_bytes(dslite.folder, 20)
    running.kill(number)
    os.close(running.stdin)
    result = running.wait()
    assert (result.code, result.out, result.err) == (128 + number, b"", b"")
    text = (dslite.folder / "answer.txt").read_text().removesuffix("\n")
    assert text == ("ho" * len(text))[: len(text)]
    assert len(text) > 20
    assert not list(dslite.folder.glob(".answer*"))
