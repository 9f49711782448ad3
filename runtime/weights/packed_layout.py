"""Which pieces a packed file of quantized weights has. Arithmetic alone, without torch or files.

A piece is what kernels read as one stream, and a slot holds in one range of bytes: a matrix, or gate, up and down of an
MLP. In the file each piece begins on a page and fills whole pages, so that unbuffered reads fill slots.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from dslite.model.quantized_layout import WeightFormat, Weights, mlp_bytes, packed_bytes, weight_format

PAGE = 4096  # bytes; unbuffered reads begin and end on such boundaries of a file
MATRICES = ("gate_proj", "up_proj", "down_proj")  # of an MLP


def whole_pages(nbytes: int) -> int:
    """Bytes rounded up to pages."""
    return -(-nbytes // PAGE) * PAGE


@dataclass(frozen=True)
class PackedRange:
    """Quantized weights in one range of bytes. `members` are the Hub names of its matrix, or of gate, up and down.

    `rows` and `columns` are those of the matrix, or of gate.
    """

    name: str
    format: WeightFormat
    members: tuple[str, ...]
    rows: int
    columns: int

    @property
    def nbytes(self) -> int:
        if len(self.members) == 1:
            return packed_bytes(self.rows, self.columns, self.format)
        return mlp_bytes(self.columns, self.rows, self.format)

    @property
    def file_bytes(self) -> int:
        """The same in whole pages."""
        return whole_pages(self.nbytes)


@lru_cache(maxsize=8)
def pieces(config: ModelConfig, weights: Weights) -> dict[str, PackedRange]:
    """The pieces of a model by name, in the order of the forward pass."""
    found: dict[str, PackedRange] = {}
    for name, shape in parameter_shapes(config).items():
        format = weight_format(name, weights)
        if format is None:
            continue
        owner, _, matrix = name.removesuffix(".weight").rpartition(".")
        if matrix not in MATRICES:
            found[name] = PackedRange(name, format, (name,), *shape)
        elif matrix == MATRICES[0]:
            found[owner] = PackedRange(owner, format, tuple(f"{owner}.{part}.weight" for part in MATRICES), *shape)
    return found


@lru_cache(maxsize=8)
def piece_of(config: ModelConfig, weights: Weights) -> dict[str, PackedRange]:
    """Hub name of a quantized weight → its piece."""
    return {member: piece for piece in pieces(config, weights).values() for member in piece.members}


@lru_cache(maxsize=8)
def as_published(config: ModelConfig, weights: Weights) -> dict[str, int]:
    """The weights that are not quantized: Hub name → number of values."""
    return {
        name: math.prod(shape)
        for name, shape in parameter_shapes(config).items()
        if weight_format(name, weights) is None
    }


@lru_cache(maxsize=16)
def weights_bytes(config: ModelConfig, weights: Weights, item: int) -> int:
    """Bytes of all weights; those that are not quantized have `item` bytes a value."""
    quantized = sum(piece.nbytes for piece in pieces(config, weights).values())
    return quantized + item * sum(as_published(config, weights).values())
