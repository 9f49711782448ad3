"""A batch reads lines as they come and writes results as they are known, in memory that does not grow."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.cli_process import Dslite, Running
from support.scripted_server import ScriptedServer, delta, events

from dslite.app.completion.batch import BatchOptions, complete_batch
from dslite.app.completion.batch_progress import BatchProgress
from dslite.app.completion.output import OutputOptions
from dslite.app.completion.protocol import RequestSource
from dslite.app.terminal.line_reader import MOST_LINE_BYTES, LineReader
from dslite.app.terminal.signals import Interruption
from dslite.model.errors import DsliteError
from dslite.runtime.errors import UsageError

HELLO = b'{"prompt": "hello", "max_tokens": 5}\n'
ENDLESS = b'{"prompt": "x", "id": "endless"}\n'


def next_line(running: Running, count: int) -> bytes:
    """Line `count` of stdout, once it is there."""
    while (got := running.read(len(running.read(0)) + 1)).count(b"\n") < count:
        pass
    return got.splitlines()[count - 1]


def test_a_result_is_written_before_the_next_line_is_there(dslite: Dslite, greeter: Path) -> None:
    running = dslite.start("complete", "-m", str(greeter), "--batch", "-")
    for count in (1, 2, 3):
        os.write(running.stdin, HELLO)
        assert json.loads(next_line(running, count))["id"] == count
    os.close(running.stdin)
    assert running.wait().code == 0


def test_a_line_that_comes_while_another_is_decoded_is_answered_beside_it(dslite: Dslite, babbler: Path) -> None:
    running = dslite.start("complete", "-m", str(babbler), "--batch", "-", "--unordered")
    os.write(running.stdin, ENDLESS)
    os.write(running.stdin, b'{"prompt": "x", "max_tokens": 2}\n')
    assert json.loads(next_line(running, 1))["id"] == 2
    os.write(running.stdin, b'{"prompt": "x", "max_tokens": 3}\n')
    assert json.loads(next_line(running, 2))["id"] == 3
    os.close(running.stdin)
    running.kill(signal.SIGINT)
    result = running.wait()
    assert (result.code, result.lines[-1]["id"], result.lines[-1]["finish_reason"]) == (130, "endless", "interrupted")


def test_results_keep_the_order_of_their_lines_unless_unordered(dslite: Dslite, babbler: Path) -> None:
    stdin = b"".join(b'{"prompt": "x", "max_tokens": %d}\n' % count for count in (60, 1, 30))
    args = ("complete", "-m", str(babbler), "--batch", "-")
    assert [line["id"] for line in dslite(*args, stdin=stdin).lines] == [1, 2, 3]
    unordered = dslite(*args, "--unordered", stdin=stdin).lines
    assert [line["id"] for line in unordered] == [2, 3, 1]
    assert [line["line"] for line in unordered] == [2, 3, 1]


@pytest.mark.parametrize("flags", [(), ("--unordered",)])
def test_an_endless_input_is_answered_until_the_reader_has_enough(
    dslite: Dslite, greeter: Path, flags: tuple[str, ...]
) -> None:
    running = dslite.start("complete", "-m", str(greeter), "--batch", "-", *flags)
    feeder = threading.Thread(target=running.send, args=(HELLO * 20_000,))
    feeder.start()
    next_line(running, 40)
    running.kill(signal.SIGTERM)
    result = running.wait()
    feeder.join()
    assert result.code == 143
    assert len(result.lines) < 2_000
    assert [line["text"] for line in result.lines[:40]] == ["hi"] * 40


def test_a_server_is_asked_several_lines_at_a_time_and_answers_as_they_come(dslite: Dslite) -> None:
    good = events(delta("fine"), delta(None, "stop"), "data: [DONE]\n\n")
    with ScriptedServer([good, good]) as server:
        running = dslite.start("complete", "--endpoint", server.url, "-m", "x", "--batch", "-")
        os.write(running.stdin, HELLO)
        assert json.loads(next_line(running, 1))["text"] == "fine"
        os.write(running.stdin, HELLO)
        assert json.loads(next_line(running, 2))["text"] == "fine"
        os.close(running.stdin)
        assert running.wait().code == 0


def test_a_signal_ends_a_batch_that_waits_for_a_line(dslite: Dslite, greeter: Path) -> None:
    running = dslite.start("complete", "-m", str(greeter), "--batch", "-")
    os.write(running.stdin, HELLO)
    next_line(running, 1)
    running.kill(signal.SIGINT)
    result = running.wait()
    os.close(running.stdin)
    assert (result.code, len(result.lines)) == (130, 1)


class ManyLines:
    """A LineReader whose lines are all there."""

    size = None

    def __init__(self, lines: list[bytes]) -> None:
        self._lines = lines
        self.taken = 0

    @property
    def ended(self) -> bool:
        return self.taken == len(self._lines)

    def take(self, wait_s: float) -> bytes | None:
        self.taken += not self.ended
        return self._lines[self.taken - 1]


class FirstNeverEnds:
    """A backend that answers all requests but the first, as they come."""

    name = key = "scripted"
    weights: str | None = None

    def request(self, prompt: str, overrides: Any = None) -> str:
        return prompt

    def run_batch(self, requests: RequestSource[Any], cancel: threading.Event) -> Iterator[tuple[int, DsliteError]]:
        for count in range(5000):
            if (taken := requests.take(wait=False)) is None:
                return
            if count:
                yield taken[0], DsliteError("not now")


@pytest.mark.parametrize(("ordered", "taken"), [(True, 257), (False, 5000)])
def test_no_more_is_read_than_may_wait_for_a_line_that_takes_long(
    capsys: pytest.CaptureFixture[str], ordered: bool, taken: int
) -> None:
    backend: Any = FirstNeverEnds()
    lines: Any = ManyLines([HELLO] * 6000)
    complete_batch(backend, lines, OutputOptions("text"), Interruption(), BatchOptions(ordered=ordered))
    assert lines.taken == taken
    assert len(capsys.readouterr().out.splitlines()) == taken


@pytest.mark.parametrize(("flags", "code"), [((), 0), (("--strict",), 1)])
def test_strict_makes_a_line_that_failed_an_exit_code(
    dslite: Dslite, greeter: Path, flags: tuple[str, ...], code: int
) -> None:
    args = ("complete", "-m", str(greeter), "--batch", "-", *flags)
    result = dslite(*args, stdin=HELLO + b"not json\n" + HELLO)
    assert result.code == code
    assert [line.get("text") for line in result.lines] == ["hi", None, "hi"]
    assert dslite(*args, stdin=HELLO).code == 0


@pytest.mark.parametrize("flag", [["--unordered"], ["--strict"], ["--resume", "x"]])
def test_flags_of_a_batch_need_one(dslite: Dslite, greeter: Path, flag: list[str]) -> None:
    result = dslite("complete", "-m", str(greeter), "hello", *flag)
    assert result.code == 2
    assert f"{flag[0]} needs --batch" in result.err.decode()


# ---- progress ----


def test_progress_shows_on_a_terminal_alone(dslite: Dslite, babbler: Path, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'{"prompt": "x", "max_tokens": 400}\n' * 6)
    args = ("complete", "-m", str(babbler), "--batch", str(file), "--output-file", "out.jsonl")
    assert dslite(*args).err == b""
    ours, theirs = os.openpty()
    running = dslite.start(*args, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 65536):
            shown += more
    except OSError:
        pass  # Linux: the other end is closed
    os.close(running.stdin)
    assert running.wait().code == 0
    assert b"lines done \xc2\xb7 " in shown
    assert b" running" in shown


def test_the_time_that_is_left_follows_the_bytes_of_the_lines() -> None:
    progress = BatchProgress(1000, shares_terminal=False)
    assert progress.left_s(3.0) is None
    progress.finished(500, computed=False)
    assert progress.left_s(3.0) is None
    progress.finished(100, computed=True)
    assert progress.left_s(3.0) == pytest.approx(12.0)
    assert progress.text(4, 3.0) == "2 lines done · 4 running · 12 s left"
    progress.finished(400, computed=True)
    assert progress.left_s(15.0) == 0.0
    assert BatchProgress(None, shares_terminal=False).text(0, 9.0) == "0 lines done · 0 running"


# ---- lines ----


def piped(data: bytes, step: int) -> list[bytes]:
    """The lines of bytes that come through a pipe, so many at a time."""
    ours, theirs = os.pipe()
    lines = LineReader(ours, "the batch")
    found = []
    for start in range(0, len(data), step):
        os.write(theirs, data[start : start + step])
        while (line := lines.take(0.0)) is not None:
            found.append(line)
    os.close(theirs)
    while not lines.ended:
        if (line := lines.take(60.0)) is not None:
            found.append(line)
    os.close(ours)
    assert lines.taken == len(found)
    return found


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_lines_are_the_same_however_their_bytes_come(step: int) -> None:
    data = b"\xef\xbb\xbf" + b'{"a": 1}\r\n\n  \n"\xe6\x96\x87"\nlast'
    assert piped(data, step) == [b'{"a": 1}', b'"\xe6\x96\x87"', b"last"]
    assert piped(b"x\n", step) == [b"x"]
    assert piped(b"", step) == []


def test_a_line_without_an_end_is_cut_where_no_prompt_could_be_so_long(tmp_path: Path) -> None:
    file = tmp_path / "long"
    with file.open("wb") as made:
        made.write(b"x" * 10)
        made.truncate(MOST_LINE_BYTES + (5 << 20))
        made.seek(0, os.SEEK_END)
        made.write(b"\nnext\n")
    lines = LineReader.open(str(file), "the batch")
    cut = lines.take(60.0)
    assert cut is not None
    assert len(cut) == MOST_LINE_BYTES + 1
    assert lines.take(60.0) == b"next"


def test_an_input_in_another_encoding_is_a_usage_error(tmp_path: Path) -> None:
    file = tmp_path / "utf16"
    file.write_text('{"prompt": "x"}\n', encoding="utf-16")
    with pytest.raises(UsageError, match="UTF-16"):
        LineReader.open(str(file), "the batch file").take(60.0)
    with pytest.raises(UsageError, match=r"the batch file .*absent cannot be read: No such file"):
        LineReader.open(str(tmp_path / "absent"), "the batch file")
    with pytest.raises(UsageError, match="Is a directory"):
        LineReader.open(str(tmp_path), "the batch file")
