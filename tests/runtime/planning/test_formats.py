"""The three formats of weights side by side: what is whole on which card, and the speed that is predicted."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
from support.machines import machine

from dslite.model.config import ModelConfig
from dslite.model.quantized_layout import Weights
from dslite.runtime.downloads.layout import read_json
from dslite.runtime.planning.device_plan import DevicePlan, PlanRequest
from dslite.runtime.planning.placement import plan

LITE = ModelConfig.from_dict(read_json(Path(str(files("dslite.assets") / "deepseek-v2-lite.config.json"))))
CONTEXT = 32_768
# GiB of the card → experts per layer in BF16, int8 and int4; None: does not fit
SLOTS = {6: (None, 12, 23), 8: (8, 20, 39), 12: (17, 37, 64), 16: (26, 54, 64), 24: (44, 64, 64)}


def placed(vram: float, weights: Weights, context: int = CONTEXT, gpu: float = 936) -> DevicePlan:
    return plan(machine(vram, gpu=gpu), LITE, PlanRequest(context=context, weights=weights))


@pytest.mark.parametrize("vram", SLOTS)
def test_the_table_of_cards_and_formats(vram: int) -> None:
    plans = [placed(vram, weights) for weights in ("bfloat16", "int8", "int4")]  # type: ignore[arg-type]
    assert tuple(made.slots if made.fits else None for made in plans) == SLOTS[vram]
    assert all(made.vram_bytes <= vram * 2**30 for made in plans if made.fits)


def test_int8_is_whole_on_24_gb_and_int4_on_16_and_with_8k_on_12() -> None:
    for made in (placed(24, "int8"), placed(16, "int4"), placed(12, "int4", 8192)):
        assert made.fits
        assert (made.source, made.slots) == ("resident", 64)


def test_predictions_of_two_cards() -> None:
    assert placed(24, "int8", gpu=1008).prediction.decode_tps >= 255
    assert placed(12, "int4", 8192, gpu=360).prediction.decode_tps >= 110


def test_bytes_of_lite_in_each_format() -> None:
    found = {weights: placed(24, weights).weights_bytes for weights in ("bfloat16", "int8", "int4")}  # type: ignore[arg-type]
    assert found == {"bfloat16": 31_412_968_448, "int8": 16_888_060_928, "int4": 9_690_635_264}


def test_on_the_cpu_int8_is_whole_in_24_gib() -> None:
    here = replace(machine(0, 24), device="cpu")
    assert plan(here, LITE, PlanRequest(context=4096, weights="int8")).source == "resident"
    assert plan(here, LITE, PlanRequest(context=4096)).source == "disk"
