"""Standard streams as shells make them: closed, write-only, full, waiting, in another encoding."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.cli_process import Dslite
from support.terminal import Terminal

ENTRY = str(Path(sys.executable).with_name("dslite"))
NOHUP = {0: (os.devnull, os.O_WRONLY)}
FULL = ("/dev/full", os.O_WRONLY)


def ask(dslite: Dslite, folder: Path, *args: str, **shell: Any) -> Any:
    return dslite("complete", "-m", str(folder), *args, **shell)


@pytest.mark.parametrize("shell", [{"redirected": NOHUP}, {"closed": [0]}])
def test_an_unreadable_stdin_is_empty_where_a_prompt_is_given(
    dslite: Dslite, greeter: Path, shell: dict[str, Any]
) -> None:
    result = ask(dslite, greeter, "hello", **shell)
    assert (result.code, result.out, result.err) == (0, b"hi\n", b"")


@pytest.mark.parametrize(
    ("shell", "fault"),
    [
        ({"redirected": NOHUP}, "stdin cannot be read: Bad file descriptor"),
        ({"closed": [0]}, "stdin cannot be read: it is closed"),
    ],
)
@pytest.mark.parametrize("args", [[], ["-"], ["--batch", "-"]])
def test_an_unreadable_stdin_that_is_needed_is_named(
    dslite: Dslite, greeter: Path, args: list[str], shell: dict[str, Any], fault: str
) -> None:
    result = ask(dslite, greeter, *args, **shell)
    assert (result.code, result.out) == (2, b"")
    assert fault in result.err.decode()


@pytest.mark.parametrize("args", [["hello"], ["hello", "--json"], ["hello", "--stats"]])
@pytest.mark.parametrize("closed", [[1], [2], [1, 2], [0, 1], [0, 1, 2]])
def test_a_closed_output_is_quiet(dslite: Dslite, greeter: Path, closed: list[int], args: list[str]) -> None:
    result = ask(dslite, greeter, *args, closed=closed)
    assert result.code == 0
    assert b"Error" not in result.out + result.err
    if 1 not in closed:
        assert b"hi" in result.out


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["model", "list"], ["profile", "list"], ["plan"]])
def test_any_command_with_a_closed_stdout_is_quiet(dslite: Dslite, args: list[str]) -> None:
    result = dslite(*args, closed=[0, 1])
    assert (result.code, result.err) == (0, b"")


def test_no_file_of_the_command_gets_the_number_of_a_closed_stream(dslite: Dslite, greeter: Path) -> None:
    result = ask(dslite, greeter, "hello", "--output-file", "answer.txt", closed=[0, 1, 2])
    assert result.code == 0
    assert (dslite.folder / "answer.txt").read_text() == "hi\n"


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_shell_s_closed_streams_give_no_traceback(dslite: Dslite, redirection: str) -> None:
    done = subprocess.run(
        f"'{ENTRY}' --version {redirection}", shell=True, capture_output=True, env=dslite.env, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("args", [["hello"], ["hello", "--json"], ["hello", "-o", "jsonl"], ["hello", "--no-stream"]])
def test_a_full_stdout_is_an_error_that_names_it(dslite: Dslite, greeter: Path, args: list[str]) -> None:
    result = ask(dslite, greeter, *args, redirected={1: FULL})
    assert result.code == 1
    assert "stdout cannot be written" in result.err.decode()
    assert "No space left on device" in result.err.decode()


@pytest.mark.parametrize("args", [["--help"], ["complete", "-h"], ["--version"], ["model", "list"]])
def test_a_full_stdout_is_an_error_of_every_command(dslite: Dslite, args: list[str]) -> None:
    result = dslite(*args, redirected={1: FULL})
    assert result.code == 1
    assert "stdout cannot be written" in result.err.decode()


@pytest.mark.parametrize(("args", "code"), [(["x", "-t", "9"], 2), (["x" * 99, "--ctx-size", "32"], 4), (["x"], 0)])
def test_a_full_stderr_changes_no_exit_code(dslite: Dslite, greeter: Path, args: list[str], code: int) -> None:
    assert ask(dslite, greeter, *args, "--stats", redirected={2: FULL}).code == code


BOM = b"\xef\xbb\xbf"
ECHO = ("--raw", "--no-bos", "--echo", "-n", "0", "--json")


def test_a_byte_order_mark_is_dropped_once_wherever_text_comes_from(dslite: Dslite, greeter: Path) -> None:
    folder = dslite.folder
    (folder / "a.txt").write_bytes(BOM + b"text")
    assert ask(dslite, greeter, *ECHO, stdin=BOM + b"piped").json["text"] == "piped"
    assert ask(dslite, greeter, *ECHO, stdin=BOM + BOM + b"piped").json["text"] == "\ufeffpiped"
    assert ask(dslite, greeter, *ECHO, "-f", "a.txt", "x").json["text"] == "a.txt:\ntext\n\nx"
    assert ask(dslite, greeter, "--system-file", "a.txt", "hello", "--no-save").text == "hi\n"
    plain = ask(dslite, greeter, "-s", "text", "hello", "--no-save", "--json").json["prompt_tokens"]
    marked = ask(dslite, greeter, "--system-file", "a.txt", "hello", "--no-save", "--json").json["prompt_tokens"]
    assert marked == plain
    assert ask(dslite, greeter, "--batch", "-", stdin=BOM + b'{"prompt": "hello"}').json["text"] == "hi"
    (folder / "config").mkdir()
    (folder / "config" / "config.toml").write_bytes(BOM + b"[profiles.p]\nsystem = 'x'\n")
    assert dslite("profile", "show", "p").code == 0
    talk = [{"title": "t", "messages": [{"role": "user", "content": "q"}]}]
    assert dslite("session", "import", "-", stdin=BOM + json.dumps(talk).encode()).code == 0


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_named_wherever_text_comes_from(dslite: Dslite, greeter: Path, encoding: str) -> None:
    folder = dslite.folder
    data = '{"prompt": "A text of some length → here"}'.encode(encoding)
    (folder / "a.txt").write_bytes(data)
    for args in ([], ["--batch", "-"], ["--batch", "a.txt"], ["-f", "a.txt", "x"], ["--system-file", "a.txt", "x"]):
        result = ask(dslite, greeter, *args, stdin=data)
        assert (result.code, result.out) == (2, b""), args
        assert encoding[:6].upper() in result.err.decode(), args


def test_text_with_nul_characters_is_no_utf16(dslite: Dslite, greeter: Path) -> None:
    for text in ("a\0b", "\0\0\0\0", "ab\0\0cd", "x" * 99 + "\0"):
        assert ask(dslite, greeter, *ECHO, stdin=text.encode()).json["text"] == text


def test_no_stdin_leaves_the_rest_of_a_list_to_the_loop(dslite: Dslite, greeter: Path) -> None:
    result = ask(dslite, greeter, *ECHO, "--no-stdin", "hello", stdin=b"the other lines\n")
    assert result.json["text"] == "hello"
    assert ask(dslite, greeter, "--no-stdin", "-", stdin=b"x").code == 2
    assert ask(dslite, greeter, "--no-stdin", stdin=b"x").code == 2


def test_a_wait_for_stdin_beside_a_prompt_is_announced(dslite: Dslite, greeter: Path) -> None:
    running = dslite.start("complete", "-m", str(greeter), "hello", *ECHO)
    while b"waiting for stdin (</dev/null if there is none)" not in running.err:
        os.sched_yield()
    running.send(b"late")
    result = running.wait()
    assert (result.code, result.json["text"]) == (0, "late\n\nhello")


def test_redirected_output_is_utf8_whatever_the_locale_says(dslite: Dslite, greeter: Path) -> None:
    args = ["--raw", "--no-bos", "--echo", "-n", "0", "-p", "→ 文 é"]
    result = ask(dslite, greeter, *args, encoding="cp1252")
    assert (result.code, result.text) == (0, "→ 文 é\n")
    failed = dslite("complete", "-m", "→文", "x", encoding="ascii")
    assert "→文" in failed.err.decode("utf-8")


HOSTILE = "E\rF \u202egnp\u2066 \x1b[31m \x9b2J \x07 \x7f \r\nend"
SHOWN = "E␍F \ufffdgnp\ufffd ␛[31m \ufffd2J ␇ ␡ \nend"


def test_an_answer_cannot_act_on_a_terminal(greeter: Path, tmp_path: Path) -> None:
    (tmp_path / "hostile").write_bytes(HOSTILE.encode())
    script = f"'{ENTRY}' complete -m '{greeter}' --raw --no-bos --echo -n 0 --no-save < '{tmp_path / 'hostile'}'"
    with Terminal(["/bin/sh", "-c", script], environment={"DSLITE_DATA_DIR": str(tmp_path)}) as terminal:
        assert terminal.end() == 0
        written = bytes(terminal.raw).decode().replace("\r\n", "\n")
    assert SHOWN in written
    assert not set("\x1b\x9b\x07\u202e\u2066") & set(written)


def test_a_pipe_gets_carriage_returns_and_bidi_controls_as_they_are(dslite: Dslite, greeter: Path) -> None:
    result = ask(dslite, greeter, "--raw", "--no-bos", "--echo", "-n", "0", stdin="E\rF \u202ex\r\n".encode())
    assert result.out.decode() == "E\rF \u202ex\r\n"


def test_a_terminal_that_lacks_a_character_shows_another_and_does_not_fail(greeter: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("→ é", encoding="utf-8")
    script = f"'{ENTRY}' complete -m '{greeter}' --raw --no-bos --echo -n 0 --no-save < '{tmp_path / 'prompt'}'"
    environment = {"DSLITE_DATA_DIR": str(tmp_path), "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    with Terminal(["/bin/sh", "-c", script], environment=environment) as terminal:
        assert terminal.end() == 0
        assert b"? \xe9" in terminal.raw


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\rb", "\x9b2Jc"])
def test_no_message_carries_a_control_character(dslite: Dslite, name: str) -> None:
    folder = dslite.folder / name
    folder.mkdir()
    for args in (["complete", "-m", name, "x"], ["plan", "-m", str(folder)], ["model", "info", str(folder)],
                 ["serve", "-m", str(folder)], ["bench", "-m", name], ["--" + name]):  # fmt: skip
        result = dslite(*args)
        assert result.code != 0
        assert not set("\x1b\x9b") & set(result.err.decode() + result.out.decode()), args


def test_an_empty_answer_is_reported(dslite: Dslite, greeter: Path) -> None:
    for args in (["hello", "--stop", "h"], ["hello", "-n", "0"], ["hello", "--stop", "h", "--no-stream"]):
        result = ask(dslite, greeter, *args)
        assert (result.code, result.out) == (0, b"")
        assert "the answer is empty" in result.err.decode()
    empty = ask(dslite, greeter, "--batch", "-", stdin=b"\n \n")
    assert (empty.code, empty.out) == (0, b"")
    assert "no lines" in empty.err.decode()
