"""A prompt that cannot fit is refused before all of it is read, and before a model is loaded."""

import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.cli_process import Dslite

from dslite.runtime.downloads.hub import locate, parse_model
from dslite.runtime.errors import ContextFullError
from dslite.runtime.text.prompt_limit import ByteLimit, PromptLimit, longest_token_of
from dslite.runtime.text.tokenizer import Tokenizer

ENTRY = str(Path(sys.executable).with_name("dslite"))


def endless(running: "subprocess.Popen[bytes]", sent: list[int]) -> None:
    """Write into stdin until its reader has gone."""
    assert running.stdin is not None
    try:
        while True:
            sent[0] += running.stdin.write(b"y\n" * 32768)
    except BrokenPipeError:
        pass


def run_with_endless_stdin(dslite: Dslite, *args: str) -> tuple[int, bytes, int, int]:
    """Exit code, stderr, bytes that were sent, most memory in bytes."""
    # The most memory of a process counts that of the one it was forked from: here a small one.
    script = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[1:]).returncode\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(code)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, ENTRY, "complete", *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dslite.env,
        bufsize=0,
    ) as running:
        sent = [0]
        writer = threading.Thread(target=endless, args=(running, sent))
        writer.start()
        assert running.stderr is not None
        err = running.stderr.read()
        assert running.stdout is not None
        memory = int(running.stdout.read()) * 1024
        running.wait()
        writer.join()
        return running.returncode, err, sent[0], memory


@pytest.mark.parametrize(("args", "context"), [([], "4,096"), (["--ctx-size", "3000"], "3,000"), (["-"], "4,096")])
def test_an_endless_stdin_is_refused_with_both_numbers(dslite: Dslite, args: list[str], context: str) -> None:
    code, err, sent, memory = run_with_endless_stdin(dslite, "-m", "demo", *args)
    assert code == 4
    assert b"tokens (" in err
    assert f"the context holds {context}" in err.decode()
    assert sent < 16 << 20
    assert memory < 100 << 20  # torch alone has more: no model was loaded


def test_a_file_that_cannot_fit_is_refused_and_an_endless_one_too(dslite: Dslite) -> None:
    (dslite.folder / "large").write_bytes(b"word " * 6_000_000)
    for name in ("large", "/dev/zero"):
        result = dslite("complete", "-m", "demo", "-f", name, "--no-stdin", "x")
        assert (result.code, result.out) == (4, b"")
        assert "the context holds 4,096" in result.err.decode()
    result = dslite("complete", "-m", "demo", "--system-file", "/dev/zero", "--no-stdin", "x")
    assert (result.code, result.out) == (4, b"")
    assert "the context holds 163,840" in result.err.decode(), "what any model takes"


def test_thirty_megabytes_take_no_more_cpu_than_three_bare_starts(dslite: Dslite) -> None:
    def cpu_seconds(stdin: bytes, *args: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([ENTRY, "complete", "-m", "demo", *args], input=stdin, capture_output=True, env=dslite.env)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bare = cpu_seconds(b"hi", "-n", "1")
    assert cpu_seconds(b"prose of a user " * 2_000_000) <= 3 * bare


@pytest.fixture(scope="module")
def demo() -> Path:
    return locate(parse_model("demo"))


def test_the_longest_token_of_the_file_is_that_of_the_tokenizer(demo: Path, greeter: Path) -> None:
    for folder in (demo, greeter):
        assert longest_token_of(folder) == Tokenizer.from_folder(folder).bounds.longest


@pytest.mark.parametrize("text", ["word " * 4000, "中文字" * 4000, "7" * 5000, "x" * 100_000])
def test_a_text_is_refused_where_its_tokens_exceed_the_context_and_only_there(demo: Path, text: str) -> None:
    tokenizer = Tokenizer.from_folder(demo)
    count = len(tokenizer.encode(text))
    PromptLimit(count, tokenizer).check([text])
    small = PromptLimit(min(count - 1, len(text.encode()) // 9), tokenizer)
    with pytest.raises(ContextFullError, match="tokens"):
        small.check([text])


def test_a_text_of_as_many_bytes_as_could_fit_is_not_refused_by_its_size() -> None:
    limit = ByteLimit(100, lambda: 7)
    limit.check(700)
    with pytest.raises(ContextFullError, match=r"at least 101 tokens \(701 bytes were read\).*holds 100"):
        limit.check(701)
