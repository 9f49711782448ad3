"""`dslite model` from the outside: what it prints where, and its exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pexpect
import pyte
import pytest
from huggingface_hub import constants
from support.checkpoints import write_checkpoint
from support.hub_fixtures import LITE
from support.hub_server import HubServer
from support.in_process import Dslite

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def dslite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dslite:
    return Dslite(monkeypatch, capsys)


def test_pull_names_licence_size_and_place_and_prints_the_folder_alone_on_stdout(
    dslite: Dslite, hub: HubServer
) -> None:
    code, out, err = dslite("model", "pull", "chat")
    folder = Path(out.removesuffix("\n"))
    assert (code, folder.name) == (0, hub.repos[LITE].refs["main"])
    assert (folder / "config.json").is_file()
    assert "licence  DeepSeek model licence: https://github.com/deepseek-ai/" in err
    assert "size     1.5 MB, 1.5 MB of it to fetch" in err
    assert f"place    {folder.parents[1]} (" in err
    assert f"fetched {SHARD}" in err
    assert "\x1b" not in out + err


def test_quiet_pull_says_only_the_folder(dslite: Dslite, hub: HubServer) -> None:
    process = subprocess.run(
        [sys.executable, "-c", "from dslite.app.cli import main; main()", "model", "pull", "chat", "-q"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stderr == ""
    assert Path(process.stdout.strip()).is_dir()


def test_list_shows_models_as_a_table_and_as_json(dslite: Dslite, hub: HubServer) -> None:
    _, folder, _ = dslite("model", "pull", "chat")
    code, out, _ = dslite("model", "list")
    assert code == 0
    assert out.splitlines()[0].split() == ["NAME", "SIZE", "WEIGHTS", "STATE", "REVISION", "PLACE"]
    assert any(line.split()[:5] == ["chat", "1.5", "MB", "bfloat16", "complete"] for line in out.splitlines())
    _, out, _ = dslite("model", "list", "-o", "json")
    chat = next(model for model in json.loads(out) if model["name"] == "chat")
    assert chat["path"] == folder.strip()
    assert (chat["complete"], chat["missing"], chat["refs"]) == (True, [], ["main"])


def test_verify_ends_with_0_for_good_files_and_3_for_a_damaged_one(dslite: Dslite, hub: HubServer) -> None:
    _, folder, _ = dslite("model", "pull", "chat")
    code, out, _ = dslite("model", "verify", "chat")
    assert code == 0
    assert {line.split()[1] for line in out.splitlines()[1:]} == {"good"}
    blob = (Path(folder.strip()) / SHARD).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    code, out, err = dslite("model", "verify", "chat", "-o", "json")
    assert code == 3
    assert [found["name"] for found in json.loads(out) if found["state"] == "damaged"] == [SHARD]
    assert f"dslite: {SHARD} is damaged" in err
    assert "dslite model pull chat" in err


def test_verify_of_an_absent_model_says_what_to_run(dslite: Dslite, hub_home: Path) -> None:
    code, out, err = dslite("model", "verify", "chat")
    assert (code, out) == (3, "")
    assert "dslite model pull chat" in err


def test_rm_removes_and_says_how_much(dslite: Dslite, hub: HubServer) -> None:
    dslite("model", "pull", "chat")
    assert dslite("model", "rm", "chat")[:2] == (0, "removed chat, 1.5 MB\n")
    assert dslite("model", "rm", "chat")[0] == 3
    assert dslite("model", "rm", "demo")[0] == 2


def test_info_tells_bytes_by_part_before_any_download(dslite: Dslite, hub: HubServer) -> None:
    code, out, _ = dslite("model", "info", "base", "--offline", "-o", "json")
    found = json.loads(out)
    assert code == 0
    assert found["weights_bytes"] == sum(found["part_bytes"].values()) == 31_412_968_448
    assert (found["path"], found["kv_bytes_per_token"]) == (None, 31_104)
    _, out, _ = dslite("model", "info", "chat")
    assert "15,706,484,224" in out
    assert "17.3 MB each" in out


def test_an_unknown_output_is_a_usage_error(dslite: Dslite, hub_home: Path) -> None:
    assert dslite("model", "list", "-o", "xml")[0] == 2


def test_pull_of_a_folder_prints_it_or_says_what_is_wrong(dslite: Dslite, hub_home: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    assert dslite("model", "pull", str(folder))[:2] == (0, f"{folder}\n")
    code, _, err = dslite("model", "pull", str(tmp_path / "nowhere"))
    assert code == 3
    assert "there is no folder" in err


def test_an_older_revision_is_pointed_out(dslite: Dslite, hub: HubServer, lite_files: dict[str, bytes]) -> None:
    old = hub.repos[LITE].refs["main"]
    dslite("model", "pull", "chat")
    hub.publish(LITE, lite_files | {"generation_config.json": b"{}"})
    _, _, err = dslite("model", "pull", "chat")
    assert f"dslite model rm {LITE}@{old}" in err


def test_offline_commands_open_no_socket(dslite: Dslite, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    dslite("model", "pull", "chat")

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "sendto", refuse)
    # The library asks its Hub about this program's surroundings where it may.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    assert dslite("model", "verify", "chat", "--offline")[0] == 0
    assert dslite("model", "info", "chat", "--offline")[0] == 0
    assert dslite("model", "info", "coder", "--offline")[0] == 0
    assert dslite("model", "list")[0] == 0
    assert dslite("model", "info", "some/model", "--offline")[0] == 3
    code, _, err = dslite("model", "pull", "chat", "--offline")
    assert code == 3
    assert "--offline forbids" in err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert dslite("model", "pull", "coder")[0] == 3


@pytest.fixture
def silent(hub: HubServer) -> HubServer:
    """The second shard stops in its middle."""
    hub.on(SHARD).hold_at = 150_000
    return hub


def spawn(*words: str) -> "pexpect.spawn[str]":
    code = "from dslite.app.cli import main; main()"
    return pexpect.spawn(sys.executable, ["-c", code, *words], dimensions=(24, 110), encoding="utf-8", timeout=60)


def screen(text: str) -> str:
    display = pyte.Screen(110, 24)
    pyte.Stream(display).feed(text)
    return "\n".join(line.rstrip() for line in display.display)


def test_a_terminal_shows_each_file_and_ctrl_c_keeps_what_came(silent: HubServer) -> None:
    child = spawn("model", "pull", "chat")
    child.expect(r"150\.0 KB of 358\.3 KB")
    shown = child.before + child.after
    assert SHARD in shown
    assert "all" in shown
    child.sendintr()
    child.expect("goes on from there")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    again = spawn("model", "pull", "chat")
    again.expect(pexpect.EOF)
    again.close()
    assert again.exitstatus == 0
    assert "━" not in screen(again.before)  # the bars are gone at the end
    assert [seen.range for seen in silent.fetched(SHARD) if "/resolve/" not in seen.path] == [None, "bytes=150000-"]


def test_sigterm_ends_with_143_and_gives_the_cursor_back(silent: HubServer) -> None:
    child = spawn("model", "pull", "chat")
    child.expect(r"150\.0 KB of 358\.3 KB")
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 143
    assert "\x1b[?25h" in child.before


def at_the_first_request(hub: HubServer) -> str:
    return ""


def in_a_file(hub: HubServer) -> str:
    hub.on(SHARD).hold_at = 150_000
    return r"150\.0 KB of 358\.3 KB"


def in_a_pause_before_another_try(hub: HubServer) -> str:
    hub.on(SHARD).hold_at = 150_000
    hub.on(SHARD).statuses = [(503, {"Retry-After": "100"})] * 3
    return "the server answered 503"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", [at_the_first_request, in_a_file, in_a_pause_before_another_try])
@pytest.mark.parametrize("twice", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_silent_hub_is_left_at_a_signal(
    hub: HubServer,
    number: signal.Signals,
    where: Callable[[HubServer], str],
    twice: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = where(hub)
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as held:
        if not place:
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        child = spawn("model", "pull", "chat")
        if place:
            child.expect(place)
        else:
            connection = held.enter_context(silent.accept()[0])
            connection.recv(1)  # the request has begun, and is never answered
        child.kill(number)
        if twice:
            child.kill(number)
        child.expect(pexpect.EOF)  # neither the silence nor the pause of 100 s is waited for
        child.close()
        assert child.exitstatus == 128 + number
        assert "Traceback" not in child.before
        if not twice:
            assert "goes on from there" in child.before


def test_help_imports_neither_torch_nor_the_hub_s_client() -> None:
    code = (
        "import sys; sys.argv = ['dslite', 'model', '--help']\n"
        "from dslite.app.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'huggingface_hub', 'textual', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, env=os.environ)
    assert done.returncode == 0
