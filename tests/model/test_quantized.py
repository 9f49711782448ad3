"""Weights of 8 and 4.5 bits: the values, their layout, and whole networks by the reference."""

# T tokens

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import random_tensors, tiny_config, write_checkpoint
from support.forward import random_ids, read_once
from support.oracle import Oracle
from support.quantized import build, dequantized, quantized_weights
from torch import Tensor

from dslite.model import quantized_layout as layout
from dslite.model.config import ModelConfig
from dslite.model.errors import DsliteError
from dslite.model.parameters import parameter_shapes
from dslite.model.quantized import TABLE, QuantizedMatrix, mlp_views, quantize
from dslite.model.quantized_layout import WeightFormat, Weights, weight_format

FORMATS: tuple[WeightFormat, ...] = ("int8", "int4")
SIZES = [(16, 64), (1, 1), (17, 33), (40, 96), (5, 160), (33, 111)]
TOLERANCE = 5e-5  # of log-probabilities


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rows_of_blocks(matrix: QuantizedMatrix) -> tuple[Tensor, Tensor]:
    """Scales (rows, groups) and integers (rows, groups, 32), read from the bytes one by one."""
    rows, groups = matrix.rows, -(-matrix.columns // 32)
    scales = torch.empty(rows, groups, dtype=torch.float16)
    values = torch.empty(rows, groups, 32, dtype=torch.int16)
    size = layout.block_bytes(matrix.format)
    for row in range(rows):
        panel = matrix.data[row // 16]
        for group in range(groups):
            block = panel[group // 2 * size : (group // 2 + 1) * size]
            lane, half = row % 16, group % 2
            scales[row, group] = block[half * 32 + 2 * lane :][:2].clone().view(torch.float16)[0]
            bits = 8 if matrix.format == "int8" else 4
            data = block[64 + half * 64 * bits :]
            for column in range(32):
                if bits == 8:
                    values[row, group, column] = data[column // 4 * 64 + lane * 4 + column % 4].view(torch.int8)
                else:
                    byte = int(data[column // 8 * 64 + lane * 4 + column % 4])
                    values[row, group, column] = TABLE[byte & 15 if column % 8 < 4 else byte >> 4]
    return scales, values


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_a_matrix_holds_what_the_layout_says(size: tuple[int, int], format: WeightFormat) -> None:
    matrix = quantize(gaussian(*size), format)

    scales, values = rows_of_blocks(matrix)

    expected = (scales[..., None].float() * values.float()).flatten(1)[:, : size[1]]
    assert torch.equal(matrix.dequantize(), expected)
    assert matrix.nbytes == layout.packed_bytes(*size, format)


def test_int8_holds_the_scales_and_integers_of_q8_0() -> None:
    quants = pytest.importorskip("gguf.quants")
    weight = torch.cat([gaussian(30, 128), gaussian(30, 128) ** 5, torch.zeros(2, 128)]).bfloat16()
    theirs = quants.quantize(weight.float().numpy(), quants.GGMLQuantizationType.Q8_0).reshape(62, 4, 34)

    scales, values = rows_of_blocks(quantize(weight, "int8"))

    assert np.array_equal(scales.view(torch.uint8).numpy().reshape(62, 4, 2), theirs[..., :2])
    assert np.array_equal(values.numpy(), theirs[..., 2:].view(np.int8))


def test_int4_holds_scales_and_codes_that_iq4_nl_reads_alike() -> None:
    quants = pytest.importorskip("gguf.quants")
    matrix = quantize(gaussian(32, 128), "int4")
    scales, values = rows_of_blocks(matrix)
    codes = torch.searchsorted(torch.tensor(TABLE), values.long()).to(torch.uint8)
    low, high = codes.chunk(2, -1)  # a block of theirs: columns 0 to 15 in the low halves of bytes
    theirs = torch.cat([scales[..., None].view(torch.uint8), low | high << 4], -1).flatten(1).numpy()

    read = quants.dequantize(theirs, quants.GGMLQuantizationType.IQ4_NL)

    assert np.array_equal(matrix.dequantize().numpy(), read)


@pytest.mark.parametrize(("format", "most"), [("int8", 0.0056), ("int4", 0.0745)])
def test_the_error_of_gaussian_weights_is_as_small_as_promised(format: WeightFormat, most: float) -> None:
    weight = gaussian(256, 1024)

    error = (quantize(weight, format).dequantize() - weight).norm() / weight.norm()

    assert error <= most


def test_the_scale_of_a_group_is_within_three_percent_of_the_best_error() -> None:
    weight = gaussian(200, 32).double()
    found = (quantize(weight.float(), "int4").dequantize().double() - weight).square().sum(1)
    table = torch.tensor(TABLE, dtype=torch.float64)
    best = torch.full_like(found, torch.inf)
    greatest = weight.abs().amax(1, keepdim=True)
    for scale in torch.cat([torch.linspace(-1 / 70, -1 / 200, 300), torch.linspace(1 / 70, 1 / 200, 300)]):
        steps = greatest * scale
        chosen = table[(weight[..., None] / steps[..., None] - table).abs().argmin(-1)]
        best = best.minimum((chosen * steps - weight).square().sum(1))

    assert found.sum() <= 1.03 * best.sum()


@pytest.mark.parametrize("format", FORMATS)
def test_a_short_last_group_has_the_scale_of_its_own_values(format: WeightFormat) -> None:
    weight = gaussian(16, 40)
    weight[:, 32:] /= 1000

    last = quantize(weight, format).dequantize()[:, 32:]

    assert (last - weight[:, 32:]).norm() <= 0.08 * weight[:, 32:].norm()


@pytest.mark.parametrize("format", FORMATS)
def test_gate_and_up_alternate_in_one_piece_with_down_behind_them(format: WeightFormat) -> None:
    hidden, width = 70, 40
    data = torch.empty(layout.mlp_bytes(hidden, width, format), dtype=torch.uint8)
    tensors = gaussian(width, hidden), gaussian(width, hidden, seed=1), gaussian(hidden, width, seed=2)

    views = mlp_views(data, format, hidden, width)
    for tensor, view in zip(tensors, views, strict=True):
        quantize(tensor, format, view)

    for tensor, view in zip(tensors, views, strict=True):
        assert torch.equal(view.dequantize(), quantize(tensor, format).dequantize())
    gate, up, down = (view.data.data_ptr() - data.data_ptr() for view in views)
    panel = layout.panel_bytes(hidden, format)
    assert (gate, up, down) == (0, panel, 6 * panel)
    assert views[0].panel_stride == 2 * panel


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 3e38])
def test_a_weight_that_is_no_number_or_too_large_is_refused(format: WeightFormat, bad: float) -> None:
    weight = gaussian(20, 64)
    weight[17, 40] = bad

    with pytest.raises(DsliteError, match=r"\(20, 64\) cannot be quantized"):
        quantize(weight, format)


def test_int8_is_every_product_and_int4_the_routed_experts() -> None:
    names = parameter_shapes(ModelConfig.from_dict(tiny_config(q_lora_rank=24)))
    one_dimensional = {name for name, shape in names.items() if len(shape) == 1}
    stay = one_dimensional | {
        "model.embed_tokens.weight",
        *(name for name in names if name.endswith("mlp.gate.weight")),
    }

    assert {name for name in names if weight_format(name, "int8") is None} == stay
    assert {name for name in names if weight_format(name, "int4") is None} == stay
    assert {name for name in names if weight_format(name, "int4") == "int4"} == {
        name for name in names if ".mlp.experts." in name
    }
    assert not any(weight_format(name, "bfloat16") for name in names)


SHAPES: dict[str, dict[str, Any]] = {
    "lite-like": tiny_config(),
    "query compression": tiny_config(q_lora_rank=24),
    "sizes that are no powers of two": tiny_config(
        hidden_size=112, intermediate_size=77, moe_intermediate_size=19, kv_lora_rank=30, v_head_dim=11, vocab_size=289
    ),
}


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_equals_transformers_on_the_dequantized_weights(tmp_path: Path, shape: str, weights: Weights) -> None:
    config = SHAPES[shape]
    parameters = quantized_weights(random_tensors(config, seed=1), weights)
    folder = write_checkpoint(tmp_path, config, tensors=dequantized(parameters), tokenizer=False)
    model, oracle = build(config, parameters, torch.float32), Oracle(folder)
    ids = random_ids(64, config["vocab_size"])

    assert oracle.routing_gap(ids) > 1e-5
    expected = oracle.logprobs(ids)
    assert (read_once(model, ids) - expected).abs().max() <= TOLERANCE
    assert (read_once(model, ids, "absorbed") - expected).abs().max() <= TOLERANCE
