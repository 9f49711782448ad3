"""`dslite doctor`: what it says, and its exit code."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from support.checkpoints import load_engine, write_checkpoint
from support.hub_fixtures import LITE
from support.in_process import Dslite

from dslite.app.commands import doctor as command
from dslite.app.sessions.store import SessionStore
from dslite.runtime.diagnostics import doctor, selftest
from dslite.runtime.diagnostics.doctor import Examination, examine
from dslite.runtime.downloads.hub import RepoCache
from dslite.runtime.planning import bandwidth
from dslite.runtime.planning.bandwidth import Bandwidths


@pytest.fixture
def dslite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], hub_home: Path, tmp_path: Path
) -> Dslite:
    """The command on a machine whose bandwidths are known, with settings of its own."""
    speeds = Bandwidths(ram=50e9, disk=3e9, pcie=0.0, gpu=0.0)
    monkeypatch.setattr(bandwidth, "bandwidths", lambda *_, refresh: speeds)
    monkeypatch.setenv("DSLITE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("DSLITE_DATA_DIR", str(tmp_path / "data"))
    return Dslite(monkeypatch, capsys)


def findings(dslite: Dslite) -> dict[str, str]:
    _, out, _ = dslite("doctor", "-o", "json")
    return {finding["text"]: finding["remedy"] for finding in json.loads(out)["findings"]}


def test_a_sound_machine_ends_with_0_and_tells_facts_with_units(dslite: Dslite) -> None:
    code, out, err = dslite("doctor")
    assert code == 0
    assert "no problems found" in out
    for line in ("memory                50.0 GB/s", "disk                  3.0 GB/s"):
        assert line in out
    _, out, _ = dslite("doctor", "-o", "json")
    facts = json.loads(out)["facts"]
    assert facts["read bandwidth"] == {"memory_bytes_per_s": 50_000_000_000, "disk_bytes_per_s": 3_000_000_000}
    assert facts["versions"]["torch"]
    assert facts["memory"]["total_bytes"] >= facts["memory"]["free_bytes"] > 0
    assert "\x1b" not in out + err


def test_absent_weights_are_a_note_with_the_command(dslite: Dslite) -> None:
    assert findings(dslite)["no DeepSeek-V2 weights are on this machine"] == "download them: dslite model pull chat"


def test_a_broken_config_is_a_problem_with_its_place(dslite: Dslite, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.toml").write_text("[defaults\n")
    code, out, _ = dslite("doctor")
    assert code == 1
    assert "config.toml" in out.partition("problem: ")[2]


def _overwritten(file: Path) -> None:
    """Pages in the middle hold something else; the head still says that it is a database."""
    data = bytearray(file.read_bytes())
    data[4096 : 4096 * 4] = b"damage! " * (4096 * 3 // 8)
    file.write_bytes(data)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _no_database(file: Path) -> None:
    file.write_text("these are no conversations\n" * 400)


@pytest.mark.parametrize("damage", [_overwritten, _cut, _no_database])
def test_a_damaged_database_of_conversations_is_a_problem(
    damage: Callable[[Path], None], dslite: Dslite, tmp_path: Path
) -> None:
    file = tmp_path / "data" / "sessions.db"
    file.parent.mkdir()
    with SessionStore.open(file) as store:
        for number in range(50):
            store.create(model="demo", title=f"conversation {number}" * 20)
    assert dslite("doctor")[0] == 0
    for log in file.parent.glob("sessions.db-*"):
        log.unlink()
    damage(file)
    before = file.read_bytes()
    code, out, _ = dslite("doctor")
    assert code == 1
    assert "sessions.db is damaged" in out.partition("problem: ")[2]
    assert "no problems found" not in out
    assert file.read_bytes() == before


def test_doctor_makes_no_database(dslite: Dslite, tmp_path: Path) -> None:
    assert dslite("doctor")[0] == 0
    assert not (tmp_path / "data" / "sessions.db").exists()


def test_a_begun_download_is_a_problem_with_both_ways_out(dslite: Dslite) -> None:
    partial = RepoCache.of(LITE).partial("a" * 64)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(10))
    remedy = findings(dslite)["the model chat is incomplete: 1 files half fetched"]
    assert "dslite model pull chat" in remedy
    assert "dslite model rm chat" in remedy


def test_a_wrong_endpoint_is_a_problem(dslite: Dslite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "mirror.example")
    assert "HF_ENDPOINT is 'mirror.example', which is no address" in findings(dslite)


def test_a_token_is_never_shown(dslite: Dslite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    _, out, err = dslite("doctor")
    assert "hf_secret" not in out + err
    assert "token                 set" in out


def test_a_place_that_cannot_be_written_is_a_problem(
    dslite: Dslite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DSLITE_DATA_DIR", str(tmp_path / "file" / "data"))
    assert "DSLITE_DATA_DIR" in findings(dslite)[f"{tmp_path}/file/data cannot be written"]


def cuda(capability: tuple[int, int]) -> Any:
    """A torch with one card."""
    card = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        mem_get_info=lambda _: (5_000_000_000, 8_000_000_000),
        get_device_capability=lambda _: capability,
        get_device_name=lambda _: "A card",
    )
    return SimpleNamespace(cuda=card, __version__="2.13.0")


def test_a_card_is_told_with_its_memory_and_bf16() -> None:
    seen = Examination()
    doctor._devices(cuda((8, 6)), seen)
    assert seen.facts["cuda:0"] == {
        "name": "A card",
        "memory": 8_000_000_000,
        "free memory": 5_000_000_000,
        "compute capability": "8.6",
        "BF16": "yes",
    }
    assert seen.findings == []


def test_a_card_without_bf16_is_told_what_happens() -> None:
    seen = Examination()
    doctor._devices(cuda((7, 5)), seen)
    assert seen.facts["cuda:0"]["BF16"] == "emulated"
    (note,) = seen.findings
    assert (note.kind, "has no BF16 arithmetic" in note.text) == ("note", True)
    assert "--device cpu" in note.remedy


def test_refresh_measures_anew(dslite: Dslite, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def measured(*_: str, refresh: bool) -> Bandwidths:
        asked.append(refresh)
        return Bandwidths(1.0, 1.0, 0.0, 0.0)

    monkeypatch.setattr(bandwidth, "bandwidths", measured)
    dslite("doctor")
    dslite("doctor", "--refresh")
    assert asked == [False, True]


def test_the_self_test_without_weights_still_reports_and_ends_with_3(dslite: Dslite) -> None:
    code, out, err = dslite("doctor", "--selftest")
    assert code == 3
    assert "no problems found" in out
    assert "dslite model pull base" in err


def test_the_self_test_counts_what_a_present_model_says(
    dslite: Dslite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A random model with the test's vocabulary: its own greedy tokens agree, a wrong one is told."""
    engine = load_engine(write_checkpoint(tmp_path / "model"))
    prompt = engine.tokenizer.encode("abc")
    entry = {"prompt": "abc", "prompt_ids": prompt, "greedy_ids": _greedy(engine, prompt, 4)}
    wrong = entry | {"greedy_ids": [*entry["greedy_ids"][:3], (entry["greedy_ids"][3] + 1) % 256]}
    monkeypatch.setattr(command, "_open", lambda *_: engine)
    monkeypatch.setattr(command, "locate", lambda _: tmp_path)
    for entries, line, expected in (
        ([entry], "4 of 4 published tokens are the likeliest here; 0 near ties, 0 wrong", 0),
        ([wrong], "3 of 4 published tokens are the likeliest here; 0 near ties, 1 wrong", 1),
    ):
        sets = {"sets": [{"near_tie_nats": 0.0, "entries": entries}]}
        monkeypatch.setattr(selftest, "read_published", lambda sets=sets: sets)
        code, out, _ = dslite("doctor", "--selftest")
        assert line in out
        assert code == expected


def _greedy(engine: Any, prompt: list[int], count: int) -> list[int]:
    from dslite.runtime.engine.request import Request
    from dslite.runtime.engine.sampling_params import SamplingParams

    *_, done = engine.generate(Request(prompt, SamplingParams(temperature=0, max_tokens=count)))
    return list(done.token_ids)


def test_examine_alone_prints_nothing(dslite: Dslite, capsys: pytest.CaptureFixture[str]) -> None:
    examine()
    assert capsys.readouterr() == ("", "")
