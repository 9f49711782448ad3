"""A model folder in Hub layout: config.json and safetensors files, checked before a single weight is read."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from dslite.model.quantized import Weight
from dslite.model.quantized_layout import Weights
from dslite.runtime.downloads.layout import INDEX, read_config, weight_map
from dslite.runtime.errors import CheckpointError
from dslite.runtime.weights.mapped_file import MappedFile
from dslite.runtime.weights.safetensors_file import REMEDY, TensorEntry, read_header

_DTYPES = (torch.bfloat16, torch.float32)


class Checkpoint:
    """The tensors of a folder, mapped into memory when first asked for and never copied."""

    weights: Weights = "bfloat16"

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
            for entry in read_header(file, _DTYPES).entries.values():
                if entry.name in entries:
                    raise CheckpointError(f"{entry.name} is in {entries[entry.name].file} and again in {file}", REMEDY)
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

    def block_checksums(self, file: Path) -> Mapping[int, tuple[int, int]]:
        """First byte of a block of a file → its bytes and their CRC-32; published weights have none."""
        return {}

    def weight(self, name: str) -> Weight:
        """The weight of a Hub name."""
        return self.tensor(name)

    def unmap(self) -> None:
        """Give up the maps of files; pages of those that no tensor uses leave this process's memory."""
        self._files.clear()

    def tensor(self, name: str) -> Tensor:
        """The tensor of a Hub name, as a read-only view of its mapped file."""
        entry = self.entries[name]
        if entry.file not in self._files:
            self._files[entry.file] = MappedFile(entry.file, self.sizes[entry.file])
        stretch = self._files[entry.file].bytes[entry.offset : entry.offset + entry.nbytes]
        return stretch.view(entry.dtype).view(entry.shape)


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
            raise CheckpointError(f"{folder / shard} is missing; {INDEX} names it for {name}", REMEDY)
    return {name: folder / shard for name, shard in owners.items()}


def _check_index(folder: Path, owner: Mapping[str, Path], entries: Mapping[str, TensorEntry]) -> None:
    for name, file in owner.items():
        if name not in entries or entries[name].file != file:
            raise CheckpointError(f"{folder / INDEX} says that {name} is in {file.name}, and it is not", REMEDY)
    for name, entry in entries.items() if owner else ():
        if name not in owner:
            raise CheckpointError(f"{entry.file}: {name} is not in {INDEX}", REMEDY)


def _check_tensors(folder: Path, config: ModelConfig, entries: Mapping[str, TensorEntry]) -> None:
    shapes = parameter_shapes(config)
    for name, shape in shapes.items():
        if name not in entries:
            raise CheckpointError(f"{folder}: the tensor {name} is missing", REMEDY)
        if entries[name].shape != shape:
            raise CheckpointError(
                f"{entries[name].file}: {name} has shape {list(entries[name].shape)}, and config.json asks for "
                f"{list(shape)}",
                REMEDY,
            )
    for name, entry in entries.items():
        if name not in shapes:
            raise CheckpointError(f"{entry.file}: config.json knows no tensor {name}", REMEDY)
