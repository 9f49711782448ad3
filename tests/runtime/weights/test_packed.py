"""Packed weights: equal to their dequantized checkpoint in every placement; faults are found; packing goes on."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag

import pytest
import torch
from support.checkpoints import tiny_config, write_checkpoint
from support.machines import machine
from support.oracle import Oracle

from dslite.model.attention import Span
from dslite.model.quantized import QuantizedMatrix
from dslite.model.quantized_layout import Weights
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.downloads.packed import PACKED, packed_folder, packed_models, remove_packed
from dslite.runtime.engine_loader import open_engine
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import CheckpointError, DsliteError, ModelUnavailableError, UsageError
from dslite.runtime.locked_file import file_lock
from dslite.runtime.planning.device_plan import PlanRequest, Source
from dslite.runtime.planning.footprint import Footprint
from dslite.runtime.planning.placement import plan
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.dequantizing import write_dequantized
from dslite.runtime.weights.loader import expert_cache, load
from dslite.runtime.weights.open_checkpoint import open_checkpoint
from dslite.runtime.weights.packing import JOURNAL, PART, PackingJob
from dslite.runtime.weights.quantized_checkpoint import PackedCheckpoint, QuantizingCheckpoint

CPU = torch.device("cpu")
IDS = [5, 80, 17, 33, 62, 9, 41, 20]
FORMATS: tuple[Weights, ...] = ("int8", "int4")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelRef:
    monkeypatch.setenv("DSLITE_CACHE_DIR", str(tmp_path / "cache"))
    folder = write_checkpoint(tmp_path / "model", tiny_config(num_hidden_layers=3), shards=2)
    return ModelRef(str(folder), folder=folder)


def pack(ref: ModelRef, weights: Weights = "int8") -> Path:
    assert ref.folder is not None
    folder = PackingJob.of(ref, ref.folder, weights).run()
    assert folder is not None
    return folder


def logits(model: Transformer) -> torch.Tensor:
    latents = LatentKVCache(model.config, 64, dtype=model.dtype, device=CPU)
    with torch.inference_mode():
        return model.logits(model.forward(torch.tensor(IDS), [Span(latents, len(IDS))]))


def flip(file: Path, place: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("weights", FORMATS)
def test_packed_weights_in_float32_equal_transformers_on_the_dequantized_checkpoint(
    source: ModelRef, tmp_path: Path, weights: Weights
) -> None:
    packed = PackedCheckpoint.open(pack(source, weights))
    write_dequantized(packed, tmp_path / "out")
    ours = logits(load(packed, device=CPU, dtype=torch.float32)).log_softmax(-1)
    theirs = Oracle(tmp_path / "out").logprobs(IDS)
    assert (ours - theirs).abs().max() < 5e-5


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("place", ["disk", "host", "mapped"])
def test_slots_of_packed_experts_compute_what_resident_ones_do(
    source: ModelRef, place: Source, weights: Weights
) -> None:
    packed = PackedCheckpoint.open(pack(source, weights))
    resident = logits(load(packed, device=CPU, dtype=torch.float32))
    request = PlanRequest("float32", expert_slots=packed.config.num_experts_per_tok, weights=weights)
    made = replace(plan(machine(0, 64), packed.config, request), source=place)
    model = load(packed, device=CPU, dtype=torch.float32, plan=made)
    assert (logits(model) - resident).abs().max() < 1e-5
    cache = expert_cache(model)
    assert cache is not None
    assert cache.arena.nbytes == (made.slots * 2 + made.spare) * made.slot_bytes


@pytest.mark.parametrize("weights", FORMATS)
def test_weights_that_are_quantized_while_they_load_equal_packed_ones(source: ModelRef, weights: Weights) -> None:
    loose = open_checkpoint(source, weights, pack=False)
    assert isinstance(loose, QuantizingCheckpoint)
    packed = PackedCheckpoint.open(pack(source, weights))
    models = [load(checkpoint, device=CPU, dtype=torch.float32) for checkpoint in (loose, packed)]
    assert [model.weights for model in models] == [weights, weights]  # what reads are counted by
    assert torch.equal(*map(logits, models))


@pytest.mark.parametrize("weights", FORMATS)
def test_the_footprint_counts_what_the_weights_take(source: ModelRef, weights: Weights) -> None:
    packed = PackedCheckpoint.open(pack(source, weights))
    names = [name for name in Checkpoint.open(source.folder).entries]  # type: ignore[arg-type]
    found = sum(packed.weight(name).nbytes for name in names)
    plain = [name for name in names if not isinstance(packed.weight(name), QuantizedMatrix)]
    item = packed.weight(plain[0]).element_size()  # type: ignore[union-attr]
    assert Footprint(packed.config, {2: "bfloat16", 4: "float32"}[item], weights).weights == found


def test_a_packed_model_runs_without_its_source_and_is_listed_and_removed(source: ModelRef) -> None:
    folder = pack(source)
    assert folder.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(source.folder)  # type: ignore[arg-type]
    assert open_engine(source, EngineOptions(device="cpu", weights="int8")).model.config.num_hidden_layers == 3
    assert [(found.model, found.weights, found.complete) for found in packed_models()] == [(source.key, "int8", True)]
    assert remove_packed(source) > 0
    assert not list(packed_models())


def test_weights_that_are_not_packed_name_the_command(source: ModelRef) -> None:
    with pytest.raises(ModelUnavailableError) as error:
        open_engine(source, EngineOptions(device="cpu", weights="int4"))
    assert "dslite model pack" in error.value.remedy
    assert "--no-pack" in error.value.remedy


def test_a_flipped_byte_is_found_by_verify_and_when_a_slot_reads_it(source: ModelRef) -> None:
    file = pack(source) / PACKED
    entry = PackedCheckpoint.open(file.parent).entries["model.layers.1.mlp.experts.2"]
    flip(file, entry.offset + 100)
    packed = PackedCheckpoint.open(file.parent)
    with pytest.raises(CheckpointError, match=f"the block at byte {entry.offset} "):
        packed.verify()
    request = PlanRequest("float32", expert_slots=packed.config.num_experts_per_tok, weights="int8")
    made = replace(plan(machine(0, 64), packed.config, request), source="disk")
    model = load(packed, device=CPU, dtype=torch.float32, plan=made)
    cache = expert_cache(model)
    assert cache is not None
    with pytest.raises(CheckpointError, match="another checksum"):
        cache.load(1, 2)


@pytest.mark.parametrize("damage", ["cut", "header", "metadata", "longer"])
def test_a_damaged_file_is_found_when_it_is_opened(source: ModelRef, damage: str) -> None:
    file = pack(source) / PACKED
    data = file.read_bytes()
    changed = {
        "cut": data[:-5000],
        "header": data[:300] + bytes([data[300] ^ 1]) + data[301:],
        "metadata": data.replace(b'"weights": "int8"', b'"weights": "int4"', 1),
        "longer": data + b"x",
    }
    file.write_bytes(changed[damage])
    with pytest.raises(CheckpointError):
        open_checkpoint(source, "int8")


def test_changed_sources_are_noticed_and_packed_anew(source: ModelRef) -> None:
    pack(source)
    shard = sorted(source.folder.glob("*.safetensors"))[0]  # type: ignore[union-attr]
    os.utime(shard, (1, 1))
    with pytest.raises(CheckpointError, match="have changed since"):
        open_checkpoint(source, "int8")
    pack(source)
    assert open_checkpoint(source, "int8").weights == "int8"


def test_packing_that_was_ended_goes_on_and_ends_with_the_same_bytes(source: ModelRef) -> None:
    whole = (pack(source) / PACKED).read_bytes()
    remove_packed(source)
    cancel = Flag()
    seen: list[int] = []

    def report(done: int, total: int) -> None:
        seen.append(done)
        if done > total // 2:
            cancel.set()

    job = PackingJob.of(source, source.folder, "int8")  # type: ignore[arg-type]
    assert job.run(report, cancel) is None
    folder = packed_folder(source, "int8")
    assert not (folder / PACKED).exists()
    with (folder / JOURNAL).open("ab") as notes:
        notes.write(b'["model.laye')  # what a killed process leaves
    assert not next(packed_models()).complete
    begun: list[int] = []
    again = PackingJob.of(source, source.folder, "int8")  # type: ignore[arg-type]
    assert again.run(lambda done, _: begun.append(done)) == folder
    assert begun[0] > 0
    assert (folder / PACKED).read_bytes() == whole
    assert not (folder / PART).exists()
    assert not (folder / JOURNAL).exists()


def test_a_full_disk_is_said_before_anything_is_written(source: ModelRef) -> None:
    job = replace(PackingJob.of(source, source.folder, "int8"), free=1000)  # type: ignore[arg-type]
    with pytest.raises(DsliteError, match="are free"):
        job.run()
    assert not job.folder.exists()


def test_two_that_pack_at_once_do_not_write_one_file(source: ModelRef) -> None:
    job = PackingJob.of(source, source.folder, "int8")  # type: ignore[arg-type]
    with file_lock(job.folder / PACKED), pytest.raises(DsliteError, match="another process is packing"):
        job.run()


def test_dequantized_weights_are_not_written_over_anything(source: ModelRef, tmp_path: Path) -> None:
    packed = PackedCheckpoint.open(pack(source))
    with pytest.raises(UsageError, match="is there already"):
        write_dequantized(packed, tmp_path)
