"""What `dslite complete` keeps: conversations, profiles, and what had come when it was stopped."""

import io
import json
import os
import resource
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from support import in_process
from support.cli_process import Dslite
from support.paths import path_variables

from dslite.app.sessions import database
from dslite.app.sessions.store import SessionStore, StoredMessage


def ask(dslite: Dslite, folder: Path, *args: str, **more: Any) -> Any:
    return dslite("complete", "-m", str(folder), *args, **more)


def saved(dslite: Dslite) -> list[list[StoredMessage]]:
    """The active branches of all conversations, the last changed first."""
    with SessionStore.open(dslite.folder / "data" / "sessions.db") as store:
        return [store.path(talk.leaf) for talk in store.conversations()]


def test_an_answer_is_saved_with_its_ids_and_the_next_one_goes_on_from_them(dslite: Dslite, greeter: Path) -> None:
    first = ask(dslite, greeter, "Say hello", "--json", "-t", "0").json
    second = ask(dslite, greeter, "-c", "Again", "--json").json
    third = ask(dslite, greeter, "--session", str(first["session"])[:20].lower(), "And again", "--json").json
    assert first["session"] == second["session"] == third["session"]
    ((question, answer, *others),) = saved(dslite)
    assert [question.content, answer.content] == ["Say hello", "hi"]
    assert [message.content for message in others] == ["Again", "hi", "And again", "hi"]
    assert answer.token_ids is not None
    assert len(answer.token_ids) == first["completion_tokens"] + 1  # its end token
    assert (answer.finish_reason, answer.growing) == ("stop", False)
    assert answer.info["sampling"]["temperature"] == 0
    # The template writes "User: Again\n\nAssistant:" behind the first turn: one token for User, one for Assistant,
    # and one for the two line ends.
    turn = len(": Again:") + 3
    assert second["prompt_tokens"] == first["prompt_tokens"] + len(answer.token_ids) + turn


def test_with_no_conversation_yet_continue_begins_one(dslite: Dslite, greeter: Path) -> None:
    assert ask(dslite, greeter, "-c", "x", "--json").json["session"] is not None
    assert len(saved(dslite)) == 1


def test_raw_batch_and_no_save_keep_no_conversation(dslite: Dslite, greeter: Path) -> None:
    for args, stdin, files in (
        (["--no-save", "x"], b"", []),  # not even how fast it was
        (["--raw", "x", "-n", "1"], b"", ["dslite.log"]),
        (["--batch", "-"], b'{"prompt": "x"}', ["dslite.log"]),
    ):
        result = ask(dslite, greeter, *args, "--json", stdin=stdin)
        assert result.code == 0
        assert result.json["session"] is None
        assert [file.name for file in (dslite.folder / "data").glob("*")] == files


def test_no_save_with_continue_reads_and_adds_nothing(dslite: Dslite, greeter: Path) -> None:
    first = ask(dslite, greeter, "one", "--json").json
    second = ask(dslite, greeter, "-c", "--no-save", "two", "--json").json
    assert second["session"] is None
    assert second["prompt_tokens"] > first["prompt_tokens"]
    ((_, answer),) = saved(dslite)
    assert answer.content == "hi"


def test_an_unknown_session_is_an_error_before_any_loading(dslite: Dslite, greeter: Path) -> None:
    result = ask(dslite, greeter, "--session", "01ABC", "x")
    assert (result.code, result.out) == (1, b"")
    assert "no conversation has an id that begins with '01ABC'" in result.err.decode()


def test_an_answer_cut_by_a_stop_text_goes_back_as_it_was_read(dslite: Dslite, greeter: Path) -> None:
    ask(dslite, greeter, "x", "--stop", "i")
    ((_, answer),) = saved(dslite)
    assert (answer.content, answer.token_ids, answer.finish_reason) == ("h", None, "stop")


def test_an_echoed_prompt_is_not_saved_as_the_answer(dslite: Dslite, greeter: Path) -> None:
    ask(dslite, greeter, "hello", "--echo")
    ((question, answer),) = saved(dslite)
    assert (question.content, answer.content) == ("hello", "hi")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_answer_and_what_came_is_printed_and_saved(
    dslite: Dslite, babbler: Path, number: signal.Signals, code: int
) -> None:
    running = dslite.start("complete", "-m", str(babbler), "Laugh")
    os.close(running.stdin)
    running.read(4)
    running.kill(number)
    result = running.wait()
    assert result.code == code
    assert result.err == b""
    text = result.text.removesuffix("\n")
    assert text.startswith("hoho")
    assert set(text) == {"h", "o"}
    ((question, answer),) = saved(dslite)
    assert question.content == "Laugh"
    assert (answer.content, answer.finish_reason, answer.growing) == (text, "interrupted", False)


def test_a_signal_leaves_a_whole_json_object_and_a_whole_file(dslite: Dslite, babbler: Path) -> None:
    for args in (["-o", "jsonl"], ["--json", "--output-file", "/dev/stdout"]):
        running = dslite.start("complete", "-m", str(babbler), "x", *args, "--no-save")
        os.close(running.stdin)
        if args == ["-o", "jsonl"]:
            running.read(100)
        else:
            wait_for_handler(running.pid)
        running.kill(signal.SIGTERM)
        result = running.wait()
        assert result.code == 143
        assert json.loads(result.out.splitlines()[-1])["finish_reason"] == "interrupted"


def wait_for_handler(pid: int) -> None:
    """Until the process handles SIGTERM itself: it is making its answer."""
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return


def test_a_killed_process_has_saved_what_was_printed_a_second_before(dslite: Dslite, babbler: Path) -> None:
    running = dslite.start("complete", "-m", str(babbler), "Laugh")
    os.close(running.stdin)
    running.read(1)
    path = dslite.folder / "data" / "sessions.db"
    content = ""
    while not content:  # until the first second has been saved
        with sqlite3.connect(path) as db:
            content = db.execute("SELECT content FROM messages WHERE role = 'assistant'").fetchone()[0]
        db.close()
    running.kill(signal.SIGKILL)
    result = running.wait()
    assert result.code == -signal.SIGKILL
    ((_, answer),) = saved(dslite)
    assert answer.content.startswith(content)
    assert result.text.startswith(answer.content)
    assert answer.token_ids is not None
    assert len(answer.token_ids) == len(answer.content) + 1  # the space before it


def test_a_closed_pipe_ends_quietly_with_0(dslite: Dslite, babbler: Path) -> None:
    for args in ([], ["-o", "jsonl"]):
        running = dslite.start("complete", "-m", str(babbler), "Laugh", *args)
        os.close(running.stdin)
        assert running.read(1)
        os.close(running.stdout)
        result = running.wait()
        assert (result.code, result.err) == (0, b"")
    assert all(answer.finish_reason == "interrupted" for _, answer in saved(dslite))


def test_a_database_that_cannot_be_opened_costs_a_warning_and_not_the_answer(dslite: Dslite, greeter: Path) -> None:
    (dslite.folder / "data").write_text("not a folder")
    result = ask(dslite, greeter, "x", "--json")
    assert (result.code, result.json["text"], result.json["session"]) == (0, "hi", None)
    assert "the conversation is not saved" in result.err.decode()
    assert ask(dslite, greeter, "-c", "x").code == 1


def test_a_disk_that_fills_up_costs_a_warning_and_not_the_answer(dslite: Dslite, babbler: Path) -> None:
    running = dslite.start("complete", "-m", str(babbler), "Laugh", "-o", "jsonl")
    os.close(running.stdin)
    running.read(100)
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (0, 0))  # no file takes another byte
    while b"the conversation is not saved" not in running.err:
        os.sched_yield()
    running.kill(signal.SIGINT)
    result = running.wait()
    *tokens, last = result.lines
    assert (result.code, last["finish_reason"], last["session"]) == (130, "interrupted", None)
    assert last["tokens"] == tokens
    assert result.err.count(b"\n") == 1


def test_a_database_that_only_reads_is_gone_on_from_with_a_warning(
    tmp_path: Path, greeter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, folder in path_variables(tmp_path).items():
        monkeypatch.setenv(name, folder)
    run = in_process.Dslite(monkeypatch, capsys)
    command = ("complete", "-m", str(greeter), "--json")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    session = json.loads(run(*command, "Say hello")[1])["session"]
    path = tmp_path / "data" / "sessions.db"
    before, really = path.read_bytes(), os.open

    def opened(name: Any, flags: int, *rest: Any, **more: Any) -> int:
        if Path(name) == path and flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(name))  # as it is for everybody but root
        return really(name, flags, *rest, **more)

    monkeypatch.setattr(database.os, "open", opened)
    code, out, err = run(*command, "-c", "Again")
    assert (code, json.loads(out)["text"], json.loads(out)["session"]) == (0, "hi", None)
    assert "the conversation is not saved" in err
    assert "readonly" in err
    assert json.loads(out)["prompt_tokens"] > 6  # the first turn was read
    assert run("session", "show", session)[0] == 0
    assert path.read_bytes() == before


def test_a_newer_database_is_left_alone_and_the_answer_comes(dslite: Dslite, greeter: Path) -> None:
    dslite("session", "list")
    path = dslite.folder / "data" / "sessions.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    result = ask(dslite, greeter, "x", "--json")
    assert (result.code, result.json["session"]) == (0, None)
    assert "newer dslite" in result.err.decode()
    listed = dslite("session", "list")
    assert (listed.code, listed.out) == (1, b"")
    assert "newer dslite" in listed.err.decode()
    assert path.read_bytes() == before


def sampled(dslite: Dslite, *args: str, env: dict[str, str] | None = None) -> tuple[dict[str, Any], str | None]:
    """With what sampling and system message an answer was made."""
    result = dslite("complete", *args, "x", "--json", env=env)
    assert result.code == 0, result.err
    with SessionStore.open(dslite.folder / "data" / "sessions.db") as store:
        talk = store.get(str(result.json["session"]))
        return dict(store.path(talk.leaf)[-1].info["sampling"]), talk.system


def test_flags_go_over_the_profile_over_the_defaults_over_the_models_own(dslite: Dslite, tmp_path: Path) -> None:
    from support.markov_model import EOS, write_markov_model

    model = write_markov_model(tmp_path / "model", {":": " ", " ": "h", "h": "i", "i": EOS})
    args = ["-m", str(model)]
    found, system = sampled(dslite, *args)
    assert (found["temperature"], found["top_p"], found["top_k"], system) == (0.3, 0.95, 0, None)
    (model / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.8, "top_k": 7, "do_sample": true}')
    found, _ = sampled(dslite, *args)
    assert (found["temperature"], found["top_p"], found["top_k"]) == (0.6, 0.8, 7)
    config = dslite.folder / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text(
        "[defaults]\ntemperature = 0.7\ntop_p = 0.7\nsystem = 'd'\n[profiles.p]\ntop_p = 0.5\nseed = 3\nsystem = 'p'\n"
    )
    found, system = sampled(dslite, *args)
    assert (found["temperature"], found["top_p"], found["top_k"], system) == (0.7, 0.7, 7, "d")
    found, system = sampled(dslite, *args, "--profile", "p")
    assert (found["temperature"], found["top_p"], found["top_k"], found["seed"], system) == (0.7, 0.5, 7, 3, "p")
    found, system = sampled(dslite, *args, "--profile", "p", "--top-p", "0.9", "-s", "f", "--stop", "q")
    assert (found["top_p"], found["seed"], found["stop"], system) == (0.9, 3, ["q"], "f")
    found, system = sampled(dslite, *args, "--profile", "p", env={"DSLITE_TOP_P": "0.4"})
    assert found["top_p"] == 0.4
    _, system = sampled(dslite, *args, "--profile", "p", "-s", "")
    assert system is None
    assert dslite("profile", "default", "p").code == 0
    _, system = sampled(dslite, *args)
    assert system == "p"
    _, system = sampled(dslite, *args, "-c", "-s", "g")
    assert system == "g"
    _, system = sampled(dslite, *args, "-c")
    assert system == "g"


def test_a_profile_names_the_model_and_a_conversation_remembers_it(dslite: Dslite, greeter: Path) -> None:
    kept = ask(dslite, greeter, "--save-profile", "hello", "-t", "0.5", "-s", "Greet.")
    assert (kept.code, kept.out) == (0, b"")
    shown = dslite("profile", "show", "hello", "-o", "json").json
    assert shown == {
        "name": "hello",
        "default": False,
        "shipped": False,
        "system": "Greet.",
        "model": str(greeter),
        "temperature": 0.5,
    }
    first = dslite("complete", "--profile", "hello", "x", "--json").json
    second = dslite("complete", "-c", "x", "--json").json
    assert first["model"] == second["model"] == str(greeter)
    with_prompt = dslite("complete", "--profile", "hello", "--save-profile", "colder", "-t", "0.1", "x")
    assert with_prompt.text == "hi\n"
    colder = dslite("profile", "show", "colder", "-o", "json").json
    assert colder == {**shown, "name": "colder", "temperature": 0.1}


def test_a_conversation_goes_on_without_the_profile_that_it_was_begun_with(dslite: Dslite, greeter: Path) -> None:
    dslite("profile", "add", "hello", "-s", "Greet.", "-m", str(greeter), "-t", "0.5")
    first = dslite("complete", "--profile", "hello", "x", "--json").json
    assert dslite("profile", "rm", "hello").code == 0
    found, system = sampled(dslite, "-c")
    assert (found["temperature"], system) == (0.3, "Greet.")
    assert len(saved(dslite)) == 1
    assert dslite("complete", "-c", "x", "--json").json["session"] == first["session"]


def test_a_profile_or_config_file_that_is_wrong_is_named_before_any_loading(dslite: Dslite, greeter: Path) -> None:
    absent = ask(dslite, greeter, "--profile", "absent", "x")
    assert (absent.code, absent.out) == (1, b"")
    assert "there is no profile 'absent'" in absent.err.decode()
    config = dslite.folder / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text("[defaults]\ntemperature = \n")
    broken = ask(dslite, greeter, "x")
    assert (broken.code, broken.out) == (1, b"")
    assert "line 2, column 15" in broken.err.decode()
    assert config.read_text() == "[defaults]\ntemperature = \n"


def test_going_on_reads_from_disk_what_was_computed(dslite: Dslite, greeter: Path) -> None:
    first = ask(dslite, greeter, "Say hello", "--json", "-t", "0").json
    rows = dslite.folder / "cache" / "latents" / f"{first['session']}.safetensors"
    assert rows.is_file()
    second = ask(dslite, greeter, "-c", "Again", "--json").json
    assert second["cached_tokens"] == first["prompt_tokens"] + first["completion_tokens"]
    unsaved = rows.read_bytes()
    third = ask(dslite, greeter, "-c", "More", "--json", "--no-save").json
    assert third["cached_tokens"] == second["prompt_tokens"] + second["completion_tokens"]
    assert rows.read_bytes() == unsaved
    rows.write_bytes(rows.read_bytes()[:-40])
    assert ask(dslite, greeter, "-c", "More", "--json").json["cached_tokens"] == 0
    assert dslite("session", "rm", first["session"]).code == 0
    assert not rows.exists()
