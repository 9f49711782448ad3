"""Fixtures around the Hub on loopback: real huggingface_hub, no way to the real network, caches of their own."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from support.checkpoints import write_checkpoint
from support.hub_server import HubServer

LITE = "deepseek-ai/DeepSeek-V2-Lite-Chat"  # what `chat` stands for
BESIDE = {  # what the real repositories hold besides, and dslite does not read
    "README.md": b"---\nlicense: other\n---\n",
    "LICENSE": b"terms",
    "modeling_deepseek.py": b"raise SystemExit\n",
    "pytorch_model.bin": bytes(50_000),
}


@pytest.fixture(scope="session")
def lite_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small model in three shards, as its repository holds it."""
    folder = write_checkpoint(tmp_path_factory.mktemp("published"), shards=3)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())} | BESIDE


@pytest.fixture
def hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face home and a dslite cache of this test, for this process and those it starts."""
    home = tmp_path / "hf"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "DSLITE_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "HF_HOME": home,
        "DSLITE_CACHE_DIR": tmp_path / "dslite-cache",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return home


@pytest.fixture
def hub(hub_home: Path, lite_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that has the small model."""
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        server.publish(LITE, lite_files)
        yield server
        huggingface_hub.close_session()
