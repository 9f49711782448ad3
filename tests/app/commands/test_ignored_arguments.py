"""No argument is ignored in silence, and none measures, asks or lists nothing with exit code 0."""

import pytest
from support.checkpoints import tiny_config, write_checkpoint
from support.cli_process import Dslite


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["complete", "-m", "demo", "--revision", "nosuch", "x"], "--revision"),
        (["complete", "-m", "FOLDER", "--revision", "main", "x"], "--revision"),
        (["complete", "-m", "chat@one", "--revision", "two", "x"], "--revision"),
        (["complete", "-m", "", "x"], "--model"),
        (["complete", "-m", "demo", "--no-bos", "x"], "--no-bos"),
        (["complete", "-m", "demo", "--endpoint-key-env", "KEY", "x"], "--endpoint-key-env"),
        (["plan", "-m", "demo", "--revision", "nosuch"], "--revision"),
        (["bench", "-m", "demo", "--revision", "nosuch"], "--revision"),
        (["serve", "-m", "demo", "--revision", "nosuch"], "--revision"),
        (["model", "info", "demo", "--revision", "nosuch"], "--revision"),
        (["model", "pull", "demo", "--revision", "nosuch"], "--revision"),
        (["model", "verify", "demo", "--revision", "nosuch"], "--revision"),
        (["model", "rm", "demo", "--revision", "nosuch"], "--revision"),
        (["bench", "-m", "demo", "-p", ","], "--prompt-tokens"),
        (["bench", "-m", "demo", "-p", "8,,9"], "--prompt-tokens"),
        (["bench", "-m", "demo", "-d", ","], "--depth"),
        (["bench", "-m", "demo", "-d", " "], "nothing to measure"),
        (["bench", "-m", "demo", "-p", "", "-n", "0"], "nothing to measure"),
        (["bench", "-m", "demo", "--layers", "1"], "--layers"),
        (["session", "search", " "], "TEXT"),
    ],
)
def test_an_argument_that_means_nothing_is_a_usage_error(words: list[str], named: str, dslite: Dslite) -> None:
    write_checkpoint(dslite.folder / "model", tiny_config())
    done = dslite(*(str(dslite.folder / "model") if word == "FOLDER" else word for word in words))
    assert (done.code, done.out) == (2, b"")
    assert named in done.err.decode()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["-p", "999999"], "--prompt-tokens 999999"),
        (["-p", "4096", "-d", "1"], "--prompt-tokens 4096 after --depth 1"),
        (["-p", "1", "-n", "5000", "-d", "0"], "--gen-tokens 5000"),
        (["-p", "1", "-n", "1", "-d", "999999"], "--depth 999999"),
    ],
)
def test_bench_names_the_flag_that_needs_too_long_a_context(words: list[str], named: str, dslite: Dslite) -> None:
    done = dslite("bench", "-m", "demo", *words)
    assert done.code == 2
    assert named in done.err.decode()
    assert b"--ctx-size" not in done.err
