"""Packing from the outside: asked for, listed, verified, run without the published weights, and removed."""

import io
import json
from pathlib import Path

import pytest
from support.hub_server import HubServer
from support.in_process import Dslite

from dslite.app.commands import packing
from dslite.app.terminal import questions
from dslite.runtime.downloads.hub import parse_model
from dslite.runtime.downloads.packed import PACKED, find_packed


@pytest.fixture
def dslite(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Dslite:
    monkeypatch.setenv("DSLITE_CACHE_DIR", str(tmp_path / "own-cache"))
    return Dslite(monkeypatch, capsys)


def formats(dslite: Dslite) -> list[str]:
    return [one["weights"] for one in json.loads(dslite("model", "list", "-o", "json")[1]) if one["name"] == "chat"]


@pytest.mark.usefixtures("hub")
def test_a_model_is_pulled_packed_and_kept_without_its_source(dslite: Dslite) -> None:
    code, out, _ = dslite("model", "pull", "chat", "--weights", "int8", "--yes")
    assert code == 0
    assert (Path(out.strip()) / PACKED).is_file()
    assert formats(dslite) == ["bfloat16", "int8"]
    assert dslite("model", "pack", "chat", "--weights", "int8", "--remove-source")[0] == 0
    assert formats(dslite) == ["int8"]
    assert dslite("model", "verify", "chat")[0] == 0
    assert dslite("model", "compare", "chat", "--weights", "int8", "--against", "int8", "-o", "json")[0] == 0
    assert dslite("model", "rm", "chat")[0] == 0
    assert formats(dslite) == []


def test_a_script_must_say_yes(dslite: Dslite, hub: HubServer) -> None:
    dslite("model", "pull", "chat")
    code, out, err = dslite("model", "pack", "chat", "--weights", "int4")
    assert (code, out) == (3, "")
    assert "--yes" in err
    assert formats(dslite) == ["bfloat16"]
    assert hub.repos


@pytest.mark.parametrize(("typed", "packs"), [("\n", True), ("Yes\n", True), ("n\n", False), ("", False)])
def test_a_terminal_is_asked_and_the_end_of_input_is_a_no(
    dslite: Dslite, monkeypatch: pytest.MonkeyPatch, typed: str, packs: bool
) -> None:
    monkeypatch.setattr(packing, "can_ask", lambda: True)
    monkeypatch.setattr(questions.sys, "stdin", io.StringIO(typed))
    code, out, err = dslite("model", "pack", "demo", "--weights", "int8")
    assert code == (0 if packs else 3)
    assert "write it? [Y/n]: " in err
    assert bool(out) == packs
    assert (find_packed(parse_model("demo"), "int8") is not None) == packs


def test_pack_needs_a_format_and_a_folder_keeps_its_source(dslite: Dslite) -> None:
    assert dslite("model", "pack", "demo")[0] == 2
    assert dslite("model", "pack", "demo", "--weights", "int8", "--yes", "--remove-source")[0] == 2


def test_a_flipped_byte_fails_verify(dslite: Dslite) -> None:
    _, out, _ = dslite("model", "pack", "demo", "--weights", "int8", "--yes")
    file = Path(out.strip()) / PACKED
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    code, _, err = dslite("model", "verify", "demo")
    assert code == 3
    assert "another checksum" in err
