"""Weights of 8 and 4.5 bits: a matrix type beside a BF16 tensor, and the reference of how one is made and read.

A value of a group of 32 columns is the group's float16 scale times an integer. int8: -127 to 127, the scale is that of
the greatest magnitude (Q8_0 of llama.cpp). int4: one of the sixteen integers of TABLE (IQ4_NL), with the scale that
gives the least squared error of those that a search meets. quantized_layout.py has the order of the bytes.
"""

# P panels of 16 rows  B blocks of 64 columns  R rows of a panel

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from dslite.model.errors import DsliteError
from dslite.model.quantized_layout import (
    BLOCK_COLUMNS,
    GROUP_COLUMNS,
    PANEL_ROWS,
    SCALE_BYTES,
    WeightFormat,
    block_bytes,
    packed_bytes,
    panel_bytes,
    panel_count,
)

TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_MIDPOINTS = tuple((low + high) / 2 for low, high in pairwise(TABLE))
# What the value of greatest magnitude is divided into, at the table's long end and at its short one. Relative error of
# Gaussian weights with these: 0.0735; with a fine search: 0.0732; with the first of them that fits, 127, alone: 0.0777.
CANDIDATES = (*(-ratio for ratio in range(111, 154, 7)), *range(97, 128, 6))
_STEPS = 32767  # of the search, which computes in integers: the compiled quantizer finds the same scale to the last bit
_LEAST = 1e-30  # a smaller greatest magnitude has a scale of zero
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """A weight (rows, columns) in panels: `data` is uint8 (panels, bytes of a panel).

    A panel is contiguous. Panels follow one another, or lie evenly spaced: gate and up of an MLP alternate.
    """

    data: Tensor
    format: WeightFormat
    rows: int
    columns: int

    def __post_init__(self) -> None:
        expected = panel_count(self.rows), panel_bytes(self.columns, self.format)
        if self.data.dtype is not torch.uint8 or self.data.shape != expected or self.data.stride(1) != 1:
            raise ValueError(f"{tuple(self.data.shape)} {self.data.dtype} are no {self.format} panels {expected}")

    @classmethod
    def of(cls, data: Tensor, format: WeightFormat, rows: int, columns: int) -> "QuantizedMatrix":
        """From uint8 (packed_bytes,)."""
        return cls(data.view(panel_count(rows), -1), format, rows, columns)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def panel_stride(self) -> int:
        """Bytes from one panel to the next."""
        return self.data.stride(0)

    @property
    def scales(self) -> Tensor:
        """A view of the scales: float16 (P, B, 2, 16)."""
        scales: Tensor = self._blocks[..., :SCALE_BYTES].view(torch.float16).unflatten(-1, (2, PANEL_ROWS))
        return scales

    @property
    def _blocks(self) -> Tensor:
        blocks: Tensor = self.data.unflatten(1, (-1, block_bytes(self.format)))  # (P, B, bytes)
        return blocks

    def to(self, device: torch.device) -> "QuantizedMatrix":
        """The same on a device."""
        return replace(self, data=self.data.to(device))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values (rows, columns), computed in float32."""
        out = torch.empty(self.rows, self.columns, dtype=dtype, device=self.device)
        for first, some in self._slices():
            out[first : first + some.rows] = some._dequantize()
        return out

    def _slices(self) -> Iterator[tuple[int, "QuantizedMatrix"]]:
        """Stretches of rows, whose values take little memory beside the matrix, with the first row of each."""
        for first in range(0, self.rows, _ROWS_AT_ONCE):
            rows = min(_ROWS_AT_ONCE, self.rows - first)
            start = first // PANEL_ROWS
            yield first, replace(self, data=self.data[start : start + panel_count(rows)], rows=rows)

    def _dequantize(self) -> Tensor:
        values = self._blocks[..., SCALE_BYTES:]
        if self.format == "int8":
            integers = values.unflatten(-1, (2, 8, PANEL_ROWS, 4)).view(torch.int8)
            integers = integers.permute(0, 4, 1, 2, 3, 5)  # (P, R, B, 2, 8, 4)
        else:
            nibbles = values.unflatten(-1, (2, 4, PANEL_ROWS, 4)).permute(0, 4, 1, 2, 3, 5)  # (P, R, B, 2, 4, 4)
            codes = torch.stack([nibbles & 15, nibbles >> 4], dim=-2)  # (P, R, B, 2, 4, 2, 4)
            integers = torch.tensor(TABLE, dtype=torch.int8, device=self.device)[codes.int()]
        groups: Tensor = integers.flatten(4).float()  # (P, R, B, 2, 32)
        groups = groups * self.scales.permute(0, 3, 1, 2)[..., None].float()
        return groups.flatten(2).flatten(0, 1)[: self.rows, : self.columns]


Weight = Tensor | QuantizedMatrix


def plain(weight: Weight) -> Tensor:
    """A weight that is never quantized."""
    assert isinstance(weight, Tensor)
    return weight


def quantized(weight: Weight) -> QuantizedMatrix:
    """A weight that is always quantized."""
    assert isinstance(weight, QuantizedMatrix)
    return weight


def mlp_views(data: Tensor, format: WeightFormat, hidden: int, width: int) -> tuple[QuantizedMatrix, ...]:
    """Gate and up (width, hidden) and down (hidden, width) over uint8 (mlp_bytes,), an expert in one piece.

    The panels of gate and up alternate, because the kernels multiply one of each at a time; down comes behind them.
    """
    both = 2 * packed_bytes(width, hidden, format)
    gate_up = data[:both].view(panel_count(width), 2, -1)
    gate, up = (QuantizedMatrix(gate_up[:, i], format, width, hidden) for i in range(2))
    return gate, up, QuantizedMatrix.of(data[both:], format, hidden, width)


def quantize(weight: Tensor, format: WeightFormat, out: QuantizedMatrix | None = None) -> QuantizedMatrix:
    """Quantize a weight (rows, columns) into the memory of `out`, by default new memory.

    Raises DsliteError where a value is not finite or beyond what a float16 scale reaches.
    """
    rows, columns = weight.shape
    if out is None:
        data = torch.empty(packed_bytes(rows, columns, format), dtype=torch.uint8, device=weight.device)
        out = QuantizedMatrix.of(data, format, rows, columns)
    if (out.format, out.shape) != (format, (rows, columns)):
        raise ValueError(f"{out.format} {out.shape} is no room for {format} {(rows, columns)}")
    for first, some in out._slices():
        _quantize(weight[first : first + some.rows].float(), some)
    check_scales(out)
    return out


def check_scales(matrix: QuantizedMatrix) -> None:
    """Raise DsliteError where a weight could not be quantized."""
    if not matrix.scales.isfinite().all():
        raise DsliteError(
            f"a weight of shape {matrix.shape} cannot be quantized: it has values that are not finite or too large",
            "Verify the model's files (`dslite model verify`), or use them as published: --weights bfloat16.",
        )


def _quantize(weight: Tensor, out: QuantizedMatrix) -> None:
    """Fill panels with a weight (rows, columns) in float32."""
    padded = weight.new_zeros(len(out.data) * PANEL_ROWS, -(-out.columns // BLOCK_COLUMNS) * BLOCK_COLUMNS)
    padded[: out.rows, : out.columns] = weight
    # (P, R, B, 2, 32)
    groups = padded.unflatten(0, (-1, PANEL_ROWS)).unflatten(-1, (-1, 2, GROUP_COLUMNS))
    scales, values = _to_int8(groups) if out.format == "int8" else _to_table(groups)
    if out.format == "int8":
        laid = values.to(torch.int8).view(torch.uint8).unflatten(-1, (8, 4))  # (P, R, B, 2, 8, 4)
    else:
        low, high = values.to(torch.uint8).unflatten(-1, (4, 2, 4)).unbind(-2)  # (P, R, B, 2, 4, 4)
        laid = low | high << 4
    blocks = out._blocks
    blocks[..., SCALE_BYTES:] = laid.permute(0, 2, 3, 4, 1, 5).flatten(2)
    blocks[..., :SCALE_BYTES] = scales[..., 0].permute(0, 2, 3, 1).contiguous().view(torch.uint8).flatten(2)


def _reciprocal(x: Tensor, numerator: float = 1.0) -> Tensor:
    """numerator / x; zero where x is too small for a scale."""
    return torch.where(x.abs() < _LEAST, 0, numerator / x)


def _to_int8(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Groups (…, 32) as float16 scales (…, 1) and integers, as llama.cpp makes Q8_0: halves are rounded away from 0."""
    scales = groups.abs().amax(-1, keepdim=True) / 127
    scaled = groups * _reciprocal(scales)
    magnitude = scaled.abs()
    floor = magnitude.floor()
    return scales.half(), (floor + (2 * (magnitude - floor)).floor()).copysign(scaled)


def _to_table(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Groups (…, 32) as float16 scales (…, 1) and places in TABLE.

    Each candidate gives a choice of table values, and that choice its best scale, Σ qx / Σ q². The choice with the
    greatest (Σ qx)² / Σ q² has the least squared error.
    """
    greatest = groups.abs().amax(-1, keepdim=True)
    steps = (groups * _reciprocal(greatest, _STEPS)).round().nan_to_num().int()  # of ±32,767
    sign = torch.where(steps.amax(-1, keepdim=True) == steps.abs().amax(-1, keepdim=True), 1, -1).int()
    table = torch.tensor(TABLE, dtype=torch.int32, device=groups.device)
    midpoints = torch.tensor(_MIDPOINTS, dtype=torch.float32, device=groups.device)
    nearest = table[torch.bucketize(torch.arange(-128.0, 128.0, device=groups.device), midpoints)]
    best = torch.full_like(greatest, -1, dtype=torch.float64)
    scales = torch.zeros_like(best)
    for candidate in CANDIDATES:
        rounded = (steps * (sign * candidate) + 2**14 >> 15).clamp(-128, 127)
        chosen = nearest[rounded + 128]
        product = (chosen * steps).sum(-1, keepdim=True).double()
        square = chosen.square().sum(-1, keepdim=True).double()
        quality = product * product / square
        better = quality > best
        best = torch.where(better, quality, best)
        scales = torch.where(better, product / square, scales)
    found = (greatest.double() / _STEPS * scales).float().half()
    return found, torch.bucketize(groups * _reciprocal(found.float()), midpoints)
