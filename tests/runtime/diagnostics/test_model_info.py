"""What a model is made of."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.checkpoints import tiny_config, write_checkpoint
from support.hub_server import HubServer

from dslite.model.config import ModelConfig
from dslite.model.errors import ConfigError
from dslite.runtime.diagnostics.model_info import describe, part_bytes
from dslite.runtime.downloads.hub import parse_model
from dslite.runtime.errors import ModelUnavailableError
from dslite.runtime.weights.checkpoint import Checkpoint

GOLDEN = Path(__file__).parents[2] / "golden"
# Sizes of the four weight files of deepseek-ai/DeepSeek-V2-Lite at revision 604d5664, as the Hub lists them.
LITE_SHARDS = {
    "model-00001-of-000004.safetensors": 8_594_887_408,
    "model-00002-of-000004.safetensors": 8_591_757_448,
    "model-00003-of-000004.safetensors": 8_590_718_520,
    "model-00004-of-000004.safetensors": 5_636_263_200,
}


def test_the_parts_of_lite_are_known_to_the_byte() -> None:
    lite = ModelConfig.from_dict(json.loads((GOLDEN / "deepseek-v2-lite.config.json").read_text()))
    parts = part_bytes(lite)
    assert parts == {
        "embedding": 2 * 102_400 * 2048,
        "attention": 27 * 2 * (16 * 192 * 2048 + 576 * 2048 + 16 * 256 * 512 + 2048 * 2048),
        "dense": 2 * 3 * 2048 * 10_944,
        "shared": 26 * 2 * 3 * 2048 * 2816,
        "routed": 26 * 64 * 17_301_504,
        "gate": 26 * 2 * 64 * 2048,
        "norms": 2 * (27 * (2 * 2048 + 512) + 2048),
        "head": 2 * 102_400 * 2048,
    }
    assert sum(parts.values()) == 31_412_968_448


def test_lite_is_described_before_any_download(hub: HubServer, lite_files: dict[str, bytes]) -> None:
    """The published totals: 15,706,484,224 parameters, 31,412,968,448 bytes, files of 31,413,626,576."""
    config = (GOLDEN / "deepseek-v2-lite.config.json").read_bytes()
    small = {name: data for name, data in lite_files.items() if "safetensors" not in name}
    hub.publish("deepseek-ai/DeepSeek-V2-Lite", small | {"config.json": config})
    hub.repos["deepseek-ai/DeepSeek-V2-Lite"].declared = {name: (size, "0" * 64) for name, size in LITE_SHARDS.items()}
    found = describe(parse_model("base"))
    assert found.folder is None
    assert found.parameters == 15_706_484_224
    assert found.weights_bytes == 31_412_968_448
    assert found.file_bytes == 31_413_626_576
    assert found.kv_bytes_per_token == 31_104
    assert found.read_bytes_per_token == 4_902_874_112
    assert found.config.max_position_embeddings == 163_840
    assert [seen.path for seen in hub.seen if "safetensors" in seen.path] == []


def test_the_published_models_are_described_offline(hub_home: Path) -> None:
    found = describe(parse_model("coder"), offline=True)
    assert found.parameters == 15_706_484_224
    assert found.file_bytes is None
    assert found.licence is not None
    assert "DeepSeek-Coder-V2" in found.licence.url


def test_another_repository_is_described_from_its_config(hub: HubServer, lite_files: dict[str, bytes]) -> None:
    commit = hub.publish("some/model", lite_files)
    found = describe(parse_model("some/model"))
    assert found.commit == commit
    assert found.file_bytes == sum(len(data) for name, data in lite_files.items() if name.endswith(".safetensors"))
    with pytest.raises(ModelUnavailableError):
        describe(parse_model("some/other"))


def test_a_folder_is_described_by_its_own_files(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", shards=2)
    found = describe(parse_model(str(folder)), offline=True)
    assert found.folder == folder
    assert found.file_bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert found.weights_bytes * 2 == Checkpoint.open(folder).nbytes  # the test's weights are float32


def test_a_folder_with_a_config_alone_is_described(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    assert describe(parse_model(str(tmp_path))).file_bytes is None
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(model_type="llama")))
    with pytest.raises(ConfigError, match="model_type"):
        describe(parse_model(str(tmp_path)))


@pytest.mark.parametrize(("offline", "why"), [(True, "--offline"), (False, "HF_HUB_OFFLINE")])
def test_what_forbids_the_network_is_named(
    hub_home: Path, monkeypatch: pytest.MonkeyPatch, offline: bool, why: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match=f"{why} forbids it"):
        describe(parse_model("some/model"), offline=offline)
