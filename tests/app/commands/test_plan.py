"""`dslite plan` as a user or a script meets it, on a machine that is described: the figures are the same everywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support.machines import GOLDEN, machine
from typer.testing import CliRunner, Result

from dslite.app.cli import app
from dslite.runtime.downloads.hub import parse_model
from dslite.runtime.downloads.model_config import config_of
from dslite.runtime.errors import ModelUnavailableError
from dslite.runtime.planning import machine as machine_module
from dslite.runtime.planning.device_plan import PlanRequest
from dslite.runtime.planning.fit import fit
from dslite.runtime.units import parse_size


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has 64 GiB of memory and no GPU."""
    spec = machine(0, 64, pcie=0, gpu=0, host=70)
    monkeypatch.setattr(machine_module, "machine", lambda *_, **__: spec)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of which only config.json is here."""
    (tmp_path / "config.json").write_bytes((GOLDEN / "deepseek-v2-lite.config.json").read_bytes())
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def plan_json(*arguments: object) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(run(*arguments, "-o", "json").stdout)
    return shown


@pytest.mark.usefixtures("here")
def test_json_has_the_contracts_keys_and_figures(folder: Path) -> None:
    shown = plan_json("-m", folder, "--device", "cuda", "--vram", "24GiB", "--ctx-size", 32768)
    expected = {
        "device": "cuda",
        "fits": True,
        "reason": None,
        "parameters": 15706484224,
        "weights_bytes": 31412968448,
        "kv_bytes_per_token": 31104,
        "kv_bytes": 31104 * 32768,
        "expert_slots_per_layer": 44,
        "experts_in_ram_per_layer": 20,
        "experts_on_disk_per_layer": 0,
        "max_context": 32768,
        "bytes_read_per_token": 4902874112,
    }
    assert {key: shown[key] for key in expected} == expected
    assert {"model", "resident_bytes", "workspace_bytes", "vram_bytes", "ram_bytes"} < shown.keys()
    assert shown["predicted_decode_tps"] > 0
    assert shown["bound"] in ("gpu-bandwidth", "pcie", "ram-bandwidth", "disk", "compute")


@pytest.mark.usefixtures("here")
def test_what_does_not_fit_exits_with_3_and_names_the_nearest(folder: Path) -> None:
    result = run("-m", folder, "--device", "cuda", "--vram", "6GiB", "--ctx-size", 32768, "-o", "json")
    assert result.exit_code == 3
    shown = json.loads(result.stdout)
    assert shown["fits"] is False
    assert "GPU memory" in shown["reason"]
    assert shown["nearest"]["fits"] is True
    assert shown["nearest"]["max_context"] < 32768


@pytest.mark.usefixtures("here")
def test_described_bandwidths_change_the_prediction(folder: Path) -> None:
    base = ["-m", folder, "--device", "cuda", "--vram", "16GiB"]
    slow = plan_json(*base, "--ram-bandwidth", 15, "--pcie", 6)
    fast = plan_json(*base, "--ram-bandwidth", 15, "--pcie", 50)
    assert slow["bound"] == "ram-bandwidth"
    assert fast["miss"] == "fetch"
    assert fast["predicted_decode_tps"] > slow["predicted_decode_tps"]


@pytest.mark.usefixtures("here")
def test_a_short_name_needs_no_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    shown = plan_json("-m", "chat", "--device", "cpu", "--offline")
    assert shown["model"] == "chat"
    assert shown["parameters"] == 15706484224
    assert (shown["expert_slots_per_layer"], shown["vram_bytes"]) == (64, 0)


@pytest.mark.usefixtures("here")
def test_the_table_says_what_lives_where(folder: Path) -> None:
    text = run("-m", folder, "--device", "cuda", "--vram", "24GiB").stdout
    assert "44 of 64 experts per layer" in text
    assert "20 experts per layer, computed there" in text
    assert "predicted" in text


@pytest.mark.usefixtures("here")
def test_a_token_is_told_in_bytes_launches_and_a_share_of_the_bound(folder: Path) -> None:
    base = ["-m", folder, "--device", "cuda", "--vram", "40GiB", "--gpu-bandwidth", 1555]
    shown = plan_json(*base)
    assert shown["launches_per_token"] == 218
    bound = 1555e9 / (4902874112 - 2 * 2048)  # without the row of the embedding
    assert shown["predicted_share_of_bound"] == pytest.approx(shown["predicted_decode_tps"] / bound, abs=1e-3)
    text = run(*base).stdout
    assert "4.90 GB  218 kernel launches" in text
    assert "predicted           224.0 tok/s, bound by the GPU's memory: 71% of what that alone would allow" in text
    assert plan_json("-m", folder, "--device", "cpu")["launches_per_token"] == 0


@pytest.mark.usefixtures("here")
def test_a_gpu_that_is_not_here_must_be_described(folder: Path) -> None:
    result = run("-m", folder, "--device", "cuda")
    assert result.exception is not None
    assert "describe one" in getattr(result.exception, "remedy", "")


@pytest.mark.parametrize(
    "wrong", [("--pcie", "0"), ("--miss", "drop"), ("--vram", "many"), ("--expert-slots", "5"), ("-o", "xml")]
)
@pytest.mark.usefixtures("here")
def test_what_is_out_of_range_is_a_usage_error(folder: Path, wrong: tuple[str, str]) -> None:
    result = run("-m", folder, *wrong)
    assert getattr(result.exception, "exit_code", None) == 2


def test_a_gpu_that_is_not_here_is_in_a_usual_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one is small and slow: nothing of that is said of the other, unless the flags say it."""
    small = machine(0, 20, pcie=0, gpu=0, host=12)
    monkeypatch.setattr(machine_module, "machine", lambda *_, **__: small)
    base = ["-m", folder, "--vram", "24GiB"]
    shown = plan_json(*base)
    assert shown["machine"]["ram_free"] == 64 * 2**30
    assert shown["machine"]["ram_bandwidth"] == 70_000_000_000
    assert shown["machine"]["pcie_bandwidth"] == 25_000_000_000
    assert (shown["miss"], shown["bound"]) == ("compute", "ram-bandwidth")
    assert shown["predicted_decode_tps"] >= 40
    assert shown["predicted_prefill_tps"] >= 2000
    told = run(*base).stdout
    assert (
        "for a machine with  69 GB of host memory at 70 GB/s, disk 2.3 GB/s, GPU memory 936 GB/s, PCIe 25 GB/s" in told
    )
    slow = plan_json(*base, "--ram-bandwidth", 12)
    assert (slow["miss"], slow["bound"]) == ("fetch", "pcie")
    own = plan_json("-m", folder, "--device", "cpu")
    assert own["machine"]["ram_bandwidth"] == 12_000_000_000


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("ram", ["24GiB", "20GiB", "12GiB", "32GiB", "64GiB"])
@pytest.mark.parametrize("vram", ["8GiB", "16GiB", "24GiB"])
def test_host_memory_holds_the_experts_that_the_plan_puts_there(folder: Path, ram: str, vram: str) -> None:
    shown = plan_json("-m", folder, "--device", "cuda", "--vram", vram, "--ram", ram)
    expert = 3 * 2048 * 1408 * 2
    assert shown["ram_bytes"] >= shown["experts_in_ram_per_layer"] * 26 * expert
    if shown["fits"]:
        assert shown["ram_bytes"] <= parse_size(ram)


@pytest.mark.parametrize("ram", ["1", "100MB", "2GiB"])
def test_a_limit_that_is_too_small_is_the_remedy(folder: Path, ram: str) -> None:
    config = config_of(parse_model(str(folder)), offline=True)
    with pytest.raises(ModelUnavailableError) as caught:
        fit(config, "cpu", PlanRequest(ram=parse_size(ram)))
    assert "raise --ram" in caught.value.remedy
    assert "close other programs" not in caught.value.remedy


@pytest.mark.usefixtures("here")
def test_the_three_formats_are_shown_side_by_side(folder: Path) -> None:
    base = ["-m", folder, "--device", "cuda", "--vram", "24GiB"]
    text = run(*base).stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "44 of 64" in rows["bfloat16"]
    assert "64 of 64" in rows["int8"]
    assert "about 0.8 %" in rows["int4"]
    listed = json.loads(run(*base, "--weights", "all", "-o", "json").stdout)
    assert [made["weights"] for made in listed] == ["bfloat16", "int8", "int4"]
    assert plan_json(*base, "--weights", "int8")["expert_slots_per_layer"] == 64
