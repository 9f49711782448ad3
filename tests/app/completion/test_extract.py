"""-x: the first whole code block, wherever it stands; without one nothing goes into the shell behind the pipe."""

import json
from pathlib import Path

import pytest
from support.cli_process import Dslite
from support.scripted_server import ScriptedServer, delta, events

LIST = "1. Run:\n\n   ```bash\n   ls -l\n   ```\n\n2. Done\n"
BLOCKS = [
    (LIST, "ls -l\n"),
    ("- a\n  - b\n\n    ~~~\n    x\n      y\n    ~~~\n", "x\n  y\n"),
    ("> Look:\n>\n> ```sh\n> ls\n> ```\n> prose\n", "ls\n"),
    ("Look:\r\n```sh\r\nls\r\npwd\r\n```\r\nprose\r\n", "ls\npwd\n"),
    ("```sh\nls\n`````\nprose\n", "ls\n"),
    ("````\n```\nls\n```\n````\n", "```\nls\n```\n"),
    ("Look:\n   ```\n   ls\n   ```\nprose", "ls\n"),
    ("``` not a fence ``` here\n\n```\nls\n```\n", "ls\n"),
    ("```\nls\n```\n\n```\npwd\n```\n", "ls\n"),
]


def answered(dslite: Dslite, text: str, finish: str, *args: str) -> tuple[int, str, str]:
    """What -x makes of an answer."""
    script = events(delta(text), delta(None, finish), "data: [DONE]\n\n")
    with ScriptedServer([script]) as server:
        result = dslite("complete", "--endpoint", server.url, "-m", "x", "hi", "--no-save", "-x", *args)
    return result.code, result.out.decode(), result.err.decode()


@pytest.mark.parametrize(("text", "code"), BLOCKS)
def test_the_first_block_is_printed_wherever_it_stands(dslite: Dslite, text: str, code: str) -> None:
    assert answered(dslite, text, "stop") == (0, code, "")
    assert answered(dslite, text, "length", "-n", "99")[:2] == (0, code)
    assert json.loads(answered(dslite, text, "stop", "--json")[1])["text"] == code


@pytest.mark.parametrize(
    ("text", "finish", "fault"),
    [
        ("rm -rf is dangerous", "stop", "no fenced code block"),
        ("Use `rm`, or\n\n    indented code\n", "stop", "no fenced code block"),
        ("Run:\n```sh\nrm -rf /tmp/", "length", "the code block was cut"),
        ("1. Run:\n\n   ```sh\n   rm -rf /", "length", "the code block was cut"),
        ("```sh", "length", "the code block was cut"),
        ("```a`b\nprose\n```", "stop", "the code block was cut"),
    ],
)
@pytest.mark.parametrize("args", [[], ["--json"], ["--no-stream"]])
def test_without_a_whole_block_nothing_is_printed(
    dslite: Dslite, text: str, finish: str, fault: str, args: list[str]
) -> None:
    code, out, err = answered(dslite, text, finish, "-n", "9", *args)
    assert (code, out) == (1, "")
    assert fault in err


def test_an_answer_that_ends_inside_a_block_by_itself_has_given_the_block(dslite: Dslite) -> None:
    assert answered(dslite, "```sh\nls", "stop") == (0, "ls\n", "")


def test_the_help_says_what_happens_without_a_block(dslite: Dslite) -> None:
    assert "exit 1 without a whole" in " ".join(dslite("complete", "--help").text.replace("│", " ").split())


def test_a_cut_block_of_the_engine_is_not_printed(dslite: Dslite, greeter: Path) -> None:
    args = ["--raw", "--no-bos", "--echo", "-n", "2", "-p", "Run:\n```\nls x"]
    result = dslite("complete", "-m", str(greeter), "-x", *args)
    assert (result.code, result.out) == (1, b"")
