"""`complete` with a warm engine in the background: the same answers, and what happens when the engine is not there."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.cli_process import Dslite
from support.warm import keep_alive, needs_engines, running, start

pytestmark = needs_engines

EXACT = ("--device", "cpu", "--dtype", "float32", "--threads", "1")
DEMO = ("-m", "demo", *EXACT)
SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'


def same(answer: dict[str, Any]) -> dict[str, Any]:
    """What of an answer's JSON does not depend on time, process and conversation."""
    left_out = ("timing", "session", "engine", "memory")
    memory = {key: answer["memory"][key] for key in ("weights_bytes", "kv_bytes", "kv_bytes_per_token")}
    return {"memory": memory, **{key: value for key, value in answer.items() if key not in left_out}}


def test_answers_are_those_of_a_process_of_its_own(warm: Dslite) -> None:
    start(warm, *DEMO)
    for flags in (
        ("-t", "0", "-n", "16", "hi"),
        ("-t", "1", "--seed", "7", "-n", "24", "Tell me of profiles"),
        ("-t", "0", "-n", "6", "--logprobs", "3", "hi"),
        ("--raw", "-t", "0", "-n", "4", "--logprobs", "1", "--echo", "Hello there"),
        ("--raw", "-t", "0", "-n", "0", "--logprobs", "0", "--echo", "Hello there"),
        ("-t", "0", "-n", "40", "--json-schema", SCHEMA, "a number"),
        ("-t", "0", "-n", "9", "--regex", "[a-f]{3}", "hi"),
        ("-t", "0", "-n", "30", "--stop", "model", "-s", "Be brief", "Grüße 🙂"),
    ):
        # Not saved, so that nothing is cached in the engine either: the numbers are the same to the last bit.
        here = warm("complete", *DEMO, *flags, "--no-save", "--json", "--no-warm")
        there = warm("complete", *DEMO, *flags, "--no-save", "--json")
        assert there.json["engine"] == "warm", there.err
        assert "engine" not in here.json
        assert (here.code, same(here.json)) == (there.code, same(there.json))
        timing = there.json["timing"]
        assert isinstance(timing, dict)
        assert timing["load_s"] == 0.0
        text = warm("complete", *DEMO, *flags, "--no-save")
        assert text.out == warm("complete", *DEMO, *flags, "--no-save", "--no-warm").out


def test_errors_are_those_of_a_process_of_its_own(warm: Dslite) -> None:
    start(warm, *DEMO, "--ctx-size", "64")
    for flags in (
        ("-n", "9", "--regex", "(?=x)", "hi"),
        ("hi " * 200,),
        ("--raw", "--stop-token-id", "999999", "hi"),
    ):
        here = warm("complete", *DEMO, "--ctx-size", "64", *flags, "--no-warm")
        there = warm("complete", *DEMO, "--ctx-size", "64", *flags)
        assert here.code in (2, 4)
        assert (here.code, here.out, here.err) == (there.code, there.out, there.err)


def test_a_conversation_goes_on_with_the_caches_of_the_engine(warm: Dslite) -> None:
    start(warm, *DEMO)
    first = warm("complete", *DEMO, "-t", "0", "--json", "What is a profile?").json
    second = warm("complete", *DEMO, "-t", "0", "--json", "-c", "And how do I save one?").json
    assert second["session"] == first["session"]
    assert int(str(second["cached_tokens"])) > int(str(first["prompt_tokens"]))
    here = warm("complete", *DEMO, "-t", "0", "--json", "--no-warm", "-c", "--no-save", "Thanks").json
    assert int(str(here["cached_tokens"])) > int(str(second["prompt_tokens"]))  # of the file that the engine wrote


@pytest.mark.parametrize("sampling", [("-t", "0"), ("-t", "1.2", "--seed", "5", "--repetition-penalty", "1.1")])
def test_a_kill_in_the_middle_of_an_answer_loses_nothing(warm: Dslite, sampling: tuple[str, ...]) -> None:
    flags = ("--raw", *sampling, "-n", "5000", "--regex", "[a-z ]{2500}", "--logprobs", "0", "-o", "jsonl", "Once")
    wanted = warm("complete", *DEMO, *flags, "--no-warm")
    pid = start(warm, *DEMO)
    command = warm.start("complete", *DEMO, *flags)
    command.send(b"")
    command.read(1)
    os.kill(pid, signal.SIGKILL)
    result = command.wait()
    assert result.code == wanted.code == 0
    assert b"the warm engine was lost" in result.err
    assert [line.get("id") for line in result.lines] == [line.get("id") for line in wanted.lines]
    assert result.lines[-1]["text"] == wanted.lines[-1]["text"]
    assert "engine" not in result.lines[-1]


def batch(*prompts: str, **more: object) -> bytes:
    lines = [{"id": f"line {number}", "prompt": prompt, **more} for number, prompt in enumerate(prompts)]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def test_a_batch_is_that_of_a_process_of_its_own(warm: Dslite) -> None:
    questions = [f"Question {number}: how do I save a profile?" for number in range(40)]
    data = batch(*questions, temperature=0.8, seed=4, max_tokens=12) + b'{"prompt": 3}\n{"prompt": "x", "top_p": 7}\n'
    data += batch("hi " * 5000) + b'{"messages": [{"role": "user", "content": "hi"}]}\n{"prompt": [999999]}\n'
    start(warm, *DEMO)
    here = warm("complete", *DEMO, "-t", "0", "-n", "9", "--batch", "-", "--no-warm", stdin=data)
    there = warm("complete", *DEMO, "-t", "0", "-n", "9", "--batch", "-", stdin=data)
    assert (there.code, there.err) == (here.code, here.err)
    assert len(there.lines) == 45
    for left, right in zip(there.lines, here.lines, strict=True):
        assert [left.get(key) for key in ("id", "text", "error")] == [right.get(key) for key in ("id", "text", "error")]
        assert ("error" in left) or left["engine"] == "warm"
    strict = warm("complete", *DEMO, "--raw", "--strict", "--batch", "-", stdin=batch("Once", max_tokens=3))
    assert strict.code == 0


def test_a_kill_in_the_middle_of_a_batch_loses_nothing(warm: Dslite) -> None:
    data = batch("short", max_tokens=1) + batch(*"abcdef", max_tokens=5000, regex="[a-z ]{1500}")
    flags = ("--raw", "-t", "0", "--unordered", "--batch", "-")
    wanted = warm("complete", *DEMO, *flags, "--no-warm", stdin=data)
    pid = start(warm, *DEMO)
    command = warm.start("complete", *DEMO, *flags)
    command.send(data)
    command.read(1)
    os.kill(pid, signal.SIGKILL)
    result = command.wait()
    assert result.code == 0
    assert result.err.count(b"the warm engine was lost") == 1
    texts = {json.dumps([line["id"], line["text"]]) for line in wanted.lines}
    assert {json.dumps([line["id"], line["text"]]) for line in result.lines} == texts
    assert len(result.lines) == 7


def test_ctrl_c_in_a_batch_keeps_what_came(warm: Dslite, babbler: Path) -> None:
    start(warm, "-m", str(babbler), *EXACT)
    command = warm.start("complete", "-m", str(babbler), *EXACT, "-t", "0", "--batch", "-")
    command.send(batch("hi", max_tokens=1) + batch(*"abc", max_tokens=30_000))
    command.read(1)
    command.kill(signal.SIGINT)
    result = command.wait()
    assert result.code == 130
    first, *others = (line.get("finish_reason") for line in result.lines)  # others: as many as were begun
    assert (first, {*others} - {"interrupted"}) == ("length", set())


def test_a_killed_engine_leaves_a_socket_that_hinders_nothing(warm: Dslite) -> None:
    pid = start(warm, *DEMO)
    os.kill(pid, signal.SIGKILL)
    assert list(Path(warm.env["DSLITE_RUNTIME_DIR"]).glob("*.socket"))
    result = warm("complete", *DEMO, "-t", "0", "-n", "3", "--json", "hi")
    assert (result.code, result.err) == (0, b"")
    assert "engine" not in result.json
    assert start(warm, *DEMO) != pid


def test_ctrl_c_stops_the_answer_in_the_engine(warm: Dslite, babbler: Path) -> None:
    model = ("-m", str(babbler), *EXACT)
    start(warm, *model)
    command = warm.start("complete", *model, "-t", "0", "-n", "30000", "-o", "jsonl", "hello")
    command.send(b"")
    command.read(1)
    command.kill(signal.SIGINT)
    result = command.wait()
    assert (result.code, result.err) == (130, b"")
    answer = result.lines[-1]
    assert (answer["finish_reason"], answer["engine"]) == ("interrupted", "warm")
    assert 0 < len(str(answer["text"])) < 30_000
    log = (Path(warm.env["DSLITE_DATA_DIR"]) / "dslite.log").read_text()
    assert "interrupted: prefill" in log  # which the engine writes when an answer of its own is over


def test_a_model_whose_files_have_changed_is_computed_here(warm: Dslite, greeter: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in greeter.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    start(warm, "-m", str(model), *EXACT)
    os.utime(next(model.glob("*.safetensors")))
    result = warm("complete", "-m", str(model), *EXACT, "-t", "0", "--json", "hello")
    assert b"the files of the model have changed" in result.err
    assert (result.json["text"], "engine" in result.json) == ("hi", False)


@pytest.mark.parametrize("other", [("--ctx-size", "100"), ("--dtype", "bfloat16"), ("--no-warm",)])
def test_other_settings_are_computed_here(warm: Dslite, other: tuple[str, ...]) -> None:
    start(warm, *DEMO)
    result = warm("complete", *DEMO, *other, "-n", "1", "--json", "hi")
    assert (result.code, result.err, "engine" in result.json) == (0, b"", False)


def test_a_runtime_folder_that_others_can_enter_is_not_used(warm: Dslite) -> None:
    start(warm, *DEMO)
    folder = Path(warm.env["DSLITE_RUNTIME_DIR"])
    folder.chmod(0o755)
    result = warm("complete", *DEMO, "-n", "1", "--json", "hi")
    folder.chmod(0o700)
    assert result.code == 0
    assert b"open to other users" in result.err
    assert "engine" not in result.json


def test_an_engine_inherits_neither_secrets_nor_a_terminal(warm: Dslite) -> None:
    secrets = {"HF_TOKEN": "hf_secret", "MY_API_KEY": "secret", "DSLITE_TEMPERATURE": "1"}
    assert warm("engine", "start", *DEMO, env=secrets).code == 0
    (engine,) = running(warm)
    process = Path(f"/proc/{engine['pid']}")
    assert b"secret" not in (process / "environ").read_bytes()
    assert b"DSLITE_TEMPERATURE" not in (process / "environ").read_bytes()
    assert os.getsid(engine["pid"]) != os.getsid(0)
    assert [os.readlink(process / "fd" / number) for number in "01"] == ["/dev/null"] * 2
    assert os.readlink(process / "fd" / "2").endswith("dslite.log")


def test_no_save_leaves_nothing_for_the_next_request(warm: Dslite) -> None:
    start(warm, *DEMO)
    for flags, known in ((("--no-save",), False), ((), False), ((), True)):
        result = warm("complete", *DEMO, *flags, "-n", "2", "--json", "A rather long question about nothing").json
        assert (result["engine"], int(str(result["cached_tokens"])) > 0) == ("warm", known)
    log = (Path(warm.env["DSLITE_DATA_DIR"]) / "dslite.log").read_text()
    assert log.count("prefill of") == 2


def test_start_takes_the_model_of_the_config(warm: Dslite) -> None:
    config = Path(warm.env["DSLITE_CONFIG_DIR"]) / "config.toml"
    config.parent.mkdir()
    config.write_text('[defaults]\nmodel = "demo"\n')
    start(warm, *EXACT)
    assert warm("complete", *EXACT, "-n", "1", "--json", "hi").json["engine"] == "warm"


def test_start_status_and_stop(warm: Dslite) -> None:
    assert warm("engine", "status", "-o", "json").out == b"[]\n"
    assert warm("engine", "stop").code == 0
    pid = start(warm, *DEMO, "--keep-alive", "2h")
    (engine,) = running(warm)
    assert engine.keys() >= {"pid", "model", "weights", "idle_s"}
    assert (engine["model"], engine["weights"], engine["keep_alive_s"]) == ("demo", "bfloat16", 7200.0)
    again = warm("engine", "start", *DEMO)
    assert str(pid) in again.text
    assert f"stopped {pid}" in warm("engine", "stop").text
    assert running(warm) == []
    assert not list(Path(warm.env["DSLITE_RUNTIME_DIR"]).glob("*.socket"))


@pytest.mark.parametrize("text", ["0", "soon", "-5m", "800d"])
def test_a_keep_alive_that_is_no_time_is_a_usage_error(dslite: Dslite, text: str) -> None:
    assert dslite("engine", "start", *DEMO, f"--keep-alive={text}").code == 2


def test_a_model_that_cannot_be_loaded_is_reported_by_start(warm: Dslite, greeter: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in greeter.iterdir():
        (model / file.name).write_bytes(file.read_bytes() if file.suffix != ".safetensors" else b"not tensors")
    result = warm("engine", "start", "-m", str(model), *EXACT)
    assert result.code == 3, result.err
    assert b"safetensors" in result.err
    assert running(warm) == []


def test_keep_alive_starts_the_engine_at_the_first_use(warm: Dslite) -> None:
    keep_alive(warm, "10m")
    first = warm("complete", *DEMO, "-t", "0", "-n", "5", "--json", "hi")
    (engine,) = running(warm)
    assert engine["keep_alive_s"] == 600.0
    second = warm("complete", *DEMO, "-t", "0", "-n", "5", "--json", "hi")
    assert [engine["pid"]] == [each["pid"] for each in running(warm)]
    for result in (first, second):
        assert (result.code, result.err, result.json["engine"]) == (0, b"", "warm")
    assert first.json["text"] == second.json["text"]
    times = [result.json["timing"]["load_s"] for result in (first, second)]  # type: ignore[index]
    assert times[0] > times[1] == 0.0


@pytest.mark.parametrize("text", ["0", "0s"])
def test_a_keep_alive_of_nothing_starts_none(warm: Dslite, text: str) -> None:
    keep_alive(warm, text)
    assert "engine" not in warm("complete", *DEMO, "-n", "1", "--json", "hi").json
    assert not Path(warm.env["DSLITE_RUNTIME_DIR"]).exists()


def test_no_warm_starts_none(warm: Dslite) -> None:
    keep_alive(warm, "10m")
    assert "engine" not in warm("complete", *DEMO, "-n", "1", "--json", "--no-warm", "hi").json
    assert running(warm) == []


def test_an_engine_ends_by_itself(warm: Dslite) -> None:
    keep_alive(warm, "0.3s")
    assert warm("complete", *DEMO, "-n", "1", "--json", "hi").code == 0
    for file in Path(warm.env["DSLITE_RUNTIME_DIR"]).glob("*.socket"):  # it may have ended already
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.connect(str(file))
            assert connection.recv(1) == b""
    assert running(warm) == []
    assert warm("complete", *DEMO, "-n", "1", "--json", "hi").code == 0


def test_an_error_of_the_model_is_reported_once(warm: Dslite, greeter: Path, tmp_path: Path) -> None:
    keep_alive(warm, "10m")
    model = tmp_path / "model"
    model.mkdir()
    for file in greeter.iterdir():
        (model / file.name).write_bytes(file.read_bytes() if file.suffix != ".safetensors" else b"not tensors")
    there = warm("complete", "-m", str(model), *EXACT, "hi")
    here = warm("complete", "-m", str(model), *EXACT, "--no-warm", "hi")
    assert (there.code, there.out, there.err) == (here.code, here.out, here.err)
    assert there.code == 3


@pytest.mark.parametrize("what", ["nowhere", "empty", "file"])
def test_a_model_that_is_not_there_is_the_same_error(warm: Dslite, tmp_path: Path, what: str) -> None:
    keep_alive(warm, "10m")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    model = ("-m", str(tmp_path / what))
    there, here = warm("complete", *model, "hi"), warm("complete", *model, "--no-warm", "hi")
    assert (there.code, there.out, there.err) == (here.code, here.out, here.err)
    assert there.code == 3
    assert warm("engine", "start", *model).err == here.err


def test_where_no_engine_can_be_started_the_command_computes(warm: Dslite) -> None:
    keep_alive(warm, "10m")
    folder = Path(warm.env["DSLITE_RUNTIME_DIR"])
    folder.mkdir()
    folder.chmod(0o777)
    result = warm("complete", *DEMO, "-n", "1", "--json", "hi")
    folder.chmod(0o700)
    assert (result.code, "engine" in result.json) == (0, False)
    assert b"open to other users" in result.err


def test_the_client_imports_nothing_that_computes(warm: Dslite) -> None:
    start(warm, *DEMO)
    command = [sys.executable, "-X", "importtime", "-m", "dslite.app", "complete", *DEMO, "-n", "1", "--no-stdin", "hi"]
    done = subprocess.run(command, env=warm.env, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "dslite.runtime.warm.client" in loaded
    heavy = {"torch", "tokenizers", "numpy", "jinja2", "llguidance", "huggingface_hub", "tomlkit", "rich", "textual"}
    assert not loaded & {*heavy, "asyncio", "dslite.runtime.engine.engine"}
