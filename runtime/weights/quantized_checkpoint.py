"""Checkpoints whose products are quantized: a packed file, or published weights that are quantized while they load."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dslite.model import kernels
from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from dslite.model.quantized import QuantizedMatrix, Weight, mlp_views
from dslite.model.quantized_layout import Weights
from dslite.runtime.downloads.layout import read_config
from dslite.runtime.downloads.packed import PACKED
from dslite.runtime.errors import CheckpointError
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.disk import PACK_AGAIN, damaged
from dslite.runtime.weights.packed_layout import PackedRange, as_published, piece_of, pieces
from dslite.runtime.weights.safetensors_file import TensorEntry, TensorForm, read_header

CHECKSUMS = "checksums"
BLOCK_BYTES = 2 * 2**20  # that one checksum covers: what one read of disk.py brings
VERSION = "1"


def views(piece: PackedRange, data: Tensor) -> dict[str, QuantizedMatrix]:
    """The matrices of a piece over its bytes, by Hub name."""
    data = data[: piece.nbytes]
    if len(piece.members) == 1:
        return {piece.name: QuantizedMatrix.of(data, piece.format, piece.rows, piece.columns)}
    return dict(zip(piece.members, mlp_views(data, piece.format, piece.columns, piece.rows), strict=True))


def quantize_piece(checkpoint: Checkpoint, piece: PackedRange, data: Tensor) -> None:
    """Fill uint8 (file_bytes,) with a piece made from published weights. Raises DsliteError, CheckpointError."""
    data[piece.nbytes :] = 0
    for name, matrix in views(piece, data).items():
        kernels.quantize(checkpoint.tensor(name), matrix)


@dataclass(frozen=True)
class PackedLayout:
    """The tensors of a packed file in their order: pieces, checksums, then what is not quantized, widest first."""

    forms: Mapping[str, TensorForm]

    @classmethod
    def of(cls, config: ModelConfig, weights: Weights, dtypes: Mapping[str, torch.dtype]) -> "PackedLayout":
        """`dtypes` are those of the published weights, by Hub name."""
        made = pieces(config, weights)
        forms = {name: TensorForm(torch.uint8, (piece.file_bytes,)) for name, piece in made.items()}
        shapes = parameter_shapes(config)
        plain = {name: TensorForm(dtypes[name], shapes[name]) for name in as_published(config, weights)}
        counts = sum(-(-form.nbytes // BLOCK_BYTES) for form in (*forms.values(), *plain.values()))
        forms[CHECKSUMS] = TensorForm(torch.int32, (1 + counts,))
        return cls(forms | dict(sorted(plain.items(), key=lambda pair: -pair[1].dtype.itemsize)))

    @property
    def nbytes(self) -> int:
        return sum(form.nbytes for form in self.forms.values())

    def blocks(self, start: int) -> Iterator[tuple[str, int, int]]:
        """Tensor, first byte of the file and bytes of each block that has a checksum; tensors begin at `start`."""
        for name, form in self.forms.items():
            if name != CHECKSUMS:
                for done in range(0, form.nbytes, BLOCK_BYTES):
                    yield name, start + done, min(BLOCK_BYTES, form.nbytes - done)
            start += form.nbytes


class PackedCheckpoint(Checkpoint):
    """Quantized weights in one file, mapped like any checkpoint."""

    def __init__(
        self, folder: Path, config: ModelConfig, entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]
    ) -> None:
        super().__init__(folder, config, entries)
        self.metadata = metadata
        self.weights = _weights(metadata)
        self._checksums: dict[int, tuple[int, int]] | None = None
        self._views: dict[str, dict[str, QuantizedMatrix]] = {}

    @classmethod
    def open(cls, folder: Path) -> "PackedCheckpoint":
        """Read config and header; check every name, length and type, and the header's checksum. Reads no weights."""
        config, file = read_config(folder), folder / PACKED
        header = read_header(file)
        entries, metadata = header.entries, header.metadata
        if metadata.get("version") != VERSION or _weights(metadata) == "bfloat16":
            raise CheckpointError(f"{file} is none that this version packs", PACK_AGAIN)
        plain = as_published(config, _weights(metadata))
        dtypes = {name: entries[name].dtype for name in plain if name in entries}
        if len(dtypes) < len(plain):
            raise CheckpointError(f"{file} lacks {next(name for name in plain if name not in dtypes)}", PACK_AGAIN)
        expected = PackedLayout.of(config, _weights(metadata), dtypes).forms
        found = {name: TensorForm(entry.dtype, entry.shape) for name, entry in entries.items()}
        if found != expected:
            wrong = next(name for name in (*expected, *found) if found.get(name) != expected.get(name))
            raise CheckpointError(f"{file}: {wrong} is not as config.json asks for", PACK_AGAIN)
        packed = cls(folder, config, entries, metadata)
        packed._check_header()
        return packed

    @property
    def file(self) -> Path:
        return self.folder / PACKED

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for name, entry in self.entries.items() if name != CHECKSUMS)

    def weight(self, name: str) -> Weight:
        piece = piece_of(self.config, self.weights).get(name)
        if piece is None:
            return self.tensor(name)
        if piece.name not in self._views:
            self._views[piece.name] = views(piece, self.tensor(piece.name))
        return self._views[piece.name][name]

    def unmap(self) -> None:
        self._views.clear()
        super().unmap()

    def block_checksums(self, file: Path) -> Mapping[int, tuple[int, int]]:
        if self._checksums is None:
            sums = [number & 0xFFFFFFFF for number in self.tensor(CHECKSUMS).tolist()]
            layout = PackedLayout({name: TensorForm(entry.dtype, entry.shape) for name, entry in self.entries.items()})
            blocks = layout.blocks(min(entry.offset for entry in self.entries.values()))
            self._checksums = {
                start: (count, checksum) for (_, start, count), checksum in zip(blocks, sums[1:], strict=True)
            }
        return self._checksums

    def verify(self, report: Callable[[int], None] = lambda _: None) -> None:
        """Read the whole file and compare every block's checksum; `report` gets bytes. Raises CheckpointError."""

        def check(block: tuple[int, tuple[int, int]]) -> int:
            start, (count, checksum) = block
            with self.file.open("rb") as stream:
                stream.seek(start)
                if zlib.crc32(stream.read(count)) != checksum:
                    raise damaged(self.file, start)
            return count

        with ThreadPoolExecutor(4) as pool:
            for count in pool.map(check, self.block_checksums(self.file).items()):
                report(count)

    def _check_header(self) -> None:
        start = min(entry.offset for entry in self.entries.values())
        with self.file.open("rb") as stream:
            found = zlib.crc32(stream.read(start))
        if found != int(self.tensor(CHECKSUMS)[0]) & 0xFFFFFFFF:
            raise CheckpointError(f"{self.file} has a damaged header: its checksum is another", PACK_AGAIN)


def _weights(metadata: Mapping[str, str]) -> Weights:
    found = metadata.get("weights")
    return "int8" if found == "int8" else "int4" if found == "int4" else "bfloat16"


class QuantizingCheckpoint(Checkpoint):
    """Published weights that are quantized as they are taken; nothing is kept on disk."""

    def __init__(self, source: Checkpoint, weights: Weights) -> None:
        super().__init__(source.folder, source.config, source.entries)
        self.weights = weights
        self._waiting: dict[str, QuantizedMatrix] = {}  # of a piece whose first matrix was taken

    def weight(self, name: str) -> Weight:
        piece = piece_of(self.config, self.weights).get(name)
        if piece is None:
            return self.tensor(name)
        if name not in self._waiting:
            data = torch.empty(piece.file_bytes, dtype=torch.uint8)
            quantize_piece(self, piece, data)
            self._waiting |= views(piece, data)
            self.unmap()
        return self._waiting.pop(name)
