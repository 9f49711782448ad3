"""A sound folder: what is read, and that it is mapped and not copied."""

from pathlib import Path

import pytest
import torch
from support.checkpoints import load_model, random_tensors, tiny_config, write_checkpoint
from support.forward import new_cache, read
from support.memory import anonymous_bytes
from torch import Tensor

from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.events import Loading
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.loader import load

CPU = torch.device("cpu")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_tensor_is_the_one_that_was_saved(tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
    saved = random_tensors(tiny_config(), dtype=dtype)

    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, tensors=saved, shards=shards))

    assert checkpoint.entries.keys() == saved.keys() == parameter_shapes(checkpoint.config).keys()
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in saved.values())
    for name, tensor in saved.items():
        found = checkpoint.tensor(name)
        assert found.dtype == dtype
        assert torch.equal(found, tensor)


def test_shards_without_an_index_are_read_too(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, shards=3)
    (folder / "model.safetensors.index.json").unlink()

    assert len(Checkpoint.open(folder).entries) == len(random_tensors(tiny_config()))


def test_entries_say_where_in_its_file_a_tensor_lies(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, shards=2))

    for name, entry in checkpoint.entries.items():
        stored = entry.file.read_bytes()[entry.offset : entry.offset + entry.nbytes]
        assert stored == checkpoint.tensor(name).numpy().tobytes()


def model_tensors(model: Transformer) -> list[Tensor]:
    """Some of every kind: what lies before, in and behind the layers."""
    moe = model.layers[1].mlp
    return [
        model.network.embed_tokens,
        model.network.norm,
        model.network.lm_head,
        model.layers[0].self_attn.kv_b_proj,
        model.layers[2].input_layernorm,
        model.layers[0].mlp.down_proj,  # type: ignore[union-attr]
        moe.gate.weight,  # type: ignore[union-attr]
        moe.shared_experts.up_proj,  # type: ignore[union-attr]
        moe.experts.experts[5].gate_proj,  # type: ignore[union-attr]
    ]


def test_weights_are_used_where_they_are_mapped(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    model = load(checkpoint, device=CPU, dtype=torch.float32)
    mapped = checkpoint.tensor("model.embed_tokens.weight").untyped_storage()

    for tensor in model_tensors(model):
        assert tensor.untyped_storage().data_ptr() == mapped.data_ptr()
        assert (
            mapped.data_ptr() <= tensor.data_ptr() < mapped.data_ptr() + (tmp_path / "model.safetensors").stat().st_size
        )


def test_loading_and_answering_leave_little_memory_beside_the_file(tmp_path: Path) -> None:
    """33 MiB of weights, all of them read: a copy of them would show."""
    config = tiny_config(hidden_size=512, moe_intermediate_size=256, n_routed_experts=8, num_experts_per_tok=8)
    folder = write_checkpoint(tmp_path, config, tokenizer=False)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 32 * 2**20
    warm = write_checkpoint(tmp_path / "warm", tokenizer=False)
    read(load_model(warm), new_cache(load_model(warm), 8), [1, 2, 3])
    before = anonymous_bytes()

    model = load_model(folder)
    read(model, new_cache(model, 8), [1, 2, 3])

    assert anonymous_bytes() - before < size / 4


def test_a_conversion_of_dtype_is_made_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, dtype=torch.bfloat16)
    saved = random_tensors(tiny_config(), dtype=torch.bfloat16)

    assert load_model(folder, torch.bfloat16).dtype == torch.bfloat16
    wide = load_model(folder, torch.float32)
    assert torch.equal(wide.network.lm_head, saved["lm_head.weight"].float())


def test_loading_reports_rising_bytes_from_none_to_all(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path))
    told: list[Loading] = []

    load(checkpoint, device=CPU, dtype=torch.float32, report=told.append)

    assert (told[0].done_bytes, told[-1].done_bytes) == (0, checkpoint.nbytes)
    assert {event.total_bytes for event in told} == {checkpoint.nbytes}
    assert [event.done_bytes for event in told] == sorted(event.done_bytes for event in told)
