"""Sizes of quantized weights, and which weights are quantized: arithmetic alone, without torch.

Sixteen neighbouring rows of a matrix lie together as a panel, in blocks of 64 columns: first the scales of both groups
of 32 columns, 2 · 16 float16 (a cache line), then the values of the first group, then those of the second. Kernels read
a panel from one end to the other as one stream, and a lane of a vector is a row. Rows are padded with zeros to 16,
columns to 64; the scale of a shorter last group comes from its real values.

A block holds the content of Q8_0 or IQ4_NL blocks of llama.cpp in another order, so that either converts to the other
without loss.
"""

from typing import Literal

from dslite.model.config import ModelConfig

Weights = Literal["bfloat16", "int8", "int4"]  # of a model
WeightFormat = Literal["int8", "int4"]  # of a matrix

PANEL_ROWS = 16
GROUP_COLUMNS = 32
BLOCK_COLUMNS = 64
SCALE_BYTES = 64  # of a block
VALUE_BITS: dict[WeightFormat, int] = {"int8": 8, "int4": 4}

_AS_PUBLISHED = ("model.embed_tokens.weight", ".mlp.gate.weight")


def block_bytes(format: WeightFormat) -> int:
    """Bytes of 16 rows and 64 columns."""
    return SCALE_BYTES + PANEL_ROWS * BLOCK_COLUMNS * VALUE_BITS[format] // 8


def panel_count(rows: int) -> int:
    """Panels of a matrix with so many rows."""
    return -(-rows // PANEL_ROWS)


def panel_bytes(columns: int, format: WeightFormat) -> int:
    """Bytes of 16 rows with so many columns."""
    return -(-columns // BLOCK_COLUMNS) * block_bytes(format)


def packed_bytes(rows: int, columns: int, format: WeightFormat) -> int:
    """Bytes of a matrix (rows, columns)."""
    return panel_count(rows) * panel_bytes(columns, format)


def mlp_bytes(hidden: int, width: int, format: WeightFormat) -> int:
    """Bytes of gate and up (width, hidden) and down (hidden, width)."""
    return 2 * packed_bytes(width, hidden, format) + packed_bytes(hidden, width, format)


def expert_bytes(config: ModelConfig, format: WeightFormat) -> int:
    """Bytes of one routed expert."""
    return mlp_bytes(config.hidden_size, config.moe_intermediate_size, format)


def weight_format(name: str, weights: Weights) -> WeightFormat | None:
    """The format of the parameter of a Hub name in a model with such weights; None: as published.

    The router stays, because near ties decide which expert is used; norms and the embedding table are no products.
    """
    if weights == "bfloat16" or name.endswith(_AS_PUBLISHED) or "norm" in name.rsplit(".", 2)[-2]:
        return None
    return "int4" if weights == "int4" and ".mlp.experts." in name else "int8"
