"""The command line wins over the environment, also where two flags exclude each other; aliases read no variable."""

import json
from pathlib import Path

import pytest
from support.cli_process import Dslite, Result

ASK = ["complete", "--no-save", "-n", "5"]


def ask(dslite: Dslite, model: Path, *words: str, env: dict[str, str], stdin: bytes = b"") -> Result:
    return dslite(*ASK, "-m", str(model), *words, env=env, stdin=stdin)


@pytest.mark.parametrize(
    ("words", "env", "out"),
    [
        # one thing said in two ways
        (["x", "-o", "text"], {"DSLITE_JSON": "1"}, "hi"),
        (["x"], {"DSLITE_JSON": "1"}, "{"),
        (["x", "--json"], {"DSLITE_OUTPUT": "text"}, "{"),
        (["x", "--json"], {"DSLITE_OUTPUT": "jsonl"}, '{"model"'),
        # a variable of an exclusive flag
        (["hi there"], {"DSLITE_PROMPT": "other"}, "hi"),
        (["--prompt", "x"], {"DSLITE_PROMPT": "other"}, "hi"),
        (["x", "--system-file", "s.txt"], {"DSLITE_SYSTEM": "other"}, "hi"),
        (["x", "-s", "a"], {"DSLITE_SYSTEM_FILE": "nosuch.txt"}, "hi"),
        (["x", "-c"], {"DSLITE_SESSION": "01NOSUCH"}, "hi"),
        (["x", "--raw"], {"DSLITE_SYSTEM": "other"}, "yz"),
        (["x", "--raw"], {"DSLITE_SYSTEM_FILE": "nosuch.txt"}, "yz"),
        (["x", "--raw"], {"DSLITE_SESSION": "01NOSUCH"}, "yz"),
        (["x", "--raw"], {"DSLITE_CONTINUE": "1"}, "yz"),
        (["x", "-s", "a"], {"DSLITE_RAW": "1"}, "hi"),
        (["x"], {"DSLITE_BATCH": "nosuch.jsonl"}, "hi"),
        (["--batch", "b.jsonl"], {"DSLITE_PROMPT": "other"}, '{"'),
        (["--batch", "b.jsonl"], {"DSLITE_SESSION": "01NOSUCH"}, '{"'),
        (["--batch", "b.jsonl"], {"DSLITE_FILE": "nosuch.txt"}, '{"'),
        # a variable that says something of another value, or of nothing
        (["x"], {"DSLITE_REVISION": "nosuch"}, "hi"),
        (["x"], {"DSLITE_ENDPOINT_KEY_ENV": "KEY"}, "hi"),
        (["x"], {"DSLITE_NO_BOS": "1"}, "hi"),
        # a value that another command takes
        (["x"], {"DSLITE_OUTPUT": "md"}, "hi"),
    ],
)
def test_the_command_line_wins_over_a_variable(
    words: list[str], env: dict[str, str], out: str, dslite: Dslite, greeter: Path
) -> None:
    (dslite.folder / "s.txt").write_text("a system message")
    (dslite.folder / "b.jsonl").write_text('{"prompt": "x"}\n')
    done = ask(dslite, greeter, *words, env=env)
    assert (done.code, done.err) == (0, b"")
    assert done.text.startswith(out)


@pytest.mark.parametrize("value", ["jsonl", "md", "text"])
@pytest.mark.parametrize("words", [["session", "list"], ["model", "list"], ["profile", "list"], ["profile", "default"]])
def test_a_form_that_only_other_commands_have_breaks_no_list(words: list[str], value: str, dslite: Dslite) -> None:
    assert dslite(*words, env={"DSLITE_OUTPUT": value}) == dslite(*words)


def test_a_variable_that_no_command_understands_is_a_usage_error(dslite: Dslite) -> None:
    done = dslite("profile", "list", env={"DSLITE_OUTPUT": "xml"})
    assert done.code == 2
    assert b"--output is 'xml'; it must be text or json" in done.err


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"DSLITE_SYSTEM": "a", "DSLITE_SYSTEM_FILE": "s.txt"}, b"given twice"),
        ({"DSLITE_CONTINUE": "1", "DSLITE_SESSION": "01"}, b"--session does not go with --continue"),
    ],
)
def test_two_variables_that_exclude_each_other_are_an_error(
    env: dict[str, str], message: bytes, dslite: Dslite, greeter: Path
) -> None:
    done = ask(dslite, greeter, "x", env=env)
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize(
    ("alias", "value"), [("DSLITE_TEMP", "9"), ("DSLITE_SYSTEM_PROMPT", "x"), ("DSLITE_N", "x"), ("DSLITE_M", "nosuch")]
)
def test_an_alias_reads_no_variable(alias: str, value: str, dslite: Dslite, greeter: Path) -> None:
    assert ask(dslite, greeter, "x", env={alias: value}) == ask(dslite, greeter, "x", env={})


def test_the_long_name_reads_its_variable(dslite: Dslite, greeter: Path) -> None:
    done = ask(dslite, greeter, "x", env={"DSLITE_TEMPERATURE": "9"})
    assert (done.code, b"temperature is 9.0; it must be from 0 to 2" in done.err) == (2, True)


def test_profiles_keep_nothing_of_the_environment(dslite: Dslite) -> None:
    env = {"DSLITE_SYSTEM": "from outside", "DSLITE_TEMPERATURE": "1", "DSLITE_STOP": "x", "DSLITE_MODEL": "demo"}
    assert dslite("profile", "add", "mine", "--top-p", "0.5", env=env).code == 0
    kept = json.loads(dslite("profile", "show", "mine", "-o", "json").out)
    assert kept == {"name": "mine", "default": False, "shipped": False, "top_p": 0.5}
