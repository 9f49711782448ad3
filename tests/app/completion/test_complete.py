"""`dslite complete` from outside: prompts, outputs, errors. The answers are known: see conftest.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.cli_process import Dslite

from dslite.runtime.text.tokenizer import Tokenizer


def ask(dslite: Dslite, folder: Path, *args: str, **more: Any) -> Any:
    return dslite("complete", "-m", str(folder), *args, **more)


def asked(dslite: Dslite, folder: Path, *args: str, stdin: bytes = b"") -> str:
    """What the model was given to read, as raw text."""
    result = ask(dslite, folder, "--raw", "--no-bos", "--echo", "-n", "0", "--json", *args, stdin=stdin)
    assert result.code == 0, result.err
    text = result.json["text"]
    assert isinstance(text, str)
    return text


def test_an_answer_is_all_that_stdout_gets(dslite: Dslite, greeter: Path) -> None:
    result = ask(dslite, greeter, "Say", "hello", "--stats", "-v")
    assert (result.code, result.out) == (0, b"hi\n")
    assert result.err.decode().count("\n") == 1
    assert "prompt tokens" in result.err.decode()


def test_words_option_stdin_and_files_make_one_prompt(dslite: Dslite, greeter: Path) -> None:
    (dslite.folder / "a.txt").write_text("file a\n")
    (dslite.folder / "b.txt").write_text("文件\n\n")
    assert asked(dslite, greeter, "two", "words") == "two words"
    assert asked(dslite, greeter, "-p", " an option") == " an option"
    assert asked(dslite, greeter, stdin=b"piped\n") == "piped\n"
    assert asked(dslite, greeter, "-", stdin=b"piped\n") == "piped\n"
    assert asked(dslite, greeter, "prompt", stdin="输入 \n\n".encode()) == "输入 \n\nprompt"
    files = asked(dslite, greeter, "-f", "a.txt", "-f", "b.txt", "prompt", stdin=b"piped\n")
    assert files == "a.txt:\nfile a\n\nb.txt:\n文件\n\npiped\n\nprompt"


def test_text_of_any_kind_reaches_the_model_unchanged(dslite: Dslite, greeter: Path) -> None:
    for text in ("a\0b\x1b[31m\r\n\ttail", "😀 e\u0301 \u202e", "<｜end▁of▁sentence｜>", "x" * 1_000_000):
        args = ["--ctx-size", "163840"]
        result = ask(dslite, greeter, "--raw", "--no-bos", "--echo", "-n", "0", "--json", *args, stdin=text.encode())
        if len(text) > 163_840:
            assert result.code == 4
            assert b"1,000,000 tokens" in result.err
        else:
            assert result.json["text"] == text


def test_raw_text_follows_the_begin_token_unless_told_otherwise(dslite: Dslite, greeter: Path) -> None:
    with_bos = ask(dslite, greeter, "--raw", "ax", "-n", "3", "--json").json
    without = ask(dslite, greeter, "--raw", "ax", "-n", "3", "--json", "--no-bos").json
    assert (with_bos["prompt_tokens"], without["prompt_tokens"]) == (3, 2)
    assert with_bos["text"] == without["text"] == "yzx"
    assert ask(dslite, greeter, "--raw", "-p", "", "-n", "2").text == "aa\n"


@pytest.mark.parametrize(
    ("args", "stdin", "fault"),
    [
        ([], b"", "the prompt is empty"),
        (["  "], b"", "the prompt is empty"),
        (["-"], b"\n", "the prompt is empty"),
        (["--raw", "--no-bos", "-p", ""], b"", "the prompt is empty"),
        (["word", "-p", "text"], b"", "given twice"),
        ([], b"caf\xe9", "not valid UTF-8: byte 0xe9 at 3"),
        (["-f", "absent.txt", "x"], b"", "absent.txt cannot be read: No such file"),
        (["-f", "broken.txt", "x"], b"", "broken.txt is not valid UTF-8 at byte 1"),
        (["-f", ".", "x"], b"", "cannot be read: Is a directory"),
        (["x", "-t", "2.5"], b"", "temperature is 2.5; it must be from 0 to 2"),
        (["x", "-t", "nan"], b"", "temperature is nan"),
        (["x", "--top-p", "0"], b"", "top_p is 0.0; it must be above 0, up to 1"),
        (["x", "--top-k", "-1"], b"", "top_k is -1"),
        (["x", "--min-p", "1.1"], b"", "min_p is 1.1"),
        (["x", "--repetition-penalty", "0"], b"", "repetition_penalty is 0.0"),
        (["x", "--seed", "-1"], b"", "seed is -1"),
        (["x", "-n", "-1"], b"", "max_tokens is -1"),
        (["x", "--logprobs", "21"], b"", "--logprobs is 21; it must be from 0 to 20"),
        (["x", "--ctx-size", "0"], b"", "--ctx-size is 0; it must be from 1 to 163840"),
        (["x", "--ctx-size", "163841"], b"", "it must be from 1 to 163840"),
        (["x", "--threads", "0"], b"", "--threads is 0"),
        (["x", "--dtype", "float16"], b"", "float16 overflows in this model"),
        (["x", "--dtype", "int4"], b"", "--dtype is 'int4'"),
        (["x", "--device", "tpu"], b"", "--device is 'tpu'"),
        (["x", "-o", "yaml"], b"", "--output is 'yaml'; it must be text, json or jsonl"),
        (["x", "--nonsense"], b"", "No such option"),
        (["x", "-t", "warm"], b"", "is not a valid float"),
        (["x", "-s", "a", "--system-file", "broken.txt"], b"", "given twice"),
        (["x", "-c", "--session", "01"], b"", "--session does not go with --continue"),
        (["x", "--raw", "-c"], b"", "--raw does not go with --continue"),
        (["x", "--raw", "-s", "y"], b"", "--raw does not go with --system"),
        (["x", "--batch", "-"], b"", "--batch does not go with a prompt"),
        (["x", "--output-file", "absent/answer.txt"], b"", "answer.txt cannot be written: No such file"),
        (["x", "--output-file", "."], b"", ". is a folder"),
        (["x", "--output-file", "loop"], b"", "cannot be written: Too many levels of symbolic links"),
        (["x", "--output-file", "n" * 300], b"", "cannot be written: File name too long"),
        (["x", "--output-file", "broken.txt/x"], b"", "cannot be written: Not a directory"),
        (["x", "--output-file", "/dev/fd/77"], b"", "cannot be written: Bad file descriptor"),
        (["--batch", "-", "--no-stdin"], b"{}", "--batch - reads stdin, and --no-stdin forbids it"),
    ],
)
def test_a_wrong_request_is_a_usage_error_that_says_what_is_wrong(
    dslite: Dslite, greeter: Path, args: list[str], stdin: bytes, fault: str
) -> None:
    (dslite.folder / "broken.txt").write_bytes(b"x\xff")
    (dslite.folder / "loop").symlink_to("loop")
    result = ask(dslite, greeter, *args, stdin=stdin)
    assert (result.code, result.out) == (2, b"")
    assert fault in result.err.decode()


def test_an_argument_that_is_not_valid_utf8_is_a_usage_error(dslite: Dslite, greeter: Path) -> None:
    result = ask(dslite, greeter, "caf\udce9")
    assert (result.code, result.out) == (2, b"")
    assert "lone surrogate (U+DCE9) at character 9" in result.err.decode()


def test_what_is_not_available_exits_with_3(dslite: Dslite, greeter: Path) -> None:
    for args, fault in (
        (["-m", "absent/folder/here"], "there is no folder"),
        (["-m", "chat"], "is not on this machine"),
        (["-m", str(greeter), "--device", "mps"], "mps is not available"),
    ):
        result = dslite("complete", *args, "x", "--offline")
        assert (result.code, result.out) == (3, b""), args
        assert fault in result.err.decode()
        assert result.err.decode().count("\n") == 2  # the fact and the remedy


def test_a_full_context_exits_with_4(dslite: Dslite, greeter: Path, babbler: Path) -> None:
    too_long = ask(dslite, greeter, "x" * 40, "--ctx-size", "32")
    assert (too_long.code, too_long.out) == (4, b"")
    assert "the context holds 32" in too_long.err.decode()
    assert dslite("session", "list").out == b""  # nothing was asked
    filled = ask(dslite, babbler, "x", "--ctx-size", "32", "--json")
    assert filled.code == 4
    assert filled.json["finish_reason"] == "context"
    assert filled.json["prompt_tokens"] + filled.json["completion_tokens"] == 32
    assert "the answer is cut" in filled.err.decode()


def test_damaged_weights_exit_with_1_and_print_no_garbage(dslite: Dslite, damaged: Path) -> None:
    result = ask(dslite, damaged, "x")
    assert (result.code, result.out) == (1, b"")
    assert "not finite" in result.err.decode()


def test_the_json_object_has_the_contracts_keys(dslite: Dslite, greeter: Path) -> None:
    result = ask(dslite, greeter, "hello", "--json")
    shown = result.json
    counts = ["prompt_tokens", "cached_tokens", "completion_tokens"]
    described = ["session", "timing", "memory", "experts", "tokens"]
    assert list(shown) == ["model", "weights", "text", "finish_reason", *counts, *described]
    assert list(shown["timing"]) == "load_s prefill_s decode_s ttft_s prefill_tps decode_tps".split()
    assert list(shown["memory"]) == "weights_bytes kv_bytes kv_bytes_per_token peak_rss_bytes peak_vram_bytes".split()
    assert list(shown["experts"])[:4] == "slots hits misses bytes_moved".split()
    assert (shown["text"], shown["finish_reason"], shown["completion_tokens"]) == ("hi", "stop", 3)
    assert shown["tokens"] == [{"id": 32, "text": " "}, {"id": ord("h"), "text": "h"}, {"id": ord("i"), "text": "i"}]
    assert result.out.count(b"\n") == 1


def test_jsonl_streams_the_tokens_and_ends_with_the_object(dslite: Dslite, greeter: Path) -> None:
    *tokens, last = ask(dslite, greeter, "hello", "-o", "jsonl").lines
    assert tokens == last["tokens"]
    assert [token["text"] for token in tokens] == [" ", "h", "i"]
    assert last["text"] == "hi"


def test_a_character_of_several_tokens_is_the_text_of_its_last(dslite: Dslite, greeter: Path) -> None:
    shown = ask(dslite, greeter, "--raw", "--no-bos", "-p", "你好x", "-n", "1", "--echo", "--json").json
    assert [token["text"] for token in shown["tokens"]] == ["你", "", "", "好", "x", "y"]
    assert shown["text"] == "你好xy"


def test_logprobs_give_each_token_its_own_and_the_best(dslite: Dslite, greeter: Path) -> None:
    raw = ["--raw", "--no-bos", "-p", "xa", "-n", "2", "--json", "--dtype", "float32"]
    plain, own, two = (
        ask(dslite, greeter, *raw, *more).json for more in ([], ["--logprobs", "0"], ["--logprobs", "2"])
    )
    assert [set(token) for token in plain["tokens"]] == [{"id", "text"}] * 2
    assert [(set(token), token["top"]) for token in own["tokens"]] == [({"id", "text", "logprob", "top"}, [])] * 2
    for token in two["tokens"]:
        assert len(token["top"]) == 2
        assert token["top"][0] == {key: token[key] for key in ("id", "text", "logprob")}
        assert token["top"][0]["logprob"] > token["top"][1]["logprob"]
        # The matrix holds one 2, times the norm's root of the 288 dimensions; the other 287 logits are 0.
        assert token["logprob"] == pytest.approx(0.0, abs=1e-6)


def test_echo_scores_the_prompt_and_n_0_generates_nothing(dslite: Dslite, greeter: Path) -> None:
    shown = ask(
        dslite, greeter, "--raw", "--no-bos", "-p", "xyb", "-n", "0", "--echo", "--logprobs", "1", "--json"
    ).json
    assert (shown["text"], shown["finish_reason"], shown["completion_tokens"]) == ("xyb", "length", 0)
    first, expected, surprising = shown["tokens"]
    assert (first["logprob"], first["top"]) == (None, [])
    assert expected["logprob"] == pytest.approx(0.0, abs=1e-6)
    assert surprising["logprob"] == pytest.approx(-2 * 288**0.5, rel=0.01)
    assert surprising["top"][0]["text"] == "z"
    tokenizer = Tokenizer.from_folder(greeter)
    assert [token["id"] for token in shown["tokens"]] == tokenizer.encode("xyb")


def test_stop_texts_end_an_answer_and_are_not_part_of_it(dslite: Dslite, greeter: Path) -> None:
    shown = ask(dslite, greeter, "--raw", "x", "--stop", "absent", "--stop", "xyz", "-n", "9", "--json").json
    assert (shown["text"], shown["finish_reason"]) == ("yz", "stop")
    length = ask(dslite, greeter, "--raw", "x", "--stop", "zxyzx!", "-n", "6", "--json").json
    assert (length["text"], length["finish_reason"]) == ("yzxyzx", "length")


def test_only_the_first_code_block_is_extracted(dslite: Dslite, greeter: Path) -> None:
    text = "Look:\n```py\nprint(1)\n```\nand\n```\nno\n```\n"
    echo = ["--raw", "--no-bos", "--echo", "-n", "0", "-x"]
    assert ask(dslite, greeter, *echo, "-p", text).text == "print(1)\n"
    assert ask(dslite, greeter, *echo, "-p", text, "--json").json["text"] == "print(1)\n"
    without = ask(dslite, greeter, *echo, "-p", "no code")
    assert (without.code, without.out) == (1, b"")
    assert "no fenced code block" in without.err.decode()


def test_an_output_file_appears_whole_and_stdout_stays_empty(dslite: Dslite, greeter: Path) -> None:
    file = dslite.folder / "answer.txt"
    file.write_text("old")
    file.chmod(0o640)
    result = ask(dslite, greeter, "hello", "--output-file", "answer.txt", "--no-stream")
    assert (result.code, result.out, file.read_text()) == (0, b"", "hi\n")
    assert file.stat().st_mode & 0o777 == 0o640
    failed = ask(dslite, greeter, "x" * 40, "--ctx-size", "32", "--output-file", "answer.txt")
    assert (failed.code, file.read_text()) == (4, "hi\n")
    assert not [other.name for other in dslite.folder.iterdir() if other.name.startswith(".answer")]


def test_an_output_file_that_is_a_device_is_written_to_and_stays_one(dslite: Dslite, greeter: Path) -> None:
    result = ask(dslite, greeter, "hello", "--output-file", "/dev/stdout")
    assert (result.code, result.out) == (0, b"hi\n")
    assert Path("/dev/stdout").exists()
    assert ask(dslite, greeter, "hello", "--output-file", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()


def test_a_seed_makes_an_answer_reproducible(dslite: Dslite, greeter: Path) -> None:
    hot = ["--raw", "q", "-t", "2", "--top-p", "1", "--min-p", "0", "-n", "24", "--json", "--repetition-penalty", "9"]
    first, second, other = (ask(dslite, greeter, *hot, "--seed", seed).json["tokens"] for seed in ("7", "7", "8"))
    assert first == second
    assert first != other


def test_a_batch_answers_in_order_and_says_what_is_wrong_with_a_line(dslite: Dslite, greeter: Path) -> None:
    lines = [
        '{"prompt": "hello", "id": "first"}',
        "",
        "not json",
        "[1]",
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]}',
        '{"prompt": "hello", "max_tokens": 1}',
        '{"prompt": "hello", "temperature": 9}',
        '{"prompt": "hello", "stop": "i"}',
        '{"prompt": ""}',
        '{"prompt": "a", "messages": []}',
        '{"messages": [{"role": "robot", "content": "x"}]}',
        '{"prompt": "\\ud800"}',
        '{"prompt": "hello", "profile": "absent"}',
        json.dumps({"prompt": "x" * 200}),
    ]
    result = ask(dslite, greeter, "--batch", "-", "--ctx-size", "128", stdin="\n".join(lines).encode())
    assert result.code == 0
    shown = result.lines
    assert [line["id"] for line in shown] == ["first", *range(2, 14)]
    texts = [line.get("text") for line in shown]
    assert texts == ["hi", None, None, "hi", "", None, "h", None, None, None, None, None, None]
    faults = [line["error"] for line in shown if "error" in line]
    for fault, words in zip(
        faults,
        [
            "not valid JSON",
            "not a JSON object",
            "from 0 to 2",
            "empty",
            "one of them",
            "role",
            "surrogate",
            "absent",
            "context",
        ],
        strict=True,
    ):
        assert words in fault
    assert shown[0]["session"] is None
    assert "9 of 13 lines failed" in result.err.decode()
    file = dslite.folder / "in.jsonl"
    file.write_text('{"prompt": "hello"}\n')
    assert ask(dslite, greeter, "--batch", "in.jsonl", "--output-file", "out.jsonl").out == b""
    assert json.loads((dslite.folder / "out.jsonl").read_text())["text"] == "hi"


def test_flags_are_read_from_the_environment_and_the_command_line_wins(dslite: Dslite, greeter: Path) -> None:
    env = {"DSLITE_MODEL": str(greeter), "DSLITE_MAX_TOKENS": "2", "DSLITE_RAW": "1"}
    assert dslite("complete", "x", env=env).text == "yz\n"
    assert dslite("complete", "x", "-n", "4", env=env).text == "yzxy\n"


def test_control_characters_show_instead_of_acting(dslite: Dslite, greeter: Path) -> None:
    result = ask(dslite, greeter, "--raw", "--no-bos", "--echo", "-n", "0", "-p", "\x1b[31m\x07\x9b2J\tok\n")
    assert result.text == "␛[31m␇\ufffd2J\tok\n"
    as_json = ask(dslite, greeter, "--raw", "--no-bos", "--echo", "-n", "0", "--json", "-p", "\x1b[31m")
    assert b"\x1b" not in as_json.out
    error = dslite("complete", "-m", "\x1b[31mred", "x")
    assert b"\x1b" not in error.err
    assert "␛[31mred".encode() in error.err
