"""A model folder in Hub layout: config.json and safetensors files, checked before a single weight is read.

The headers are parsed here because the safetensors package does not give what is needed: the offset of each tensor in
its file (expert offload reads there), and, of a damaged file, which tensor is short by how many bytes.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from dslite.runtime.downloads.layout import INDEX, read_config, weight_map
from dslite.runtime.errors import CheckpointError
from dslite.runtime.weights.mapped_file import MappedFile

_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}
_MAX_HEADER = 100_000_000  # the format's own limit
_REMEDY = "download the model again, or check the folder"


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file: `nbytes` bytes from byte `offset` on."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class Checkpoint:
    """The tensors of a folder, mapped into memory when first asked for and never copied."""

    def __init__(self, folder: Path, config: ModelConfig, entries: Mapping[str, TensorEntry]) -> None:
        self.folder = folder
        self.config = config
        self.entries = entries
        self._files: dict[Path, MappedFile] = {}

    @classmethod
    def open(cls, folder: Path) -> "Checkpoint":
        """Read config, index and headers; check every name, shape, type and extent. Reads no weights."""
        config = read_config(folder)
        entries: dict[str, TensorEntry] = {}
        owner = _read_index(folder)
        for file in sorted(set(owner.values())) if owner else _weight_files(folder):
            for entry in read_header(file):
                if entry.name in entries:
                    raise CheckpointError(f"{entry.name} is in {entries[entry.name].file} and again in {file}", _REMEDY)
                entries[entry.name] = entry
        _check_index(folder, owner, entries)
        _check_tensors(folder, config, entries)
        return cls(folder, config, entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries.values())

    @cached_property
    def sizes(self) -> dict[Path, int]:
        """The bytes of each file."""
        ends: dict[Path, int] = {}
        for entry in self.entries.values():
            ends[entry.file] = max(ends.get(entry.file, 0), entry.offset + entry.nbytes)
        return ends

    def check(self) -> None:
        """Raise CheckpointError if a mapped file has changed: what was computed from it would be wrong.

        Called before and after each forward pass; it takes a microsecond a file.
        """
        for file in self._files.values():
            file.check()

    def tensor(self, name: str) -> Tensor:
        """The tensor of a Hub name, as a read-only view of its mapped file."""
        entry = self.entries[name]
        if entry.file not in self._files:
            self._files[entry.file] = MappedFile(entry.file, self.sizes[entry.file])
        stretch = self._files[entry.file].bytes[entry.offset : entry.offset + entry.nbytes]
        return stretch.view(entry.dtype).view(entry.shape)


def read_header(file: Path) -> Iterator[TensorEntry]:
    """The tensors of a safetensors file, whose extents fill it exactly. Raises CheckpointError."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise CheckpointError(f"{file} is cut short: its header does not fit into {size} bytes", _REMEDY)
            header = json.loads(stream.read(length).decode("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", _REMEDY) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} has a damaged header: {error}", _REMEDY) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a damaged header: not a JSON object", _REMEDY)
    entries = [_entry(file, name, raw, 8 + length) for name, raw in header.items() if name != "__metadata__"]
    _check_extents(file, entries, 8 + length, size)
    yield from entries


def _entry(file: Path, name: str, raw: Any, start: int) -> TensorEntry:
    """One header entry. `start` is where the file's payload begins."""
    try:
        kind, shape, (begin, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
        sound = isinstance(kind, str) and all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise CheckpointError(f"{file}: the header entry of {name} is damaged", _REMEDY)
    if kind not in _DTYPES:
        raise CheckpointError(
            f"{file}: {name} has dtype {kind}, and only {' and '.join(_DTYPES)} are read",
            "use a BF16 checkpoint; float16 overflows in this model",
        )
    entry = TensorEntry(name, file, _DTYPES[kind], shape, start + begin, end - begin)
    if entry.nbytes != math.prod(shape) * entry.dtype.itemsize:
        raise CheckpointError(f"{file}: {name} of shape {list(shape)} cannot have {entry.nbytes} bytes", _REMEDY)
    if entry.offset % entry.dtype.itemsize:
        raise CheckpointError(f"{file}: {name} begins at byte {entry.offset}, which is not aligned", _REMEDY)
    return entry


def _check_extents(file: Path, entries: list[TensorEntry], start: int, size: int) -> None:
    place = start
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != place:
            raise CheckpointError(f"{file}: {entry.name} begins at byte {entry.offset} instead of {place}", _REMEDY)
        place += entry.nbytes
        if place > size:
            raise CheckpointError(
                f"{file} is cut short: {entry.name} ends at byte {place}, and the file has {size}", _REMEDY
            )
    if place != size:
        raise CheckpointError(f"{file} has {size - place} bytes behind its last tensor", _REMEDY)


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no *.safetensors file", "download the model's weights")
    return files


def _read_index(folder: Path) -> dict[str, Path]:
    """Tensor name → file, as the index says; empty where there is none."""
    file = folder / INDEX
    if not file.exists():
        return {}
    owners = weight_map(file)
    for name, shard in owners.items():
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / shard} is missing; {INDEX} names it for {name}", _REMEDY)
    return {name: folder / shard for name, shard in owners.items()}


def _check_index(folder: Path, owner: Mapping[str, Path], entries: Mapping[str, TensorEntry]) -> None:
    for name, file in owner.items():
        if name not in entries or entries[name].file != file:
            raise CheckpointError(f"{folder / INDEX} says that {name} is in {file.name}, and it is not", _REMEDY)
    for name, entry in entries.items() if owner else ():
        if name not in owner:
            raise CheckpointError(f"{entry.file}: {name} is not in {INDEX}", _REMEDY)


def _check_tensors(folder: Path, config: ModelConfig, entries: Mapping[str, TensorEntry]) -> None:
    shapes = parameter_shapes(config)
    for name, shape in shapes.items():
        if name not in entries:
            raise CheckpointError(f"{folder}: the tensor {name} is missing", _REMEDY)
        if entries[name].shape != shape:
            raise CheckpointError(
                f"{entries[name].file}: {name} has shape {list(entries[name].shape)}, and config.json asks for "
                f"{list(shape)}",
                _REMEDY,
            )
    for name, entry in entries.items():
        if name not in shapes:
            raise CheckpointError(f"{entry.file}: config.json knows no tensor {name}", _REMEDY)
