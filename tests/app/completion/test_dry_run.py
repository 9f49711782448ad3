"""--dry-run: the counts are those of the answer, the tokenizer is all that is loaded, and what does not fit exits 4."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli_process import Dslite

from dslite.runtime.downloads.hub import locate, parse_model

SCHEMA = '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}'
DRY = ("complete", "-m", "demo", "--dry-run", "-o", "json")
CASES = [
    ["Hello, what is a profile?"],
    ["-s", "Be brief. <｜begin▁of▁sentence｜>", "你好，世界"],
    ["--raw", "Once upon a time"],
    ["--raw", "--no-bos", "--parse-special", "a<｜end▁of▁sentence｜>b"],
    ["--json-schema", SCHEMA, "one object"],
    ["--json-schema", SCHEMA, "--no-schema-prompt", "-s", "Be brief.", "one object"],
    ["-f", "notes.txt", "-f", "笔记.md", "-s", "Read.", "What do they say?"],
]


@pytest.mark.parametrize("args", CASES, ids=" ".join)
def test_the_prompts_tokens_are_those_that_the_answer_reports(dslite: Dslite, args: list[str]) -> None:
    (dslite.folder / "notes.txt").write_text("some notes\n" * 20)
    (dslite.folder / "笔记.md").write_text("一些笔记\n" * 5)
    dry = dslite(*DRY, *args)
    assert dry.code == 0, dry.err
    answer = dslite("complete", "-m", "demo", "-o", "json", "-n", "1", "--no-save", *args)
    assert dry.json["prompt_tokens"] == answer.json["prompt_tokens"]
    assert dry.json["context"] == 4096
    assert dry.json["room"] == 4096 - answer.json["prompt_tokens"]  # type: ignore[operator]
    assert set(dry.json) == {"system_tokens", "files", "prompt_tokens", "context", "room"}


def test_a_profile_and_stdin_count_as_in_the_answer(dslite: Dslite) -> None:
    assert dslite("profile", "add", "brief", "--system", "Answer in one short sentence.").code == 0
    args = ["--profile", "brief", "-p", "What do they say?"]
    dry = dslite(*DRY, *args, stdin=b"piped notes\n" * 20)
    answer = dslite("complete", "-m", "demo", "-o", "json", "-n", "1", "--no-save", *args, stdin=b"piped notes\n" * 20)
    assert dry.json["prompt_tokens"] == answer.json["prompt_tokens"]
    assert dry.json["system_tokens"] == 6
    assert dslite(*DRY, *args).json["prompt_tokens"] < dry.json["prompt_tokens"]  # type: ignore[operator]


def test_each_file_and_the_system_message_are_counted(dslite: Dslite) -> None:
    (dslite.folder / "one.txt").write_text("word " * 100)
    (dslite.folder / "two.txt").write_text("word " * 200)
    found = dslite(
        *DRY,
        "-s",
        "Be brief.",
        "-f",
        "one.txt",
        "-f",
        "two.txt",
        stdin=b"piped",
    ).json
    one, two = found["files"]  # type: ignore[misc]
    assert (one["name"], two["name"]) == ("one.txt", "two.txt")
    assert 100 <= one["tokens"] < two["tokens"] < found["prompt_tokens"]
    assert 0 < found["system_tokens"] < 10  # type: ignore[operator]
    assert dslite(*DRY, "hi").json["system_tokens"] == 0


def test_a_prompt_that_does_not_fit_is_counted_and_exits_4(dslite: Dslite) -> None:
    (dslite.folder / "long.txt").write_text("word " * 5000)
    found = dslite(*DRY, "-f", "long.txt", "why?")
    assert found.code == 4
    assert found.json["prompt_tokens"] > 5000  # type: ignore[operator]
    assert found.json["room"] == 0
    small = dslite(*DRY, "--ctx-size", "8", "more words than there is room for in it")
    assert (small.code, small.json["context"]) == (4, 8)
    assert dslite(*DRY, "--ctx-size", "5000", "x").code == 2


def test_a_continued_conversation_is_counted_whole_and_nothing_is_saved(dslite: Dslite) -> None:
    first = dslite("complete", "-m", "demo", "-o", "json", "-t", "0", "-n", "8", "How do I save a profile?").json
    dry = dslite("complete", "--dry-run", "-o", "json", "-c", "And then?").json
    assert dslite("session", "list", "-o", "json").text.count('"id"') == 1
    again = dslite("complete", "-o", "json", "-n", "1", "-c", "And then?").json
    assert dry["prompt_tokens"] == again["prompt_tokens"]
    assert again["session"] == first["session"]


def test_the_table_names_everything(dslite: Dslite) -> None:
    (dslite.folder / "notes.txt").write_text("some notes")
    lines = dslite("complete", "-m", "demo", "--dry-run", "-s", "Be brief.", "-f", "notes.txt", "hi").text.splitlines()
    names = [line.rsplit(None, 1)[0].strip() for line in lines[1:]]
    assert names == ["system message", "notes.txt", "prompt", "context", "room for the answer"]


@pytest.mark.parametrize("flags", [["--endpoint", "http://127.0.0.1:1", "hi"], ["--batch", "x"]])
def test_it_goes_with_neither_a_server_nor_a_batch(dslite: Dslite, flags: list[str]) -> None:
    result = dslite(*DRY, *flags)
    assert result.code == 2
    assert b"--dry-run" in result.err


def test_a_model_that_is_not_here_exits_3(dslite: Dslite) -> None:
    assert dslite("complete", "-m", "chat", "--dry-run", "hi").code == 3


def test_neither_torch_nor_weights_are_needed(tmp_path: Path, dslite: Dslite) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(locate(parse_model("demo")) / name, folder)
    script = (
        "import sys; from dslite.app import cli\n"
        "try: cli.main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "complete", "-m", str(folder), "--dry-run", "-o", "json", "hello"],
        capture_output=True,
        text=True,
        env=dslite.env,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "False")
    assert '"prompt_tokens"' in done.stdout
