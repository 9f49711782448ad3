"""`complete` with token ids in its flags: end tokens, and special tokens that a raw prompt spells."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.cli_process import Dslite
from support.scripted_server import ScriptedServer, events
from support.tokenizers import BOS, BOS_ID, N_TOKENS, write_tokenizer

from dslite.runtime.text.tokenizer import Tokenizer

FIM = ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"]
BEGIN, HOLE, END = (N_TOKENS + place for place in range(3))


@pytest.fixture(scope="module")
def coder(greeter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The greeter with the special tokens of fill-in-the-middle."""
    folder = tmp_path_factory.mktemp("coder") / "model"
    shutil.copytree(greeter, folder)
    write_tokenizer(folder, added=FIM)
    return folder


def answer(dslite: Dslite, folder: Path, *args: str, **more: Any) -> Any:
    """A raw answer to "x", which goes on with "yzxyzx…"."""
    result = dslite("complete", "-m", str(folder), "--raw", "x", "-n", "5", "--json", *args, **more)
    assert result.code == 0, result.err
    return result.json


def test_an_answer_ends_at_the_first_of_its_stop_tokens(dslite: Dslite, greeter: Path) -> None:
    assert answer(dslite, greeter)["text"] == "yzxyz"
    x, z = (Tokenizer.from_folder(greeter).encode(text)[0] for text in "xz")

    shown = answer(dslite, greeter, "--stop-token-id", str(x), "--stop-token-id", "0")
    assert (shown["text"], shown["finish_reason"]) == ("yz", "stop")
    shown = answer(dslite, greeter, "--stop-token-id", str(x), "--stop-token-id", str(z))
    assert (shown["text"], shown["finish_reason"]) == ("y", "stop")


def test_stop_tokens_come_from_a_profile_a_variable_and_a_line_too(dslite: Dslite, greeter: Path) -> None:
    x, z = (str(Tokenizer.from_folder(greeter).encode(text)[0]) for text in "xz")
    assert dslite("profile", "add", "short", "--stop-token-id", x).code == 0
    assert dslite("profile", "show", "short", "--json").json["stop_token_ids"] == [int(x)]

    assert answer(dslite, greeter, "--profile", "short")["text"] == "yz"
    assert answer(dslite, greeter, env={"DSLITE_STOP_TOKEN_ID": f"{x} {z}"})["text"] == "y"
    over = answer(dslite, greeter, "--profile", "short", "--stop-token-id", z, env={"DSLITE_STOP_TOKEN_ID": x})
    assert over["text"] == "y", "the flag wins over both"

    lines = [{"prompt": "x", "stop_token_ids": [int(x)]}, {"prompt": "x", "profile": "short"}, {"prompt": "x"}]
    lines.append({"prompt": "x", "stop_token_ids": []})
    stdin = "\n".join(map(json.dumps, lines)).encode()
    flags = ("--raw", "-n", "5", "--stop-token-id", z, "--batch", "-")
    result = dslite("complete", "-m", str(greeter), *flags, stdin=stdin)
    assert [json.loads(line)["text"] for line in result.out.splitlines()] == ["yz", "yz", "y", "yzxyz"]


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (("--stop-token-id", "-1"), "stop_token_ids has -1"),
        (("--stop-token-id", "100000"), "stop_token_ids has 100000, which no token has"),
        (("--stop-token-id", "99999999999999999999"), "a token's id is from 0 to 2^31 - 1"),
        (("--stop-token-id", "x"), "is not a valid int"),
        (("--parse-special",), "--parse-special needs --raw"),
    ],
)
def test_a_wrong_token_flag_is_a_usage_error(dslite: Dslite, greeter: Path, args: tuple[str, ...], fault: str) -> None:
    result = dslite("complete", "-m", str(greeter), "hi", *args)
    assert (result.code, result.out) == (2, b"")
    assert fault in result.err.decode()


def prompt_ids(dslite: Dslite, folder: Path, text: str, *args: str) -> list[int]:
    result = dslite("complete", "-m", str(folder), "--raw", "--echo", "-n", "0", "--json", *args, stdin=text.encode())
    assert result.code == 0, result.err
    return [token["id"] for token in result.json["tokens"]]


def test_spellings_of_special_tokens_are_text_unless_they_are_asked_for(dslite: Dslite, coder: Path) -> None:
    text = f"{FIM[0]}a{FIM[1]}b{FIM[2]}"
    plain = prompt_ids(dslite, coder, text)
    assert plain[0] == BOS_ID
    assert max(plain[1:]) < BOS_ID, "no special token comes of a text"
    assert prompt_ids(dslite, coder, text, "--parse-special") == [BOS_ID, BEGIN, ord("a"), HOLE, ord("b"), END]
    assert prompt_ids(dslite, coder, BOS + "a", "--parse-special", "--no-bos") == [BOS_ID, ord("a")]


def test_special_tokens_count_as_one_token_each_against_the_context(dslite: Dslite, coder: Path) -> None:
    size = ("--ctx-size", "64")
    assert prompt_ids(dslite, coder, FIM[1] * 63, "--parse-special", *size) == [BOS_ID] + [HOLE] * 63
    for args in (("--parse-special",), ()):
        text = (FIM[1] * (64 if args else 63)).encode()
        result = dslite("complete", "-m", str(coder), "--raw", "--echo", "-n", "0", *size, *args, stdin=text)
        assert result.code == 4, result.err


def test_a_server_gets_both(dslite: Dslite) -> None:
    with ScriptedServer([events({"choices": [{"text": "y", "finish_reason": "stop"}]}, "data: [DONE]\n\n")]) as server:
        flags = ("--raw", "--parse-special", "--stop-token-id", "7", "--stop-token-id", "8")
        result = dslite("complete", "--endpoint", server.url, "-m", "m", *flags, FIM[1])
    assert (result.code, result.out) == (0, b"y\n"), result.err
    body = json.loads(server.asked[-1].partition(b"\r\n\r\n")[2])
    assert (body["prompt"], body["parse_special"], body["stop_token_ids"]) == (FIM[1], True, [7, 8])
