"""Files in the safetensors format: the parser and the package agree on them, and each reads what the other writes."""

import json
import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError, deserialize
from support.checkpoints import tiny_config

from dslite.model.config import ModelConfig
from dslite.runtime.cache.disk_cache import LatentDiskCache
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.errors import CheckpointError
from dslite.runtime.weights import safetensors_file
from dslite.runtime.weights.safetensors_file import (
    SafetensorsFile,
    TensorForm,
    parse_header,
    read_header,
    write,
)

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "token_ids": torch.arange(5, dtype=torch.int32),
    "empty": torch.empty(0, 4),
    "one": torch.tensor(3.0),
    "half": torch.ones(2, 3, 2, dtype=torch.bfloat16),
    "checksums": torch.arange(7, dtype=torch.uint8),
}
# What the parser refuses although the package takes it, by a part of its message.
STRICTER = ("are read", "not aligned", "a name occurs twice")


def raw_file(header: bytes, payload: int) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + bytes(payload)


def sound_header(rng: random.Random) -> tuple[dict[str, dict[str, object]], int]:
    """A header of a few tensors, one behind the other, and the bytes of its payload."""
    header: dict[str, dict[str, object]] = {}
    if rng.random() < 0.5:
        header["__metadata__"] = {"format": "pt"}
    place = 0
    for number in range(rng.randrange(1, 4)):
        kind, item = rng.choice([("F32", 4), ("BF16", 2), ("I32", 4), ("U8", 1)])
        shape = [rng.randrange(4) for _ in range(rng.randrange(3))]
        count = item
        for width in shape:
            count *= width
        header[f"tensor.{number}"] = {"dtype": kind, "shape": shape, "data_offsets": [place, place + count]}
        place += count
    return header, place


VALUES = (
    None, True, -1, 0, 1, 2, 3, 2**31, 2**63, 2**64, 2**80, 1.0, 1.5, "", "F32", "BF16", "F16", "F64", "f32", "é",
    [], [0], [0, 0], [1, 2, 3], [0, 8], [8, 0], ["0", "8"], [True, 8], {}, {"a": 1},
)  # fmt: skip


def damage_values(rng: random.Random, header: dict[str, dict[str, object]]) -> bytes:
    """Put another value into an entry, drop one, add one, or another entry."""
    name = rng.choice(list(header))
    entry = header[name]
    match rng.randrange(8):
        case 0:
            entry[rng.choice(list(entry))] = rng.choice(VALUES)
        case 1:
            del entry[rng.choice(list(entry))]
        case 2:
            entry[rng.choice(["more", "Dtype", "shape ", "\ud800"])] = rng.choice(VALUES)
        case 3:
            header[rng.choice(["ghost", "__metadata__", name + ".", "\ud800"])] = rng.choice(VALUES)  # type: ignore[assignment]
        case 4:
            offsets = list(entry.get("data_offsets", [0, 0]))  # type: ignore[call-overload]
            offsets[rng.randrange(2)] += rng.choice([-8, -4, -1, 1, 4, 8])
            entry["data_offsets"] = offsets
        case 5:
            header[name] = rng.choice(VALUES)  # type: ignore[assignment]
        case 6:  # another dtype of values as wide
            same_width = {"BF16": "F16", "F32": "U32", "I32": "F32", "U8": "BOOL"}
            entry["dtype"] = same_width.get(str(entry.get("dtype")), "F64")
        case 7:
            text = json.dumps(header)
            part = json.dumps(name) + ": " + json.dumps(entry)
            return text.replace(part, f"{part}, {part}").encode()
    return json.dumps(header, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def damage_bytes(rng: random.Random, text: bytes) -> bytes:
    """Flip, drop, insert, double or cut bytes of a header's text."""
    place, end = rng.randrange(len(text)), rng.randrange(len(text) + 1)
    match rng.randrange(6):
        case 0:
            return text[:place] + bytes([text[place] ^ (1 << rng.randrange(8))]) + text[place + 1 :]
        case 1:
            return text[:place] + text[place + 1 :]
        case 2:
            return (
                text[:place]
                + rng.choice([b"\0", b" ", b"\n", b'"', b"9", b"-", b".", b",", b"}", b"\xff"])
                + text[place:]
            )
        case 3:
            return text[:place] + text[min(place, end) : max(place, end)] + text[place:]
        case 4:
            return text[:place]
        case _:
            return (
                rng.choice([b"", b" ", b"\xef\xbb\xbf", b"\n"]) + text + rng.choice([b"", b" ", b"\0", b"{}", b"\t\n"])
            )


def damaged_file(rng: random.Random) -> bytes:
    """A file whose header, payload or length is damaged in one way."""
    header, payload = sound_header(rng)
    choice = rng.randrange(10)
    if choice < 4:
        return raw_file(damage_values(rng, header), payload)
    text = json.dumps(header).encode()
    if choice < 8:
        return raw_file(damage_bytes(rng, text), payload)
    if choice == 8:
        return raw_file(text, max(0, payload + rng.choice([-8, -1, 1, 8])))
    whole = raw_file(text, payload)
    length = rng.choice([0, 1, 2, len(text) - 1, len(text) + 1, len(whole), 100_000_001, 2**63, 2**64 - 1])
    return length.to_bytes(8, "little") + whole[8 : rng.choice([len(whole), rng.randrange(8, len(whole) + 1)])]


def parsed(file: Path, content: bytes) -> str:
    """What the parser says of a file: nothing where it takes it."""
    file.write_bytes(content)
    try:
        with file.open("rb") as stream:
            parse_header(stream, file)
    except CheckpointError as error:
        return error.message
    return ""


def taken_by_package(content: bytes) -> bool:
    try:
        deserialize(content)
    except SafetensorError:
        return False
    return True


def compare(file: Path, seeds: range) -> dict[str, int]:
    """Hold both verdicts on damaged files against each other; how often each outcome came."""
    seen = dict.fromkeys(("both take", "both refuse", *STRICTER), 0)
    for seed in seeds:
        content = damaged_file(random.Random(seed))
        message, taken = parsed(file, content), taken_by_package(content)
        if taken and message:
            (reason,) = [reason for reason in STRICTER if reason in message] or [message]
            assert reason in STRICTER, (seed, content, message)
            seen[reason] += 1
        else:
            assert taken != bool(message), (seed, content, message)
            seen["both take" if taken else "both refuse"] += 1
    return seen


def test_the_parser_and_the_package_give_the_same_verdict_on_damaged_headers(tmp_path: Path) -> None:
    seen = compare(tmp_path / "any.safetensors", range(200))
    assert min(seen["both take"], seen["both refuse"]) > 10


@pytest.mark.long
def test_the_parser_and_the_package_give_the_same_verdict_on_thousands_of_damaged_headers(tmp_path: Path) -> None:
    seen = compare(tmp_path / "any.safetensors", range(2000))
    assert all(seen.values()), seen


@pytest.mark.parametrize("small", [0, 1 << 20], ids=["tensor by tensor", "by the package"])
def test_a_written_file_is_read_by_the_package_and_here(tmp_path: Path, small: int) -> None:
    file = tmp_path / "some.safetensors"
    layout = {name: TensorForm(tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    with file.open("wb") as stream:
        write(stream, layout, iter(TENSORS.values()), {"format": "some"}, small=small)

    found = safetensors.torch.load_file(file)
    opened = SafetensorsFile(file)

    assert opened.metadata == {"format": "some"}
    assert found.keys() == layout.keys() == read_header(file).entries.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(opened.tensor(name), tensor)


def test_values_that_would_not_be_aligned_are_not_written(tmp_path: Path) -> None:
    layout = {"a": TensorForm(torch.uint8, (3,)), "b": TensorForm(torch.float32, (1,))}
    with (tmp_path / "some.safetensors").open("wb") as stream, pytest.raises(ValueError, match="not aligned"):
        write(stream, layout, [torch.zeros(3, dtype=torch.uint8), torch.zeros(1)], {}, small=0)


def test_a_tensor_of_another_form_than_the_layout_says_is_not_written(tmp_path: Path) -> None:
    with (tmp_path / "some.safetensors").open("wb") as stream, pytest.raises(ValueError, match="where the layout has"):
        write(stream, {"a": TensorForm(torch.uint8, (4,))}, [torch.zeros(4)], {}, small=0)


@pytest.mark.parametrize(
    ("count", "dtype"), [(40, torch.bfloat16), (40, torch.float32), (8000, torch.bfloat16)], ids=str
)
def test_the_package_opens_saved_conversations_of_any_size(tmp_path: Path, count: int, dtype: torch.dtype) -> None:
    config = ModelConfig.from_dict(tiny_config(kv_lora_rank=512, qk_rope_head_dim=64, num_hidden_layers=2))
    cache = LatentKVCache(config, count, dtype=dtype)
    cache.put(torch.randn(2, count, config.latent_width, generator=torch.Generator().manual_seed(1)).to(dtype))
    assert LatentDiskCache(tmp_path, "model").save("chat", list(range(count)), cache)

    found = safetensors.torch.load_file(tmp_path / "chat.safetensors")

    assert found["token_ids"].tolist() == list(range(count))
    blocks = [found[f"rows.{number}"] for number in range(-(-count // 1024))]
    assert torch.equal(torch.cat(blocks, dim=1), cache.entries(0, count))


def test_a_file_that_takes_the_name_while_another_is_open_is_not_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is given the open file by its descriptor, and the mapping is of that file too."""
    file, other = tmp_path / "chat.safetensors", tmp_path / "other"
    safetensors.torch.save_file({"a": torch.ones(4)}, file)
    safetensors.torch.save_file({"b": torch.zeros(99)}, other)
    parse = safetensors_file.parse_header

    def parse_then_replace(*args: object) -> object:
        found = parse(*args)  # type: ignore[arg-type]
        other.replace(file)
        return found

    monkeypatch.setattr(safetensors_file, "parse_header", parse_then_replace)
    assert torch.equal(SafetensorsFile(file).tensor("a"), torch.ones(4))


def test_the_package_refuses_through_the_open_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw_file(json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode(), 9))
    monkeypatch.setattr(safetensors_file, "_check_extents", lambda *_: None)  # so that the parser finds nothing
    with pytest.raises(CheckpointError, match="damaged header"):
        read_header(file)
