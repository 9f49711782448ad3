"""`serve --disk-cache`: what was computed of a prompt outlives the server; without it nothing is written."""

import signal
from pathlib import Path

import pytest
from support.checkpoints import tiny_config, write_checkpoint
from support.serving import serving

PROMPT = "Tell me all that you know. " * 12


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("served"), tiny_config())


def cached_tokens(folder: Path, *flags: str, cache: Path) -> int:
    """Serve once, ask once, and stop; returns how much of the prompt was known."""
    with serving(folder, *flags, env={"DSLITE_CACHE_DIR": str(cache)}) as server:
        body = {"prompt": PROMPT, "max_tokens": 2, "temperature": 0}
        status, answer = server.request("POST", "/v1/completions", body)[:2]
        assert status == 200
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait() == 143
        found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found


def test_a_request_after_a_restart_reports_what_the_disk_held(tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--disk-cache", "100MB")
    assert cached_tokens(tiny_model, *flags, cache=tmp_path) == 0
    assert list((tmp_path / "prompts").glob("*.safetensors"))
    assert cached_tokens(tiny_model, *flags, cache=tmp_path) >= 300


def test_prompts_of_clients_are_not_written_by_default(tiny_model: Path, tmp_path: Path) -> None:
    assert cached_tokens(tiny_model, cache=tmp_path) == 0
    assert not list(tmp_path.rglob("*.safetensors"))
    assert cached_tokens(tiny_model, cache=tmp_path) == 0
