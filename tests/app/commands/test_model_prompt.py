"""Starting without weights: what a terminal is asked, and what everybody else is told."""

import io
import sys
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.cli_process import Dslite
from support.hub_server import HubServer

from dslite.app.commands import model_prompt
from dslite.app.commands.model_prompt import ensure_model
from dslite.runtime.downloads import download
from dslite.runtime.downloads.hub import locate, parse_model
from dslite.runtime.errors import ModelUnavailableError

CHAT = parse_model("chat")


def answering(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A user at a terminal who types these lines."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    monkeypatch.setattr(model_prompt, "can_ask", lambda: True)
    monkeypatch.setattr(model_prompt, "plan_line", lambda _: "cpu, as planned")


def test_without_a_terminal_the_error_says_what_to_run(hub: HubServer) -> None:
    with pytest.raises(ModelUnavailableError, match="is not on this machine") as caught:
        ensure_model(CHAT, offline=False)
    assert (caught.value.remedy, caught.value.exit_code) == ("download it: dslite model pull chat", 3)
    assert hub.seen == []


def test_offline_nobody_is_asked(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "d")
    with pytest.raises(ModelUnavailableError):
        ensure_model(CHAT, offline=True)
    assert hub.seen == []


def test_a_download_is_offered_with_licence_size_place_room_and_plan(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, "")
    assert ensure_model(CHAT, offline=False) == CHAT
    assert locate(CHAT).is_dir()
    out, err = capsys.readouterr()
    assert out == ""
    before_choice = err.partition("choose [d]")[0]
    for part in ("not on this machine", "DeepSeek model licence", "1.5 MB of it", "hf/hub", " free)", "as planned"):
        assert part in before_choice


def test_nothing_is_fetched_before_the_choice(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "q")
    with pytest.raises(ModelUnavailableError, match="no model was chosen"):
        ensure_model(CHAT, offline=False)
    assert [seen.path for seen in hub.seen if not seen.path.startswith("/api/models/")] == []


def test_the_demo_and_another_folder_can_be_taken_instead(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, "m")
    assert ensure_model(CHAT, offline=False) == parse_model("demo")
    folder = write_checkpoint(tmp_path / "mine")
    answering(monkeypatch, "x", "f", str(tmp_path / "nowhere"), "f", str(folder))
    assert ensure_model(CHAT, offline=False).folder == folder
    assert "there is no folder" in capsys.readouterr().err


def test_a_download_that_has_no_room_is_not_offered(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, "d", "q")
    monkeypatch.setattr(download, "free_disk_bytes", lambda _: 1000)
    with pytest.raises(ModelUnavailableError, match="no model was chosen"):
        ensure_model(CHAT, offline=False)
    err = capsys.readouterr().err
    assert "not enough room: 1.5 MB more must be free" in err
    assert "download it now" not in err


def test_without_the_hub_the_other_ways_are_still_offered(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del hub.repos["deepseek-ai/DeepSeek-V2-Lite-Chat"]
    answering(monkeypatch, "m")
    assert ensure_model(CHAT, offline=False) == parse_model("demo")
    assert "has no repository" in capsys.readouterr().err


def test_a_present_model_asks_and_requests_nothing(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, "d")
    ensure_model(CHAT, offline=False)
    hub.seen.clear()
    capsys.readouterr()
    assert ensure_model(CHAT, offline=False) == CHAT
    assert (hub.seen, capsys.readouterr().err) == ([], "")


@pytest.mark.parametrize("command", [["chat"], ["chat", "--plain"], ["complete", "hello"], ["serve"]])
def test_without_a_terminal_an_absent_model_exits_3_with_the_command_to_run(
    dslite: Dslite, tmp_path: Path, command: list[str]
) -> None:
    result = dslite(*command, "-m", "chat", env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_CACHE": ""})
    assert result.code == 3
    assert b"the model chat is not on this machine" in result.err
    assert b"dslite model pull chat" in result.err


def test_a_full_screen_chat_with_a_present_model_asks_for_a_terminal(dslite: Dslite, greeter: Path) -> None:
    result = dslite("chat", "-m", str(greeter))
    assert result.code == 2
    assert b"needs a terminal" in result.err
