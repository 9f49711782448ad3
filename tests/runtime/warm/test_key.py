"""The key of an engine: which engines are found, and which files are the same."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.markov_model import write_markov_model
from support.warm import needs_engines

from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.warm.key import EngineKey

pytestmark = needs_engines


@pytest.fixture
def model(tmp_path: Path, runtime_dir: Path) -> ModelRef:
    return ModelRef("greeter", folder=write_markov_model(tmp_path / "greeter", {":": " ", " ": "h"}))


def test_the_same_model_and_settings_have_the_same_key(model: ModelRef) -> None:
    options = EngineOptions()
    assert EngineKey.of(model, options) == EngineKey.of(parse_model(str(model.folder)), replace(options, offline=True))


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(device="cpu"),
        EngineOptions(dtype="float32"),
        EngineOptions(weights="int8"),
        EngineOptions(ctx_size=100),
        EngineOptions(threads=1),
        EngineOptions(ram=10**9),
        EngineOptions(expert_slots=3),
    ],
)
def test_other_settings_are_another_engine(model: ModelRef, options: EngineOptions) -> None:
    assert EngineKey.of(model, options).name != EngineKey.of(model, EngineOptions()).name


@pytest.mark.parametrize("kind", ["CONFIG", "DATA", "CACHE"])
def test_other_folders_are_another_engine(model: ModelRef, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = EngineKey.of(model, EngineOptions()).name
    monkeypatch.setenv(f"DSLITE_{kind}_DIR", "/elsewhere")
    assert EngineKey.of(model, EngineOptions()).name != before


def test_changed_files_are_the_same_engine_with_other_files(model: ModelRef) -> None:
    """Also where a file is written over in place, with the length and the date that it had."""
    assert model.folder is not None
    before = EngineKey.of(model, EngineOptions())
    file = next(model.folder.glob("*.safetensors"))
    status, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    with file.open("r+b") as stream:
        stream.write(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = EngineKey.of(model, EngineOptions())
    assert after.name == before.name
    assert after.files != before.files
    shutil.copy(file, file.with_name("more.safetensors"))
    assert EngineKey.of(model, EngineOptions()).files != after.files
