"""Saved latent entries: exact, or not used at all."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import load_engine, tiny_config, write_checkpoint

from dslite.model.config import ModelConfig
from dslite.runtime.cache.disk_cache import LatentDiskCache, fingerprint
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.events import Done
from dslite.runtime.weights.checkpoint import Checkpoint

CONFIG = ModelConfig.from_dict(tiny_config(kv_lora_rank=4, qk_rope_head_dim=2, num_hidden_layers=2))
IDS = [(7 * place) % 251 for place in range(2500)]


def filled(count: int, dtype: torch.dtype = torch.bfloat16, capacity: int = 4096) -> LatentKVCache:
    cache = LatentKVCache(CONFIG, capacity, dtype=dtype)
    entries = torch.randn(
        CONFIG.num_hidden_layers, count, CONFIG.latent_width, generator=torch.Generator().manual_seed(3)
    )
    cache.put(entries.to(dtype))
    return cache


def empty(dtype: torch.dtype = torch.bfloat16) -> LatentKVCache:
    return LatentKVCache(CONFIG, 4096, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 2500])
def test_saved_entries_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype, count: int) -> None:
    saved, store = filled(count, dtype), LatentDiskCache(tmp_path, "model")
    assert store.save("chat", IDS[:count], saved)
    loaded = empty(dtype)
    assert store.load("chat", IDS[:count], loaded) == count
    assert torch.equal(loaded.entries(0, count), saved.entries(0, count))


@settings(max_examples=60)
@given(st.integers(1, 2500), st.integers(0, 2500), st.integers(0, 2500))
def test_only_the_common_beginning_is_used(
    tmp_path_factory: pytest.TempPathFactory, count: int, same: int, known: int
) -> None:
    same = min(same, count)
    known = min(known, same)
    saved, store = filled(count), LatentDiskCache(tmp_path_factory.mktemp("latents"), "model")
    store.save("chat", IDS[:count], saved)
    other = IDS[:same] + [999] * 50
    loaded = empty()
    loaded.put(saved.entries(0, known))
    assert store.load("chat", other, loaded) == same
    assert torch.equal(loaded.entries(0, same), saved.entries(0, same))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_going_on_after_a_restart_equals_never_having_stopped(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config())
    request = Request(IDS[:300], SamplingParams(temperature=0, max_tokens=20), logprobs=3)
    store = LatentDiskCache(tmp_path / "latents", fingerprint(Checkpoint.open(folder), dtype))
    before = load_engine(folder, context=600, dtype=dtype, open_disk_cache=lambda: store)
    (first,) = [event for event in before.generate(request) if isinstance(event, Done)]
    before.save("chat")

    more = Request([*IDS[:300], *first.token_ids, 5, 6, 7], request.params, logprobs=3)
    after = load_engine(folder, context=600, dtype=dtype, open_disk_cache=lambda: store)
    assert after.resume("chat", more.prompt_ids) == len(before.prefix_cache.newest.ids)
    never_stopped = list(before.generate(more))
    resumed = list(after.generate(more))
    assert [event for event in resumed if hasattr(event, "logprob")] == [
        event for event in never_stopped if hasattr(event, "logprob")
    ]
    found, right = after.prefix_cache.newest, before.prefix_cache.newest
    assert found is not None
    assert right is not None
    assert found.ids == right.ids
    assert torch.equal(found.cache.entries(0, found.cache.length), right.cache.entries(0, right.cache.length))


def test_every_flipped_byte_gives_the_right_entries_or_none(tmp_path: Path) -> None:
    saved, store = filled(40), LatentDiskCache(tmp_path, "model")
    store.save("chat", IDS[:40], saved)
    file = tmp_path / "chat.safetensors"
    sound = file.read_bytes()
    used = 0
    logging.disable(logging.CRITICAL)
    for place in range(len(sound)):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 0x11]) + sound[place + 1 :])
        loaded = empty()
        count = store.load("chat", IDS[:40], loaded)
        assert torch.equal(loaded.entries(0, count), saved.entries(0, count)), f"byte {place}"
        used += count > 0
    logging.disable(logging.NOTSET)
    assert used < len(sound) // 20  # padding of the header may flip; little else


def test_a_file_cut_at_every_block_edge_is_ignored(tmp_path: Path) -> None:
    saved, store = filled(2500), LatentDiskCache(tmp_path, "model")
    store.save("chat", IDS, saved)
    file = tmp_path / "chat.safetensors"
    sound = file.read_bytes()
    block = CONFIG.num_hidden_layers * 1024 * CONFIG.latent_width * 2
    tail = len(sound) - 3 * 32 - saved.entries(0, 2500).nbytes
    for place in [0, 8, tail - 10_000, tail, tail + block, tail + 2 * block, len(sound) - 96, len(sound) - 1]:
        file.write_bytes(sound[:place])
        assert store.load("chat", IDS, empty()) == 0


def test_a_damaged_block_ends_what_is_used(tmp_path: Path) -> None:
    saved, store = filled(2500), LatentDiskCache(tmp_path, "model")
    store.save("chat", IDS, saved)
    file = tmp_path / "chat.safetensors"
    data = bytearray(file.read_bytes())
    block = CONFIG.num_hidden_layers * 1024 * CONFIG.latent_width * 2
    first = len(data) - 3 * 32 - saved.entries(0, 2500).nbytes
    data[first + block + 5] ^= 1
    file.write_bytes(data)
    loaded = empty()
    assert store.load("chat", IDS, loaded) == 1024
    assert torch.equal(loaded.entries(0, 1024), saved.entries(0, 1024))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", tiny_config())


def test_other_weights_of_the_same_size_and_date_are_told_apart(folder: Path) -> None:
    before = fingerprint(Checkpoint.open(folder), torch.bfloat16)
    (file,) = folder.glob("*.safetensors")
    date = file.stat()
    write_checkpoint(folder, tiny_config(), seed=2)
    os.utime(file, ns=(date.st_atime_ns, date.st_mtime_ns))
    assert file.stat().st_size == date.st_size
    assert fingerprint(Checkpoint.open(folder), torch.bfloat16) != before


def test_a_fingerprint_depends_on_dtype_layout_and_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dslite.runtime.cache import disk_cache

    def now(dtype: torch.dtype = torch.bfloat16) -> str:
        return fingerprint(Checkpoint.open(folder), dtype)

    seen = {now(), now(torch.float32)}
    assert now() in seen
    monkeypatch.setattr(disk_cache, "ROPE_LAYOUT", "halves")
    seen.add(now())
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes() + b" ")
    seen.add(now())
    assert len(seen) == 4


def test_entries_of_another_model_are_ignored(tmp_path: Path) -> None:
    LatentDiskCache(tmp_path, "one").save("chat", IDS[:40], filled(40))
    assert LatentDiskCache(tmp_path, "two").load("chat", IDS[:40], empty()) == 0
    assert LatentDiskCache(tmp_path, "one").load("chat", IDS[:40], empty(torch.float32)) == 0


def test_the_folder_never_exceeds_its_bound(tmp_path: Path) -> None:
    size = filled(200).entries(0, 200).nbytes
    store = LatentDiskCache(tmp_path, "model", most_bytes=4 * size)
    for number in range(8):
        assert store.save(f"chat{number}", IDS[:200], filled(200))
        os.utime(tmp_path / f"chat{number}.safetensors", (number, number))
        assert store.nbytes <= 4 * size + 4 * 2048
    kept = sorted(file.stem for file in tmp_path.glob("*.safetensors"))
    assert kept[-1] == "chat7"
    assert "chat0" not in kept
    assert not store.save("huge", IDS[:1000], filled(1000))


def test_using_a_file_keeps_it_longer(tmp_path: Path) -> None:
    size = filled(200).entries(0, 200).nbytes
    store = LatentDiskCache(tmp_path, "model", most_bytes=int(2.5 * size))
    for number in range(2):
        store.save(f"chat{number}", IDS[:200], filled(200))
        os.utime(tmp_path / f"chat{number}.safetensors", (number + 1, number + 1))
    store.load("chat0", IDS[:200], empty())
    store.save("chat2", IDS[:200], filled(200))
    assert sorted(file.stem for file in tmp_path.glob("*.safetensors")) == ["chat0", "chat2"]


@pytest.mark.parametrize("before", [None, 0o755])
def test_only_the_user_may_read_what_was_computed_of_conversations(tmp_path: Path, before: int | None) -> None:
    folder = tmp_path / "latents"
    if before is not None:
        folder.mkdir()
        folder.chmod(before)
    assert LatentDiskCache(folder, "model").save("chat", IDS[:10], filled(10))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o777 for file in folder.iterdir()] == [0o600]


def test_a_folder_that_takes_no_files_costs_only_the_saving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    store = LatentDiskCache(blocked / "latents", "model")
    assert not store.save("chat", IDS[:40], filled(40))
    assert "not saved" in caplog.text
    assert store.load("chat", IDS[:40], empty()) == 0


def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LatentDiskCache(tmp_path, "model")
    store.save("chat", IDS[:40], filled(40))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert not store.save("chat", IDS[:100], filled(100))
    assert [file.name for file in tmp_path.iterdir()] == ["chat.safetensors"]
    assert store.load("chat", IDS[:100], empty()) == 40


def test_a_folder_deleted_under_the_program_is_made_again(tmp_path: Path) -> None:
    store = LatentDiskCache(tmp_path / "latents", "model")
    store.save("chat", IDS[:40], filled(40))
    shutil.rmtree(tmp_path / "latents")
    assert store.load("chat", IDS[:40], empty()) == 0
    assert store.save("chat", IDS[:40], filled(40))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that saves one conversation again and again, each time longer."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from dslite.runtime.cache.disk_cache import LatentDiskCache\n"
        "from test_disk_cache import IDS, filled\n"
        "store = LatentDiskCache(Path(sys.argv[1]), 'model')\n"
        "cache = filled(2500)\n"
        "print('ready', flush=True)\n"
        "count = 0\n"
        "while True:\n"
        "    count = count % 2500 + 1\n"
        "    assert store.save('chat', IDS[:count], cache)\n"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is Unix's")
def test_a_kill_at_any_point_leaves_a_whole_file(tmp_path: Path, writer: "subprocess.Popen[str]") -> None:
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    saved, store = filled(2500), LatentDiskCache(tmp_path, "model")
    seen: set[int] = set()
    while len(seen) < 25:  # a second process reads while the first one writes
        loaded = empty()
        count = store.load("chat", IDS, loaded)
        assert torch.equal(loaded.entries(0, count), saved.entries(0, count))
        seen.add(count)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    loaded = empty()
    count = store.load("chat", IDS, loaded)
    assert count >= 1
    assert torch.equal(loaded.entries(0, count), saved.entries(0, count))


def test_two_processes_that_save_one_conversation_never_mix_their_entries(
    tmp_path: Path, writer: "subprocess.Popen[str]"
) -> None:
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    store, other = LatentDiskCache(tmp_path, "model"), IDS[::-1]  # another branch of the same conversation
    theirs, ours = filled(2500), empty()
    ours.put(filled(2500).entries(0, 900).flip(1))
    seen: set[int] = set()
    while len(seen) < 15:
        assert store.save("chat", other[:900], ours)
        for ids, truth in ((IDS, theirs), (other, ours)):
            loaded = empty()
            count = store.load("chat", ids, loaded)
            assert torch.equal(loaded.entries(0, count), truth.entries(0, count))
            seen.add(count)


def test_entries_are_written_once_for_one_state_of_a_conversation(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", tiny_config())
    store = LatentDiskCache(tmp_path / "latents", "model")
    engine = load_engine(folder, context=600, open_disk_cache=lambda: store)
    for _ in engine.generate(Request(IDS[:60], SamplingParams(temperature=0, max_tokens=3))):
        pass
    engine.save("chat")
    file = tmp_path / "latents" / "chat.safetensors"
    file.unlink()
    engine.save("chat")
    assert not file.exists()
    engine.save("another")
    assert (tmp_path / "latents" / "another.safetensors").exists()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    store = LatentDiskCache(tmp_path, "model")
    orphan, young = tmp_path / ".chat.1.tmp", tmp_path / ".chat.2.tmp"
    for file in (orphan, young):
        file.write_bytes(b"half")
    os.utime(orphan, (1, 1))
    store.save("chat", IDS[:40], filled(40))
    assert not orphan.exists()
    assert young.exists()  # somebody may be writing it
