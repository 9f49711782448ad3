"""`complete` with --json-schema, --regex and --grammar, as a shell starts it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.cli_process import Dslite
from support.scripted_server import ScriptedServer, delta, events

SCHEMA = {
    "type": "object",
    "properties": {"w": {"enum": ["yes", "no"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["w", "n"],
    "additionalProperties": False,
}
TEXT = json.dumps(SCHEMA)


def ask(dslite: Dslite, folder: Path, *args: str, **more: Any) -> Any:
    return dslite("complete", "-m", str(folder), "--no-save", *args, **more)


def test_an_answer_has_the_shape_of_each_flag(dslite: Dslite, greeter: Path) -> None:
    (dslite.folder / "s.json").write_text(TEXT)
    (dslite.folder / "g.lark").write_text('start: "x" /[0-9]{2}/')
    for given in (TEXT, "s.json"):
        made = ask(dslite, greeter, "--json-schema", given, "hello")
        assert made.code == 0, made.err
        assert json.loads(made.out)["w"] in ("yes", "no")
    assert re.fullmatch(rb"[a-c]{4}\n", ask(dslite, greeter, "--regex", "[a-c]{4}", "hello").out)
    assert re.fullmatch(rb"x[0-9]{2}\n", ask(dslite, greeter, "--grammar", "g.lark", "hello").out)
    assert re.fullmatch(rb"[a-c]{4}\n", ask(dslite, greeter, "--raw", "--regex", "[a-c]{4}", "hello").out)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--json-schema", '{"type": "array", "uniqueItems": true}'], "uniqueItems"),
        (["--json-schema", "{"], "not valid JSON"),
        (["--json-schema", "nowhere.json"], "nowhere.json cannot be read"),
        (["--json-schema", "[1]"], "must be an object"),
        (["--regex", "a(?=b)"], "look-around"),
        (["--regex", "("], "unclosed group"),
        (["--regex", ""], "empty"),
        (["--grammar", "nowhere.lark"], "nowhere.lark cannot be read"),
        (["--regex", "a", "--json-schema", "{}"], "--json-schema"),
        (["--regex", "a", "--grammar", "g"], "--grammar"),
    ],
)
def test_what_cannot_be_enforced_is_a_usage_error(dslite: Dslite, greeter: Path, flags: list[str], said: str) -> None:
    made = ask(dslite, greeter, *flags, "hello")
    assert (made.code, made.out) == (2, b"")
    assert said in made.err.decode()


def test_an_answer_that_is_cut_is_an_error(dslite: Dslite, greeter: Path) -> None:
    made = ask(dslite, greeter, "--regex", "a{20}", "-n", "3", "hello", "--json")
    assert made.code == 1
    assert made.json["finish_reason"] == "length"
    assert "cut before its shape was whole" in made.err.decode()


def test_the_model_is_told_unless_it_shall_not_be(dslite: Dslite, greeter: Path) -> None:
    told = ask(dslite, greeter, "--regex", "ab", "hello", "--json").json["prompt_tokens"]
    untold = ask(dslite, greeter, "--regex", "ab", "--no-schema-prompt", "hello", "--json").json["prompt_tokens"]
    assert untold == ask(dslite, greeter, "hello", "--json").json["prompt_tokens"] < told


def test_profiles_have_a_shape_that_a_flag_replaces(dslite: Dslite, greeter: Path) -> None:
    assert dslite("profile", "add", "shaped", "--json-schema", TEXT).code == 0
    made = ask(dslite, greeter, "--profile", "shaped", "hello")
    assert json.loads(made.out)["w"] in ("yes", "no")
    assert re.fullmatch(rb"[ab]{3}\n", ask(dslite, greeter, "--profile", "shaped", "--regex", "[ab]{3}", "hi").out)


def test_lines_of_a_batch_have_shapes_of_their_own(dslite: Dslite, greeter: Path) -> None:
    lines = [
        {"prompt": "a", "json_schema": SCHEMA},
        {"prompt": "a", "regex": "[a-c]{4}"},
        {"prompt": "a", "grammar": 'start: "x" /[0-9]/'},
        {"prompt": "a", "regex": "(", "id": "wrong"},
        {"prompt": "a", "regex": "a", "grammar": "b"},
        {"prompt": "hello"},
    ]
    made = ask(dslite, greeter, "--batch", "-", "--regex", "z{3}", stdin="\n".join(map(json.dumps, lines)).encode())
    results = [json.loads(line) for line in made.out.splitlines()]
    assert json.loads(results[0]["text"])["w"] in ("yes", "no")
    assert re.fullmatch("[a-c]{4}", results[1]["text"])
    assert re.fullmatch("x[0-9]", results[2]["text"])
    assert "unclosed group" in results[3]["error"]
    assert "exclude each other" in results[4]["error"]
    assert results[5]["text"] == "zzz"


def served(dslite: Dslite, text: str, *flags: str) -> tuple[Any, dict[str, Any]]:
    """What came of an answer of a server, and what the server was asked."""
    with ScriptedServer([events(delta(text), delta(None, "stop"), "data: [DONE]\n\n")]) as server:
        made = dslite("complete", "--endpoint", server.url, "-m", "m", "--no-save", *flags, "hello")
        return made, json.loads(server.asked[-1].partition(b"\r\n\r\n")[2])


def test_a_server_is_asked_for_the_shape_and_its_answer_checked(dslite: Dslite) -> None:
    good = '{ "n": 3,\n\t"w": "no" }'
    made, body = served(dslite, good, "--json-schema", TEXT)
    assert (made.code, made.out.decode()) == (0, good + "\n")
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert "JSON schema" in body["messages"][0]["content"]
    made, _ = served(dslite, '{"w": "maybe"}', "--json-schema", TEXT)
    assert made.code == 1
    assert "is not of the shape" in made.err.decode()
    made, body = served(dslite, "nope", "--regex", "yes|no", "--no-schema-prompt")
    assert made.code == 1
    assert body["structured_outputs"] == {"regex": "yes|no"}
    assert [message["role"] for message in body["messages"]] == ["user"]
