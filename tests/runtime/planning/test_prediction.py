"""Predicted speeds, each with its arithmetic. They are predictions: nothing here was measured on such a card."""

import pytest
from support.machines import lite_config, machine

from dslite.model.config import ModelConfig
from dslite.runtime.planning.device_plan import PlanRequest
from dslite.runtime.planning.placement import plan

ALWAYS = 2_203_835_392  # bytes of every weight that is neither embedding nor routed expert
ROUTED = 2_699_034_624  # 6 experts × 26 layers × 17,301,504 bytes
EXPERT_LAYER = 26 * 17_301_504
TURNS = 26 * 60e-6 + 1e-4
LAUNCHES = (218 + 5 * 26) * 3e-6  # thirteen for a layer whose misses the host computes


@pytest.fixture(scope="module")
def lite() -> ModelConfig:
    return lite_config()


def test_a_24_gb_card_decodes_at_40_or_more(lite: ModelConfig) -> None:
    """936 GB/s of GPU memory, DDR5 at 70 GB/s: 44 slots on the card, the misses computed by the CPU meanwhile."""
    made = plan(machine(24), lite)
    hits, misses = 44 / 64 * ROUTED, 20 / 64 * ROUTED
    on_gpu, on_cpu = ALWAYS / (936e9 * 0.85) + hits / (936e9 * 0.65), misses / (70e9 * 0.8)
    beside = on_gpu * 26 * 2 * 17_301_504 / (ALWAYS + hits)
    expected = 1 / (on_gpu + on_cpu - min(on_cpu, beside) + LAUNCHES + TURNS)
    assert made.prediction.decode_tps == pytest.approx(expected, rel=1e-6)
    assert expected >= 40


def test_an_8_gb_card_with_ddr5_decodes_at_20_or_more(lite: ModelConfig) -> None:
    """448 GB/s of GPU memory, DDR5 at 70 GB/s: 8 slots, so that seven of eight experts are computed by the CPU."""
    made = plan(machine(8, gpu=448), lite)
    hits, misses = 8 / 64 * ROUTED, 56 / 64 * ROUTED
    on_gpu, on_cpu = ALWAYS / (448e9 * 0.85) + hits / (448e9 * 0.65), misses / (70e9 * 0.8)
    beside = on_gpu * 26 * 2 * 17_301_504 / (ALWAYS + hits)
    expected = 1 / (on_gpu + on_cpu - min(on_cpu, beside) + LAUNCHES + TURNS)
    assert made.prediction.decode_tps == pytest.approx(expected, rel=1e-6)
    assert expected >= 20
    assert made.prediction.bound == "ram-bandwidth"


@pytest.mark.parametrize(("host", "at_least", "below"), [(60, 16, 18), (70, 19, 20), (80, 21, 22)])
def test_an_8_gb_card_of_272_gb_is_bound_by_the_host_memory_beside_it(
    lite: ModelConfig, host: int, at_least: int, below: int
) -> None:
    """Seven of eight experts, 2.36 GB a token, are read of host memory: 42 of 52 ms at 70 GB/s. 20 tok/s take 73 GB/s,
    which DDR5-5600 gives in two channels (89.6 by its data sheet) and DDR5-4800 (76.8) hardly.
    """
    made = plan(machine(8, gpu=272, host=host), lite)
    hits, misses = 8 / 64 * ROUTED, 56 / 64 * ROUTED
    on_gpu, on_cpu = ALWAYS / (272e9 * 0.85) + hits / (272e9 * 0.65), misses / (host * 1e9 * 0.8)
    beside = on_gpu * 26 * 2 * 17_301_504 / (ALWAYS + hits)
    expected = 1 / (on_gpu + on_cpu - beside + LAUNCHES + TURNS)
    assert made.slots == 8
    assert made.prediction.decode_tps == pytest.approx(expected, rel=1e-6)
    assert made.prediction.bound == "ram-bandwidth"
    assert at_least <= expected < below


@pytest.mark.parametrize("card", [8, 12, 16, 24])
def test_prefill_moves_experts_fast_enough_for_2000_tokens_a_second(lite: ModelConfig, card: int) -> None:
    """PCIe 4 x16 at 25 GB/s: a chunk of 2,048 tokens brings each layer's missing experts once."""
    made = plan(machine(card), lite)
    seconds = (64 - made.slots) * EXPERT_LAYER / 25e9
    assert made.prediction.prefill_tps == pytest.approx(2048 / seconds)
    assert 2048 / seconds >= 2000


@pytest.mark.parametrize(
    ("card", "vram", "bandwidth", "aim"), [("A100 40GB", 40, 1555, 210), ("H100 SXM", 80, 3350, 400)]
)
def test_a_card_that_holds_everything_is_bound_by_its_memory(
    lite: ModelConfig, card: str, vram: int, bandwidth: int, aim: int
) -> None:
    """Bandwidths are the data sheets'. 85 % of it, and 218 launches of 3 µs."""
    made = plan(machine(vram, gpu=bandwidth), lite)
    expected = 1 / ((ALWAYS + ROUTED) / (bandwidth * 0.85e9) + 218 * 3e-6 + 1e-4)
    assert made.slots == 64
    assert made.prediction.launches == 218
    assert made.prediction.decode_tps == pytest.approx(expected, rel=1e-6)
    assert made.prediction.bound == "gpu-bandwidth"
    assert made.prediction.share == pytest.approx(expected * (ALWAYS + ROUTED) / (bandwidth * 1e9), rel=1e-6)
    assert expected >= aim, card


def test_the_share_is_of_the_memory_that_bounds(lite: ModelConfig) -> None:
    eight = plan(machine(8, gpu=448), lite)
    assert eight.prediction.share == pytest.approx(56 / 64 * ROUTED / 70e9 * eight.prediction.decode_tps, rel=1e-6)
    cpu = plan(machine(0, 64, host=30), lite)
    assert cpu.prediction.launches == 0
    assert 0.78 < cpu.prediction.share < 0.8  # a little less than what decoding reaches of the bandwidth
    slow = plan(machine(8, host=10, pcie=12), lite).prediction
    misses = (64 - plan(machine(8, host=10, pcie=12), lite).slots) / 64 * ROUTED
    assert slow.share == pytest.approx(misses / 12e9 * slow.decode_tps, rel=1e-6)


def test_the_disk_bounds_a_cpu_without_the_memory(lite: ModelConfig) -> None:
    made = plan(machine(0, 24, host=18, disk=2.3), lite, PlanRequest(ram=20 * 2**30, context=4096))
    from_disk = made.experts_on_disk / 64 * ROUTED / 2.3e9
    assert made.prediction.bound == "disk"
    assert 0.5 / from_disk < made.prediction.decode_tps < 1 / from_disk


def test_slow_pcie_bounds_a_card_whose_misses_are_fetched(lite: ModelConfig) -> None:
    made = plan(machine(8, host=10, pcie=12), lite)
    assert made.miss == "fetch"
    assert made.prediction.bound == "pcie"
