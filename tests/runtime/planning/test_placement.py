"""The planner: a pure function, so every card and memory size can be tried here."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import tiny_config
from support.machines import GIB, lite_config, machine

from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from dslite.runtime.errors import UsageError
from dslite.runtime.planning.device_plan import DevicePlan, PlanRequest
from dslite.runtime.planning.footprint import Footprint
from dslite.runtime.planning.placement import plan


@pytest.fixture(scope="module")
def lite() -> ModelConfig:
    return lite_config()


# Slots per layer from the arithmetic: 93 % of the card, less 2.20 GB that every token reads, less cache and workspace,
# by 0.45 GB for a slot in each of 26 layers. None: the fewest, six, do not fit.
@pytest.mark.parametrize(
    ("card", "at_4k", "at_32k"),
    [
        (6, 7, None),
        (8, 11, 8),
        (12, 20, 17),
        (16, 29, 26),
        (24, 47, 44),
        (32, 64, 62),
        (40, 64, 64),
        (48, 64, 64),
        (80, 64, 64),
    ],
)
def test_slots_of_every_card(lite: ModelConfig, card: int, at_4k: int, at_32k: int | None) -> None:
    for context, slots in ((4096, at_4k), (32768, at_32k)):
        made = plan(machine(card), lite, PlanRequest(context=context))
        assert made.fits == (slots is not None)
        assert not made.fits or made.slots == slots
        assert made.slots + made.experts_in_ram + made.experts_on_disk == 64


def test_the_figures_of_lite_are_the_published_ones(lite: ModelConfig) -> None:
    made = plan(machine(24), lite)
    assert made.parameters == 15_706_484_224
    assert made.weights_bytes == 31_412_968_448
    assert made.kv_bytes_per_token == 31_104
    assert made.bytes_read_per_token == 4_902_874_112
    assert (made.slots, made.experts_in_ram, made.experts_on_disk) == (44, 20, 0)


def test_a_card_too_small_for_the_context_is_told_the_longest_that_fits(lite: ModelConfig) -> None:
    made = plan(machine(6), lite, PlanRequest(context=32768))
    assert not made.fits
    assert "GPU memory" in (made.reason or "")
    nearest = made.nearest
    assert nearest is not None
    assert nearest.fits
    assert nearest.device == "cuda"
    assert 4096 < nearest.context < 32768
    assert not plan(machine(6), lite, PlanRequest(context=nearest.context + 256)).fits


def test_too_many_slots_asked_are_answered_with_fewer(lite: ModelConfig) -> None:
    made = plan(machine(12), lite, PlanRequest(expert_slots=40))
    assert not made.fits
    assert made.nearest is not None
    assert (made.nearest.slots, made.nearest.context) == (17, 32768)


def test_a_card_too_small_for_anything_is_told_the_cpu(lite: ModelConfig) -> None:
    made = plan(machine(2), lite)
    assert not made.fits
    assert made.nearest is not None
    assert made.nearest.device == "cpu"


def test_a_machine_too_small_for_anything_has_no_nearest_plan(lite: ModelConfig) -> None:
    made = plan(machine(0, 2), lite)
    assert not made.fits
    assert made.nearest is None


def test_enough_memory_means_weights_as_mapped(lite: ModelConfig) -> None:
    made = plan(machine(0, 48), lite)
    assert (made.source, made.slots, made.spare) == ("resident", 64, 0)


def test_a_cpu_with_less_memory_than_the_model_has_slots_over_the_disk(lite: ModelConfig) -> None:
    made = plan(machine(0, 24), lite, PlanRequest(ram=20 * GIB, context=4096))
    assert made.source == "disk"
    assert made.miss == "fetch"
    assert 36 <= made.slots <= 42
    assert made.ram_bytes <= 20 * GIB
    assert made.prediction.bound == "disk"


def test_slots_asked_on_the_cpu_leave_the_rest_on_disk(lite: ModelConfig) -> None:
    made = plan(machine(0, 64), lite, PlanRequest(expert_slots=7))
    assert (made.slots, made.experts_in_ram, made.experts_on_disk) == (7, 0, 57)


def test_host_memory_too_small_for_an_arena_leaves_experts_mapped(lite: ModelConfig) -> None:
    roomy, tight = plan(machine(8, 64), lite), plan(machine(8, 16), lite)
    assert (roomy.source, roomy.experts_on_disk) == ("host", 0)
    assert tight.source == "mapped"
    assert tight.experts_on_disk > 0


def test_misses_are_computed_where_host_memory_beats_pcie(lite: ModelConfig) -> None:
    assert plan(machine(16, host=70, pcie=25), lite).miss == "compute"
    assert plan(machine(16, host=20, pcie=25), lite).miss == "fetch"
    assert plan(machine(16, host=20, pcie=25), lite, PlanRequest(miss="compute")).miss == "compute"


@pytest.mark.parametrize("slots", [5, 65])
def test_slots_outside_the_range_are_a_usage_error(lite: ModelConfig, slots: int) -> None:
    with pytest.raises(UsageError, match="from 6 to 64"):
        plan(machine(24), lite, PlanRequest(expert_slots=slots))


def test_a_context_beyond_the_model_is_a_usage_error(lite: ModelConfig) -> None:
    with pytest.raises(UsageError, match="from 1 to 163840"):
        plan(machine(24), lite, PlanRequest(context=163_841))


SIZES = st.integers(4, 96)


@given(
    vram=SIZES,
    ram=SIZES,
    gpu=st.sampled_from([450.0, 936.0, 3000.0]),
    pcie=st.sampled_from([4.0, 12.0, 25.0, 50.0]),
    host=st.sampled_from([10.0, 24.0, 70.0, 150.0]),
    disk=st.sampled_from([0.2, 0.5, 2.3, 7.0]),
    on_gpu=st.booleans(),
    more=st.integers(1, 40),
)
def test_more_of_any_resource_is_never_worse(
    vram: int, ram: int, gpu: float, pcie: float, host: float, disk: float, on_gpu: bool, more: int
) -> None:
    lite = lite_config()
    spec = machine(vram if on_gpu else 0, ram, gpu=gpu, pcie=pcie, host=host, disk=disk)
    base = plan(spec, lite)
    for field in ("vram_free", "ram_free"):
        check_not_worse(base, plan(replace(spec, **{field: getattr(spec, field) + more * GIB // 2}), lite))
    for field in ("gpu_bandwidth", "pcie_bandwidth", "ram_bandwidth", "disk_bandwidth"):
        check_not_worse(base, plan(replace(spec, **{field: getattr(spec, field) * (1 + more / 10)}), lite))
    shorter = plan(spec, lite, PlanRequest(context=32768 - 512 * more))
    check_not_worse(base, shorter)


def check_not_worse(base: DevicePlan, better: DevicePlan) -> None:
    assert better.fits >= base.fits
    if base.fits:
        assert better.slots >= base.slots
        assert better.experts_on_disk <= base.experts_on_disk
        assert better.prediction.decode_tps >= base.prediction.decode_tps * (1 - 1e-9)


@given(SIZES, SIZES, st.booleans(), st.sampled_from([None, 256, 4096, 163_840]), st.sampled_from([None, 6, 7, 40, 64]))
def test_a_plan_that_fits_stays_within_the_memory(
    vram: int, ram: int, on_gpu: bool, context: int | None, slots: int | None
) -> None:
    lite = lite_config()
    made = plan(machine(vram if on_gpu else 0, ram), lite, PlanRequest(context=context, expert_slots=slots))
    for candidate in (made, made.nearest):
        if candidate is None or not candidate.fits:
            continue
        assert candidate.vram_bytes <= vram * GIB
        assert candidate.ram_bytes <= ram * GIB
        own = candidate.ram_bytes if candidate.device == "cpu" else candidate.vram_bytes
        assert own == candidate.resident_bytes + candidate.kv_bytes + candidate.workspace_bytes


@pytest.mark.parametrize("raw", [tiny_config(), tiny_config(q_lora_rank=24, first_k_dense_replace=2)])
def test_the_footprint_is_the_sum_of_the_shapes(raw: dict[str, object]) -> None:
    config = ModelConfig.from_dict(raw)
    size = Footprint(config, "float32")
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in parameter_shapes(config).items()}
    assert size.weights == sum(tensor.nbytes for tensor in tensors.values())
    experts = {name: tensor for name, tensor in tensors.items() if ".mlp.experts." in name}
    assert size.routed == sum(tensor.nbytes for tensor in experts.values())
    assert size.expert == sum(tensor.nbytes for name, tensor in experts.items() if ".layers.2.mlp.experts.0." in name)
    assert size.always + size.embedding + size.routed == size.weights
