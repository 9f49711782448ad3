"""A first signal stops a command, a second one ends it, and one that is ignored stays ignored."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli_process import Dslite
from support.serving import serving

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
# Says when it is ready, and then what happened to it.
SCRIPT = """
import signal, sys, threading, time
from dslite.app.terminal import signals
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
def say(text):
    print(text, flush=True)
"""


def run(code: str, *numbers: signal.Signals, ignored: signal.Signals | None = None) -> tuple[int, list[str]]:
    """Run code; send a signal at each line that it prints. Its exit code and lines."""
    prefix = f"import signal; signal.signal({int(ignored)}, signal.SIG_IGN)\n" if ignored else ""
    script = [sys.executable, "-c", prefix + SCRIPT + code]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        waiting = list(numbers)
        for line in process.stdout:
            lines.append(line.strip())
            if waiting:
                process.send_signal(waiting.pop(0))
    return process.returncode, lines


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_sets_the_flag_and_the_command_ends_itself(number: signal.Signals) -> None:
    code = (
        "with signals.Interruption() as interruption:\n    say('ready')\n    interruption.flag.wait()\n"
        "    say('kept')\n"
        "sys.exit(interruption.exit_code)"
    )
    assert run(code, number) == (128 + number, ["ready", "kept"])


@pytest.mark.parametrize("number", SIGNALS)
def test_the_second_signal_ends_the_process_and_undoes_what_is_left(number: signal.Signals) -> None:
    code = (
        "with signals.Interruption() as interruption, signals.cleaned_up(lambda: say('undone')):\n"
        "    say('ready')\n    interruption.flag.wait()\n    say('stopping')\n    threading.Event().wait()"
    )
    assert run(code, number, signal.SIGTERM) == (143, ["ready", "stopping", "undone"])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_with_nothing_to_keep_ends_at_once(number: signal.Signals) -> None:
    code = "with signals.ending_at_once():\n    say('ready')\n    threading.Event().wait()"
    assert run(code, number) == (128 + number, ["ready"])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_model_loads_ends_the_process_after_a_moment(number: signal.Signals) -> None:
    code = "with signals.Interruption(grace_s=0.01):\n    say('ready')\n    threading.Event().wait()"
    assert run(code, number) == (128 + number, ["ready"])


def test_work_that_has_begun_is_not_ended_by_the_first_signal() -> None:
    code = (
        "with signals.Interruption(grace_s=30) as interruption:\n    say('ready')\n    interruption.flag.wait()\n"
        "    interruption.protect()\n    say(str(interruption._timer.finished.is_set()))\n"
        "sys.exit(interruption.exit_code)"
    )
    assert run(code, signal.SIGTERM) == (143, ["ready", "True"])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(number: signal.Signals) -> None:
    code = (
        f"with signals.Interruption() as interruption:\n    say('ready')\n"
        f"    say(str(signal.getsignal({int(number)}) is signal.SIG_IGN))\n"
    )
    code += "sys.exit(0 if interruption.exit_code is None else 1)"
    assert run(code, number, ignored=number) == (0, ["ready", "True"])


def test_handlers_are_put_back() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    from dslite.app.terminal.signals import Interruption, ending_at_once

    with ending_at_once(), Interruption():
        assert all(signal.getsignal(number) != before[number] for number in SIGNALS if before[number] != signal.SIG_IGN)
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stream_of_the_server_gets_its_end_whatever_signal_comes(babbler: Path, number: signal.Signals) -> None:
    with serving(babbler, "--dtype", "float32") as server:
        assert server.process is not None
        stream = server.openai(timeout=60).chat.completions.create(
            model="deepseek-chat", messages=[{"role": "user", "content": "x"}], stream=True, max_tokens=12
        )
        first = next(iter(stream))
        server.process.send_signal(number)
        assert first.choices
        finishes = [choice.finish_reason for chunk in stream for choice in chunk.choices]
        assert finishes[-1] == "length"
        assert server.process.wait(60) == 128 + number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_leaves_a_whole_object_of_the_answer(dslite: Dslite, babbler: Path, number: signal.Signals) -> None:
    running = dslite.start("complete", "-m", str(babbler), "x", "-o", "jsonl", "--no-stdin")
    running.read(200)
    running.kill(number)
    os.close(running.stdin)
    result = running.wait()
    last = json.loads(result.out.splitlines()[-1])
    assert (result.code, last["finish_reason"]) == (128 + number, "interrupted")
    assert last["tokens"] == result.lines[:-1]
