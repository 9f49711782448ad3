"""`dslite bench` as a user or a script meets it, on tiny networks: the form of its rows, not their speed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import tiny_config, write_checkpoint
from support.machines import GOLDEN
from typer.testing import CliRunner, Result

from dslite.app.cli import app
from dslite.model.config import ModelConfig
from dslite.model.quantized_layout import Weights
from dslite.runtime.diagnostics import benchmark
from dslite.runtime.errors import DsliteError, UsageError
from dslite.runtime.planning import bandwidth
from dslite.runtime.planning.footprint import Footprint

KEYS = "test depth tps_median tps_min tps_max bytes_per_token achieved_gbps read_bandwidth_gbps weights".split()


@pytest.fixture(autouse=True)
def memory_of_10_gbps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "measure_ram", lambda: 10e9)
    monkeypatch.setattr(bandwidth, "measure_ram", lambda: 10e9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, tiny_config())


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", "--device", "cpu", "--threads", "1", *map(str, arguments)])


def rows(*arguments: object) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = json.loads(run(*arguments, "-o", "json").stdout)
    return shown


def test_every_depth_has_every_prompt_length_and_the_decode(folder: Path) -> None:
    shown = rows("-m", folder, "--dtype", "float32", "-p", "3,9", "-n", 2, "-d", "0,5", "-r", 3)
    assert [(row["test"], row["depth"]) for row in shown] == [
        ("pp3", 0),
        ("pp9", 0),
        ("tg2", 0),
        ("pp3", 5),
        ("pp9", 5),
        ("tg2", 5),
    ]
    for row in shown:
        assert list(row) == KEYS
        assert 0 < row["tps_min"] <= row["tps_median"] <= row["tps_max"]
        assert row["read_bandwidth_gbps"] == 10.0
        assert row["achieved_gbps"] == pytest.approx(row["tps_median"] * row["bytes_per_token"] / 1e9, abs=2e-3)


def test_depth_costs_the_cached_rows(folder: Path) -> None:
    shallow, deep = rows("-m", folder, "--dtype", "float32", "-p", "", "-n", 1, "-d", "0,50", "-r", 1)
    latents = 3 * (32 + 8) * 4  # layers · (latent + rotary) · float32
    assert deep["bytes_per_token"] - shallow["bytes_per_token"] == 50 * latents


def test_random_weights_need_a_config_only_and_can_be_cut(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    both, one = (
        rows("-m", tmp_path, "--random-weights", "--layers", n, "-p", 4, "-n", 1, "-d", 0, "-r", 1) for n in (2, 1)
    )
    assert one[1]["bytes_per_token"] < both[1]["bytes_per_token"]


def test_sequences_decoded_together_share_the_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    flags = ("-m", tmp_path, "--random-weights", "-p", "", "-n", 2, "-d", 3, "-r", 1)
    [alone], [together] = rows(*flags), rows(*flags, "--batch-size", 4)
    assert together["bytes_per_token"] < alone["bytes_per_token"]


def test_the_defaults_measure_what_fits_the_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, tiny_config(max_position_embeddings=2100))
    quick = ("--dtype", "float32", "-n", 1, "-r", 1, "-o", "json")
    result = run("-m", tmp_path, *quick)
    assert result.exit_code == 0, result.exception
    shown = [(row["test"], row["depth"]) for row in json.loads(result.stdout)]
    assert shown == [("pp512", 0), ("pp2048", 0), ("tg1", 0)]
    result = run("-m", tmp_path, *quick, "--ctx-size", 600)
    assert [row["test"] for row in json.loads(result.stdout)] == ["pp512", "tg1"]


def test_a_prompt_that_is_too_long_is_named_alone_where_no_depth_was_given(folder: Path) -> None:
    result = run("-m", folder, "-p", 999_999_999)
    assert isinstance(result.exception, UsageError)
    assert "--prompt-tokens 999999999 needs" in str(result.exception)
    assert "--depth" not in str(result.exception) + str(result.exception.remedy)


def test_the_table_shows_each_row(folder: Path) -> None:
    result = run("-m", folder, "--dtype", "float32", "-p", 2, "-n", 1, "-d", 0, "-r", 1)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["test", "pp2", "tg1"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("-p", "many"), "--prompt-tokens"),
        (("-p", "0"), "--prompt-tokens"),
        (("-d", "-1"), "--depth"),
        (("-r", "0"), "--repeat"),
        (("--batch-size", "0"), "--batch-size"),
        (("-p", "", "-n", "0"), "nothing to measure"),
        (("--layers", "2"), "--layers"),
        (("-p", "100", "--ctx-size", "50"), "--ctx-size"),
        (("--random-weights", "--layers", "4"), "--layers"),
    ],
)
def test_a_wrong_flag_is_a_usage_error_that_names_it(folder: Path, flags: tuple[str, ...], named: str) -> None:
    result = run("-m", folder, *flags)
    assert isinstance(result.exception, UsageError)
    assert named in str(result.exception)


def test_too_many_random_weights_are_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_bytes((GOLDEN / "deepseek-v2-lite.config.json").read_bytes())
    monkeypatch.setattr(benchmark, "random_model", lambda *_: pytest.fail("weights were made"))
    result = run("-m", tmp_path, "--random-weights", "--ram", "12GiB", "-d", 0)
    assert isinstance(result.exception, DsliteError)
    assert result.exception.exit_code == 3


def test_one_token_reads_what_the_plan_says_and_many_read_everything() -> None:
    config = ModelConfig.from_dict(json.loads((GOLDEN / "deepseek-v2-lite.config.json").read_text()))
    size = Footprint(config, "bfloat16")
    assert benchmark.bytes_per_token(config, torch.bfloat16, 1) == size.read_per_token == 4_902_874_112
    many = benchmark.bytes_per_token(config, torch.bfloat16, 4096) * 4096
    assert many == pytest.approx(size.weights - size.embedding, rel=1e-2)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_one_token_of_quantized_weights_reads_what_the_plan_says(weights: Weights) -> None:
    config = ModelConfig.from_dict(json.loads((GOLDEN / "deepseek-v2-lite.config.json").read_text()))
    planned = Footprint(config, "bfloat16", weights).read_per_token
    assert benchmark.bytes_per_token(config, torch.bfloat16, 1, weights) == planned < 2_700_000_000
