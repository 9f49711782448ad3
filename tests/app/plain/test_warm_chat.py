"""`dslite chat --plain` with a warm engine in the background."""

import os
import signal
import subprocess
import sys

from support.cli_process import Dslite
from support.warm import keep_alive, needs_engines, running, start

pytestmark = needs_engines

DEMO = ("-m", "demo", "--device", "cpu", "--dtype", "float32", "--threads", "1")
CHAT = ("chat", "--plain", *DEMO, "-t", "0")
QUESTIONS = b"How do I save a profile?\nAnd how do I delete it?\n"


def test_a_chat_is_that_of_a_process_of_its_own(warm: Dslite) -> None:
    here = warm(*CHAT, "--no-warm", stdin=QUESTIONS)
    start(warm, *DEMO)
    there = warm(*CHAT, stdin=QUESTIONS)
    assert (there.code, there.out, there.err) == (here.code, here.out, here.err)
    assert b"dslite profile rm" in there.out
    assert warm("session", "list", "-o", "json").out.count(b'"id"') == 2


def test_a_chat_imports_nothing_that_computes(warm: Dslite) -> None:
    start(warm, *DEMO)
    command = [sys.executable, "-X", "importtime", "-m", "dslite.app", *CHAT]
    done = subprocess.run(command, env=warm.env, input=QUESTIONS, capture_output=True, check=True)
    loaded = {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
    assert b"dslite.runtime.chat.warm" in loaded
    assert not loaded & {b"torch", b"tokenizers", b"numpy", b"jinja2"}


def test_a_chat_starts_the_engine_where_the_config_says_so(warm: Dslite) -> None:
    keep_alive(warm, "10m")
    assert warm(*CHAT, stdin=QUESTIONS).code == 0
    assert [engine["model"] for engine in running(warm)] == ["demo"]


def test_a_chat_whose_engine_is_killed_goes_on(warm: Dslite) -> None:
    wanted = warm(*CHAT, "--no-warm", stdin=QUESTIONS)
    pid = start(warm, *DEMO)
    chat = warm.start(*CHAT)
    first, _, second = QUESTIONS.partition(b"\n")
    os.write(chat.stdin, first + b"\n")
    chat.read(20)
    os.kill(pid, signal.SIGKILL)
    chat.send(second)
    result = chat.wait()
    assert (result.code, result.out) == (0, wanted.out)
    assert b"the warm engine was lost" in result.err
