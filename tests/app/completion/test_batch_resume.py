"""An interrupted batch is resumed: what is answered is not run again, and no answer is lost."""

import json
import os
import signal
from pathlib import Path

import pytest
from support.cli_process import Dslite

from dslite.app.completion.batch_resume import resuming
from dslite.runtime.locked_file import file_lock


def line_of(prompt: str, **keys: object) -> bytes:
    return json.dumps({"prompt": prompt, "max_tokens": 5, **keys}).encode() + b"\n"


LINES = [line_of("hello", id=name) for name in "abcd"]


class Resumed:
    """Runs of one batch whose output and resumed file is out.jsonl."""

    def __init__(self, dslite: Dslite, model: Path) -> None:
        self.out = dslite.folder / "out.jsonl"
        self._dslite = dslite
        self.args = ["complete", "-m", str(model), "--batch", "-", "--resume", "out.jsonl"]

    def run(self, lines: list[bytes], *args: str, code: int = 0) -> str:
        result = self._dslite(*self.args, "--output-file", "out.jsonl", *args, stdin=b"".join(lines))
        assert result.code == code, result.err
        return result.err.decode()

    @property
    def shown(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]


@pytest.fixture
def resumed(dslite: Dslite, greeter: Path) -> Resumed:
    return Resumed(dslite, greeter)


def test_answered_lines_stay_as_they_are_and_the_rest_is_appended(resumed: Resumed) -> None:
    resumed.run(LINES[:2])
    first = resumed.out.read_bytes()
    resumed.run(LINES)
    assert resumed.out.read_bytes().startswith(first)
    assert [(line["id"], line["line"]) for line in resumed.shown] == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    whole = resumed.out.read_bytes()
    resumed.run(LINES)
    assert resumed.out.read_bytes() == whole


def test_errors_interrupted_answers_and_a_cut_last_line_are_answered_again(resumed: Resumed) -> None:
    resumed.run([*LINES[:3], b"not json\n"])
    good, stopped, cut, wrong = resumed.out.read_text().splitlines(keepends=True)
    assert "error" in json.loads(wrong)
    stopped = json.dumps({**json.loads(stopped), "finish_reason": "interrupted", "text": "half"}) + "\n"
    resumed.out.write_text(good + stopped + wrong + cut[:-20])
    resumed.run(LINES)
    assert resumed.out.read_text().startswith(good)
    assert [(line["id"], line["text"]) for line in resumed.shown] == [(name, "hi") for name in "abcd"]


def test_a_line_that_has_changed_or_moved_is_run_again(resumed: Resumed) -> None:
    resumed.run(LINES[:2])
    first = resumed.out.read_text().splitlines()
    resumed.run([LINES[0], line_of("other", id="b")])
    assert [line["id"] for line in resumed.shown] == ["a", "b", "b"]
    assert resumed.shown[1]["input"] != resumed.shown[2]["input"]
    resumed.run([LINES[1], LINES[0]])  # each under the other's number
    assert resumed.out.read_text().splitlines()[0] == first[0]
    assert [(line["id"], line["line"]) for line in resumed.shown][-2:] == [("b", 1), ("a", 2)]


def test_another_output_has_copies_of_the_answers_in_the_order_of_the_lines(
    dslite: Dslite, greeter: Path, resumed: Resumed
) -> None:
    resumed.run([LINES[0], b"not json\n", LINES[2]])
    before = resumed.out.read_text()
    result = dslite(*resumed.args, stdin=b"".join(LINES))
    assert result.code == 0
    assert resumed.out.read_text() == before
    assert [line["id"] for line in result.lines] == ["a", "b", "c", "d"]
    old = before.splitlines()
    shown = result.text.splitlines()
    assert (shown[0], shown[2]) == (old[0], old[2])


def test_a_batch_that_is_killed_goes_on_where_it_was(dslite: Dslite, babbler: Path) -> None:
    resumed = Resumed(dslite, babbler)
    short, long = b'{"prompt": "x", "max_tokens": 2}\n', b'{"prompt": "x"}\n'
    running = dslite.start(*resumed.args, "--output-file", "out.jsonl", "--unordered")
    running.send(short + long * 4 + short)
    while not resumed.out.exists() or resumed.out.read_bytes().count(b"\n") < 2:
        os.sched_yield()
    running.kill(signal.SIGKILL)
    running.wait()
    kept = resumed.out.read_bytes()
    whole = kept[: kept.rindex(b"\n") + 1]
    resumed.run([short, b'{"prompt": "x", "max_tokens": 3}\n', short])
    assert resumed.out.read_bytes().startswith(b"".join(whole.splitlines(keepends=True)[:2]))
    lines = [line["line"] for line in resumed.shown]
    assert {1, 2, 3, 6} <= set(lines)
    assert lines.count(1) == lines.count(6) == 1


def test_a_signal_keeps_what_is_finished_and_the_rest_is_resumed(dslite: Dslite, babbler: Path) -> None:
    resumed = Resumed(dslite, babbler)
    short, long = b'{"prompt": "x", "max_tokens": 2}\n', b'{"prompt": "x", "max_tokens": 1500}\n'
    running = dslite.start(*resumed.args, "--output-file", "out.jsonl")
    os.write(running.stdin, short)
    os.write(running.stdin, long)
    while not resumed.out.exists() or resumed.out.read_bytes().count(b"\n") < 1:
        os.sched_yield()
    running.kill(signal.SIGINT)
    assert running.wait().code == 130
    os.close(running.stdin)
    first = resumed.out.read_text().splitlines()[0]
    resumed.run([short, long, short])
    assert resumed.out.read_text().splitlines()[0] == first
    assert [(line["line"], line["finish_reason"]) for line in resumed.shown] == [
        (1, "length"),
        (2, "length"),
        (3, "length"),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('{"prompt": "hello", "id": "x"}\n', "its line 1 is no result of --batch"),
        ('{"id": 1, "error": "x"}\n[1]\n', "its line 2 is no result of --batch"),
        ("words\n", "its line 1 is no result of --batch"),
        ('{"id": 1, "text": "of an older version", "finish_reason": "stop"}\n', "its line 1 is no result of --batch"),
    ],
)
def test_a_file_that_no_batch_has_written_is_refused_and_left_alone(resumed: Resumed, text: str, fault: str) -> None:
    resumed.out.write_text(text)
    assert fault in resumed.run(LINES, code=2)
    assert resumed.out.read_text() == text


def test_what_cannot_be_resumed_is_said_before_the_model_is_loaded(dslite: Dslite, greeter: Path) -> None:
    args = ["complete", "-m", str(greeter), "--batch", "-", "--resume"]
    result = dslite(*args, "absent.jsonl", stdin=LINES[0])
    assert result.code == 2
    assert "absent.jsonl cannot be read: No such file" in result.err.decode()
    (dslite.folder / "out.jsonl").write_text("")
    result = dslite(*args, "out.jsonl", redirected={1: ("out.jsonl", os.O_WRONLY | os.O_APPEND)}, stdin=LINES[0])
    assert result.code == 2
    assert "name it with --output-file instead" in result.err.decode()


def test_two_processes_do_not_append_to_one_file(
    dslite: Dslite, resumed: Resumed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DSLITE_CACHE_DIR", "DSLITE_DATA_DIR", "DSLITE_CONFIG_DIR"):
        if name in dslite.env:
            monkeypatch.setenv(name, dslite.env[name])
    with file_lock(resumed.out.resolve()):
        assert "another dslite is writing to" in resumed.run(LINES, code=1)
    resumed.run(LINES)
    assert len(resumed.shown) == 4


def test_answers_of_another_model_are_named(dslite: Dslite, greeter: Path, babbler: Path) -> None:
    Resumed(dslite, babbler).run(LINES[:2])
    err = Resumed(dslite, greeter).run(LINES)
    assert "answers that were there already are of" in err
    assert str(babbler.name) in err


def test_a_file_that_is_resumed_into_another_one_is_not_changed(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"id": 1, "error": "x"}\n')
    with resuming(out, tmp_path / "other.jsonl") as earlier:
        assert earlier is not None
        assert not earlier.is_output
    assert out.read_text() == '{"id": 1, "error": "x"}\n'
    with resuming(out, out) as earlier:
        assert earlier is not None
    assert out.read_text() == ""
