"""Checking the bytes of a model."""

import json
import os
import threading
from pathlib import Path

import pytest
from support.checkpoints import write_checkpoint
from support.hub_server import HubServer, blob_name

from dslite.runtime.downloads.download import pull
from dslite.runtime.downloads.hub import locate, parse_model
from dslite.runtime.downloads.retry import Retry
from dslite.runtime.downloads.verified import VerifiedFiles
from dslite.runtime.downloads.verify import CheckedFile, complaint, verify
from dslite.runtime.events import Downloading

SHARD = "model-00002-of-00003.safetensors"
CHAT = parse_model("chat")


@pytest.fixture
def folder(hub: HubServer) -> Path:
    list(pull(CHAT, retry=Retry(first_s=0.0)))
    return locate(CHAT)


def checked(folder: Path, ref: object = CHAT, **options: object) -> dict[str, CheckedFile]:
    found: list[CheckedFile] = []
    for _ in verify(ref, folder, found, **options):  # type: ignore[arg-type]
        pass
    return {file.name: file for file in found}


def test_every_file_of_a_pulled_model_is_good_and_nobody_is_asked(hub: HubServer, folder: Path) -> None:
    hub.seen.clear()
    found = checked(folder)
    assert set(found) == {file.name for file in folder.iterdir()}
    assert {file.state for file in found.values()} == {"good"}
    assert complaint(CHAT, list(found.values())) is None
    assert hub.seen == []


@pytest.mark.parametrize("name", [SHARD, "tokenizer.json"])
def test_one_flipped_bit_is_found_and_the_next_pull_repairs_it(
    hub: HubServer, folder: Path, lite_files: dict[str, bytes], name: str
) -> None:
    blob = (folder / name).resolve()
    stamp = blob.stat()
    data = bytearray(lite_files[name])
    data[len(data) // 2] ^= 0x10
    blob.write_bytes(data)
    os.utime(blob, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a failing disk would: nothing else changes
    found = checked(folder)
    assert [file.name for file in found.values() if file.state != "good"] == [name]
    error = complaint(CHAT, list(found.values()))
    assert error is not None
    assert error.message == f"{name} is damaged: its hash is {found[name].actual}"
    assert (error.remedy, error.exit_code) == ("fetch it again: dslite model pull chat", 3)
    sent = dict(hub.sent)
    list(pull(CHAT))
    assert (folder / name).read_bytes() == lite_files[name]
    assert {other for other in hub.sent if hub.sent[other] != sent[other]} == {name}


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / SHARD).unlink()
    found = checked(folder)
    assert found[SHARD].state == "missing"
    assert str(complaint(CHAT, list(found.values()))) == f"{SHARD} is missing"


def test_progress_ends_at_the_size_of_the_model(folder: Path) -> None:
    events = list(verify(CHAT, folder, []))
    total = sum(file.stat().st_size for file in folder.iterdir())
    assert isinstance(events[-1], Downloading)
    assert (events[-1].all_done_bytes, events[-1].all_total_bytes) == (total, total)


def test_a_cancelled_check_says_nothing(folder: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    assert checked(folder, cancel=cancel) == {}


def test_copies_in_place_of_links_are_compared_with_the_hub(hub: HubServer, folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).unlink()
    (folder / SHARD).write_bytes(data)
    assert checked(folder)[SHARD].state == "good"
    assert checked(folder, offline=True)[SHARD].state == "unknown"
    (folder / SHARD).write_bytes(data[:-1] + b"\0")
    assert checked(folder)[SHARD].state == "damaged"


def test_a_folder_is_checked_by_what_its_download_left_beside_it(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model")
    ref = parse_model(str(folder))
    assert checked(folder, ref)["model.safetensors"].state == "unknown"
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    etag = blob_name("model.safetensors", (folder / "model.safetensors").read_bytes())
    (notes / "model.safetensors.metadata").write_text(f"{'1' * 40}\n{etag}\n1700000000.0\n")
    assert checked(folder, ref)["model.safetensors"].state == "good"
    config = json.loads((folder / "config.json").read_text())
    assert checked(folder, ref)["config.json"].state == "unknown", config["model_type"]


def test_two_processes_that_check_files_keep_both_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSLITE_CACHE_DIR", str(tmp_path / "cache"))
    one, two = tmp_path / "one", tmp_path / "two"
    for file in (one, two):
        file.write_text("x")
    first, second = VerifiedFiles.read(), VerifiedFiles.read()
    first.add(one)
    first.write()
    second.add(two)
    second.write()
    third = VerifiedFiles.read()
    assert one in third
    assert two in third
    third.discard(one)
    third.write()
    assert one not in VerifiedFiles.read()
    assert two in VerifiedFiles.read()
