"""Weights used as mapped whose file changes: no wrong token, an error that names the file, a process that lives."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import load_engine, tiny_config, write_checkpoint
from support.forward import random_ids

from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import CheckpointError
from dslite.runtime.events import Token
from dslite.runtime.weights import mapped_file
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.mapped_file import MappedFile

GREEDY = SamplingParams(temperature=0, max_tokens=12)
guarded = pytest.mark.skipif(mapped_file._library() is None, reason="the guard of mapped files was not compiled")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", tiny_config(), shards=2)


def second_file(folder: Path) -> Path:
    return folder / "model-00002-of-00002.safetensors"


def prompt(folder: Path) -> list[int]:
    return random_ids(20, Checkpoint.open(folder).config.vocab_size, seed=4)


def answer(running: Engine, ids: list[int]) -> list[int]:
    return [event.id for event in running.generate(Request(ids, GREEDY)) if isinstance(event, Token) and event.id]


def follow(running: Engine, ids: list[int], got: list[int], then: Callable[[], object]) -> None:
    """Answer into `got`, doing something behind each token."""
    for event in running.generate(Request(ids, GREEDY)):
        if isinstance(event, Token) and event.id is not None:
            got.append(event.id)
            then()


def touch(file: Path) -> None:
    status = file.stat()
    with file.open("r+b") as stream:
        stream.seek(status.st_size - 8)
        stream.write(b"\x00" * 8)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


@pytest.mark.parametrize("has_guard", [True, False])
@pytest.mark.parametrize("how", ["cut", "overwritten"])
def test_a_mapped_file_that_changes_between_two_tokens_is_told_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, has_guard: bool, how: str
) -> None:
    if not has_guard:
        monkeypatch.setattr(mapped_file, "_library", lambda: None)
    ids = prompt(folder)
    right = answer(load_engine(folder, eos_token_ids=[]), ids)
    running = load_engine(folder, eos_token_ids=[])
    got: list[int] = []

    def change() -> None:
        if how == "cut":
            os.truncate(second_file(folder), 5000)
        else:
            touch(second_file(folder))

    with pytest.raises(CheckpointError, match=f"{second_file(folder).name} was c") as told:
        follow(running, ids, got, lambda: change() if len(got) == 3 else None)
    assert got == right[:3]
    assert "start again" in told.value.remedy
    with pytest.raises(CheckpointError, match=second_file(folder).name):
        answer(running, ids)


CUT_WITHIN_A_PASS = """
import os, sys
from pathlib import Path
import torch
from dslite.model.attention import Span
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.errors import CheckpointError
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.weights.loader import load

folder, file = Path(sys.argv[1]), Path(sys.argv[2])
model = load(Checkpoint.open(folder), device=torch.device("cpu"), dtype=torch.float32)
cache = LatentKVCache(model.config, 64, dtype=torch.float32)
def cut(layers):
    if layers == 1:
        os.truncate(file, 0)

with torch.inference_mode():
    try:
        model.forward(torch.arange(9), [Span(cache, 9)], on_layer=cut)
    except CheckpointError as error:
        assert cache.length == 0
        print("told:", error.message)
"""


@guarded
def test_a_mapped_file_that_is_cut_within_a_pass_costs_the_pass_and_not_the_process(folder: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CUT_WITHIN_A_PASS, str(folder), str(second_file(folder))],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert f"told: {second_file(folder)} was cut to 0 of" in run.stdout


READ_ELSEWHERE = """
import mmap, os, sys
from pathlib import Path
from dslite.runtime.weights.mapped_file import MappedFile

guarded, other = Path(sys.argv[1]), Path(sys.argv[2])
file = MappedFile(guarded, guarded.stat().st_size)
with other.open("rb") as stream:
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
os.truncate(other, 0)
mapped[5]
"""


@guarded
def test_a_fault_outside_of_the_weights_ends_the_process_as_ever(tmp_path: Path) -> None:
    for name in ("weights", "other"):
        (tmp_path / name).write_bytes(b"x" * 9000)
    run = subprocess.run(
        [sys.executable, "-c", READ_ELSEWHERE, str(tmp_path / "weights"), str(tmp_path / "other")],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == -7  # SIGBUS


@guarded
def test_lost_pages_are_told_though_the_file_looks_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a disk that failed: the file's size and date are what they were."""
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 9000)
    file = MappedFile(path, 9000)
    os.truncate(path, 0)
    monkeypatch.setattr(file._file, "check", lambda: None)
    file.check()
    assert int(file.bytes[5000]) == 0
    with pytest.raises(CheckpointError, match="pages of it are lost"):
        file.check()


def test_a_file_cut_before_it_is_mapped_is_refused(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    file = second_file(folder)
    os.truncate(file, file.stat().st_size - 100)
    name = next(name for name, entry in checkpoint.entries.items() if entry.file == file)
    with pytest.raises(CheckpointError, match=file.name):
        checkpoint.tensor(name)
