"""Damaged folders: each is one clear error that names the file, before a single weight is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import load_engine, random_tensors, tiny_config, write_checkpoint, write_weights

from dslite.runtime.downloads.layout import INDEX
from dslite.runtime.engine.engine import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import CheckpointError, ConfigError, DsliteError, NumericsError
from dslite.runtime.events import Done, Event, Token
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.safetensors_file import read_header

# Small enough that every byte of its header can be flipped in turn: 21 tensors.
SMALL = tiny_config(
    num_hidden_layers=1, first_k_dense_replace=0, n_routed_experts=2, num_experts_per_tok=1, n_shared_experts=1
)
NAME = "model.layers.0.mlp.experts.1.up_proj.weight"


def refused(folder: Path, *words: str) -> None:
    """Opening the folder is one error with a remedy, in whose message all of the words stand."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    for word in words:
        assert word in caught.value.message
    assert caught.value.remedy
    assert caught.value.exit_code == 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, SMALL, tokenizer=False)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path, SMALL, tokenizer=False, shards=3)


# Tensors


def test_a_missing_tensor_is_named(folder: Path) -> None:
    tensors = random_tensors(SMALL)
    del tensors[NAME]
    write_weights(folder, tensors)
    refused(folder, str(folder), NAME, "missing")


def test_an_extra_tensor_is_named(folder: Path) -> None:
    write_weights(folder, random_tensors(SMALL) | {"model.layers.9.bias": torch.zeros(3)})
    refused(folder, "model.safetensors", "model.layers.9.bias")


@pytest.mark.parametrize("shape", [(32, 97), (96, 32), (32 * 96,), (1, 32, 96), (0, 96), ()])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path, shape: tuple[int, ...]) -> None:
    write_weights(folder, random_tensors(SMALL) | {NAME: torch.zeros(shape)})
    refused(folder, "model.safetensors", NAME, str(list(shape)), "[32, 96]")


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float16, "F16"), (torch.float64, "F64"), (torch.int8, "I8"), (torch.float8_e4m3fn, "F8")]
)
def test_a_tensor_of_a_type_that_is_not_read_is_named(folder: Path, dtype: torch.dtype, name: str) -> None:
    write_weights(folder, random_tensors(SMALL) | {NAME: torch.zeros(32, 96).to(dtype)})
    refused(folder, "model.safetensors", NAME, name)


def test_a_tensor_in_two_files_is_named_with_both(folder: Path) -> None:
    (folder / "more.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    refused(folder, "model.safetensors", "more.safetensors", "again")


# The index


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    change(raw)
    (folder / INDEX).write_text(json.dumps(raw), encoding="utf-8")


def test_an_index_that_names_a_missing_file_says_which(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refused(sharded, "model-00002-of-00003.safetensors", "missing")


def test_an_index_that_puts_a_tensor_into_another_file_is_refused(sharded: Path) -> None:
    owner = json.loads((sharded / INDEX).read_text(encoding="utf-8"))["weight_map"]
    other = next(file for file in owner.values() if file != owner[NAME])
    change_index(sharded, lambda raw: raw["weight_map"].update({NAME: other}))
    refused(sharded, INDEX, NAME, other)


def test_a_tensor_that_the_index_does_not_know_is_named(sharded: Path) -> None:
    change_index(sharded, lambda raw: raw["weight_map"].pop(NAME))
    refused(sharded, NAME, INDEX)


def test_a_tensor_that_only_the_index_knows_is_named(sharded: Path) -> None:
    change_index(sharded, lambda raw: raw["weight_map"].update({"ghost": "model-00001-of-00003.safetensors"}))
    refused(sharded, INDEX, "ghost")


@pytest.mark.parametrize("shard", [3, None, "", "..", "../model.safetensors", "/etc/passwd", ["x"], "a\0b"])
def test_an_index_that_points_out_of_its_folder_is_refused(sharded: Path, shard: object) -> None:
    change_index(sharded, lambda raw: raw["weight_map"].update({NAME: shard}))
    refused(sharded, NAME)


@pytest.mark.parametrize("content", ["", "[]", "3", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000])
def test_an_index_without_a_weight_map_is_refused(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content, encoding="utf-8")
    refused(sharded, INDEX)


# Bytes


@pytest.mark.parametrize("part", range(17))
def test_a_shard_cut_at_any_of_17_places_is_named(sharded: Path, part: int) -> None:
    file = sharded / "model-00002-of-00003.safetensors"
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    last = len(content) - 1
    places = [0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, header + 2, header + 4]
    places += [header + (last - header) * fraction // 5 for fraction in range(1, 6)] + [last - 1]
    assert len(set(places)) == 17
    file.write_bytes(content[: places[part]])
    refused(sharded, file.name)


def test_a_cut_shard_says_which_tensor_is_short_and_by_how_much(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    refused(folder, file.name, "cut short", str(len(content)), str(len(content) - 100))


def test_bytes_behind_the_last_tensor_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"\0")
    refused(folder, file.name, "1 bytes behind")


def test_a_flipped_bit_in_any_byte_of_a_header_is_an_error_or_no_change(folder: Path) -> None:
    """No other exception, and never another tensor: what is accepted has the same names, shapes and places."""
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    sound = Checkpoint.open(folder).entries
    messages: list[str] = []

    for place in range(header):
        flip = 1 << place % 8
        content[place] ^= flip
        file.write_bytes(content)
        try:
            read_header(file)  # what opening does first: the slower rest is left to headers that pass it
            assert Checkpoint.open(folder).entries == sound
        except DsliteError as error:
            messages.append(error.message)
        content[place] ^= flip

    assert all(file.name in message or str(folder) in message for message in messages)
    assert len(messages) > 0.95 * header  # the rest: letters of the metadata, spaces that JSON does not need


@given(st.binary(max_size=64))
def test_any_bytes_as_a_file_are_an_error_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["F32", "BF16"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "lm_head.weight"]), inner)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_as_a_header_is_an_error_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, header: object
) -> None:
    folder = tmp_path_factory.mktemp("any")
    text = json.dumps(header).encode()
    (folder / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    refused(folder)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [2**80, 2**80 + 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "22", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]},
    ],
)
def test_a_header_entry_that_makes_no_sense_is_named(folder: Path, entry: dict[str, object]) -> None:
    text = json.dumps({"ghost": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    refused(folder, "model.safetensors", "ghost")


# The folder and its config


def test_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "absent")


def test_a_folder_without_config_says_so(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, str(folder), "config.json")


def test_a_folder_without_weights_says_so(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, str(folder), "safetensors")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"1" * 5000, b"{}{}"])
def test_a_config_that_is_no_json_is_named(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, "config.json")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"deepseek_v2"', "true"])
def test_a_config_that_is_no_object_says_so(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json is not a JSON object") as caught:
        Checkpoint.open(folder)
    assert str(folder) in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_place_of_a_file_is_an_error(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, str(folder))


# Numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", NAME, "model.norm.weight", "lm_head.weight"])
def test_weights_that_are_not_finite_stop_the_answer_before_its_first_token(
    tmp_path: Path, name: str, value: float
) -> None:
    config = SMALL | {"num_hidden_layers": 2}  # so that attention carries on what one expert spoilt
    tensors = random_tensors(config)
    tensors[name] = torch.full_like(tensors[name], value)
    engine = load_engine(write_checkpoint(tmp_path, config, tensors=tensors))
    seen: list[Event] = []

    with pytest.raises(NumericsError) as caught:
        seen.extend(engine.generate(Request(list(range(40)), SamplingParams(max_tokens=4))))

    assert caught.value.remedy
    assert not [event for event in seen if isinstance(event, Token | Done)]
    assert engine.prefix_cache.newest is None, "nothing of it is used again"
    assert engine.prefix_cache.tokens == 0
