"""Whole networks on a real GPU: recorded against launched, kernels against torch, slots against resident, GPU against
CPU; on the demo model and on a few layers of Lite's size. `make gpu-check` runs this; nothing else does.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.checkpoints import load_model, random_tensors, tiny_config, write_checkpoint
from support.forward import new_cache, random_ids, read, read_batch
from support.reference import golden
from torch import Tensor

from dslite.model import attention
from dslite.model.attention import Form, Span
from dslite.model.config import ModelConfig
from dslite.model.kernels import gpu
from dslite.model.transformer import Transformer
from dslite.runtime.device import PlainDevice, compute_device
from dslite.runtime.diagnostics.benchmark import random_model
from dslite.runtime.engine.device_sampling import draw
from dslite.runtime.engine.sampling import Sampler
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.planning import launch_count
from dslite.runtime.planning.device_plan import DevicePlan, PlanRequest
from dslite.runtime.planning.hardware import unmeasured
from dslite.runtime.planning.placement import plan
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.loader import expert_cache, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton is interpreted: run make gpu-check"),
]

CUDA = torch.device("cuda", 0)
DEMO = Path(__file__).resolve().parents[2] / "assets" / "demo"
FLOAT32, BFLOAT16 = 1e-4, 3e-2  # of log-probabilities; of logits, by Euclidean norms


@contextmanager
def torchs_products() -> Iterator[None]:
    """No kernel of ours, the head's included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "usable", lambda device: False)
        yield


def decode(model: Transformer, prompt: list[int], given: list[int], capacity: int = 128) -> Tensor:
    """Log-probabilities (T, V) behind each of `given`, read one by one behind a prompt."""
    cache = new_cache(model, capacity)
    read(model, cache, prompt)
    return torch.cat([read(model, cache, [token]) for token in given])


def lite_layers(count: int) -> dict[str, object]:
    return {**golden("deepseek-v2-lite.config.json"), "num_hidden_layers": count}


@pytest.fixture(scope="module")
def lite() -> Transformer:
    """Three layers of Lite's size, one of them dense, in BF16."""
    raw = lite_layers(3)
    tensors = random_tensors(raw, std=0.02, dtype=torch.bfloat16)
    return Transformer.build(
        ModelConfig.from_dict(raw), lambda name: tensors.pop(name).to(CUDA), recorder=compute_device(CUDA)
    )


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def test_a_recorded_token_is_the_launched_one_bit_by_bit(lite: Transformer) -> None:
    prompt, given = random_ids(50, 102_400), random_ids(20, 102_400, seed=1)
    launched = decode(replace(lite, recorder=PlainDevice(CUDA)), prompt, given)
    assert torch.equal(decode(lite, prompt, given), launched)


def test_recorded_tokens_are_near_torchs_in_bfloat16(lite: Transformer) -> None:
    prompt, given = random_ids(700, 102_400), random_ids(12, 102_400, seed=1)
    ours = decode(lite, prompt, given, 1024)
    with torchs_products():
        theirs = decode(replace(lite, recorder=None), prompt, given, 1024)
    assert relative(ours, theirs) <= BFLOAT16


def test_one_recording_serves_every_cache(lite: Transformer) -> None:
    recorder = compute_device(CUDA)
    recorded = []
    record = recorder.record

    def counted(launch: Callable[[], None]) -> Callable[[], None]:
        recorded.append(launch)
        return record(launch)

    recorder.record = counted  # type: ignore[method-assign]
    model = replace(lite, recorder=recorder)
    given = random_ids(4, 102_400, seed=1)
    for capacity, length in ((64, 20), (4096, 3000), (64, 1)):
        prompt = random_ids(length, 102_400, seed=length)
        launched = decode(replace(lite, recorder=PlainDevice(CUDA)), prompt, given, capacity)
        assert torch.equal(decode(model, prompt, given, capacity), launched)
    assert len(recorded) == 1


def test_a_recorded_token_does_not_wait(lite: Transformer) -> None:
    cache = new_cache(lite, 64)
    read(lite, cache, [1, 2, 3])
    read(lite, cache, [4])
    with torch.inference_mode():
        torch.cuda.set_sync_debug_mode("error")
        try:
            for token in (5, 6):
                logits = lite.logits(lite.forward(torch.tensor([token]), [Span(cache, 1)]))
            on_device = logits.argmax(-1)
            lite.forward(on_device, [Span(cache, 1)])
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_token_is_no_more_kernels_than_planned(lite: Transformer) -> None:
    cache = new_cache(lite, 64)
    read(lite, cache, [4])
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        lite.logits(lite.forward(torch.tensor([5]), [Span(cache, 1)]))
        torch.cuda.synchronize()
    # Kernels alone: the profiler also reports copies, fills and what the host calls of the CUDA runtime.
    kernels = [
        event.name
        for event in seen.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
    ]
    assert 3 * launch_count.LAYER - 1 <= len(kernels) <= launch_count.per_token(lite.config), kernels


@pytest.mark.parametrize("count", [2, 3, 8, 16, 20])
def test_several_sequences_are_near_torchs_in_bfloat16(lite: Transformer, count: int) -> None:
    """Sequences of several lengths, in the next larger recorded size; three steps, the last two replayed."""
    prompts = [random_ids(1 + 53 * place, 102_400, seed=place) for place in range(count)]
    ours, theirs = ([new_cache(lite, 1200) for _ in prompts] for _ in range(2))
    with torchs_products():
        for caches in (ours, theirs):
            for cache, prompt in zip(caches, prompts, strict=True):
                read(replace(lite, recorder=None), cache, prompt)
    for step in range(3):
        tokens = random_ids(count, 102_400, seed=50 + step)
        batch = read_batch(lite, [(cache, [token]) for cache, token in zip(ours, tokens, strict=True)])
        with torchs_products():
            expected = [
                read(replace(lite, recorder=None), cache, [token]) for cache, token in zip(theirs, tokens, strict=True)
            ]
        assert relative(torch.cat(batch), torch.cat(expected)) <= BFLOAT16


@pytest.mark.parametrize("config", [{}, {"q_lora_rank": 24}, {"n_shared_experts": None}, {"kv_lora_rank": 30}])
@pytest.mark.parametrize("count", [2, 5, 16])
def test_several_sequences_of_tiny_networks_in_float32_are_torchs(config: dict[str, object], count: int) -> None:
    raw = tiny_config(**config)
    tensors = random_tensors(raw)
    model = Transformer.build(
        ModelConfig.from_dict(raw), lambda name: tensors[name].to(CUDA), recorder=compute_device(CUDA)
    )
    caches = [new_cache(model, 128) for _ in range(count)]
    plain = [new_cache(model, 128) for _ in range(count)]
    for place in range(count):
        for cache in (caches[place], plain[place]):
            read(replace(model, recorder=None), cache, random_ids(3 + 5 * place, raw["vocab_size"], seed=place))
    for step in range(3):
        tokens = random_ids(count, raw["vocab_size"], seed=step)
        batch = read_batch(model, [(cache, [token]) for cache, token in zip(caches, tokens, strict=True)])
        with torchs_products():
            for own, cache, token in zip(batch, plain, tokens, strict=True):
                expected = read(replace(model, recorder=None), cache, [token])
                torch.testing.assert_close(own, expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("config", [{}, {"q_lora_rank": 24}, {"n_shared_experts": None}, {"kv_lora_rank": 30}])
def test_tiny_networks_in_float32_are_torchs(config: dict[str, object]) -> None:
    raw = tiny_config(**config)
    tensors = random_tensors(raw)
    model = Transformer.build(
        ModelConfig.from_dict(raw), lambda name: tensors[name].to(CUDA), recorder=compute_device(CUDA)
    )
    prompt, given = random_ids(45, raw["vocab_size"]), random_ids(8, raw["vocab_size"], seed=1)
    ours = decode(model, prompt, given)
    with torchs_products():
        theirs = decode(replace(model, recorder=None), prompt, given)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=FLOAT32)


def test_the_demo_model_says_the_same_on_gpu_and_cpu() -> None:
    checkpoint = Checkpoint.open(DEMO)
    here = load_model(DEMO)
    there = load(checkpoint, device=CUDA, dtype=torch.float32)
    prompt = random_ids(60, checkpoint.config.vocab_size)
    caches = new_cache(here, 128), new_cache(there, 128)
    expected, ours = read(here, caches[0], prompt), read(there, caches[1], prompt).cpu()
    torch.testing.assert_close(ours, expected, rtol=0, atol=FLOAT32)
    for _ in range(20):
        token = int(expected[-1].argmax())
        expected, ours = read(here, caches[0], [token]), read(there, caches[1], [token]).cpu()
        torch.testing.assert_close(ours, expected, rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("length", [1, 20, 600, 2500])
def test_a_prompt_by_the_grouped_product_is_near_experts_one_by_one(length: int) -> None:
    model = replace(random_model(ModelConfig.from_dict(lite_layers(2)), CUDA, torch.bfloat16), recorder=None)
    prompt = random_ids(length, 102_400)
    ours = read(model, new_cache(model, 2500), prompt)
    with torchs_products():
        assert relative(ours, read(model, new_cache(model, 2500), prompt)) <= BFLOAT16


@pytest.mark.parametrize("form", ["expanded", "absorbed"])
@pytest.mark.parametrize("past", [0, 1, 700, 5000])
@pytest.mark.parametrize("count", [2, 33, 512])
def test_attention_without_a_mask_is_attention_with_one(lite: Transformer, form: Form, past: int, count: int) -> None:
    model = replace(lite, recorder=None)
    cache = new_cache(model, past + count)
    shape = (len(model.layers), past, model.config.latent_width)
    cache.put(torch.randn(shape, device=CUDA, generator=torch.Generator(CUDA).manual_seed(1)).to(model.dtype))
    ids = random_ids(count, 102_400)
    ours = read(model, cache, ids, form)
    cache.truncate(past)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_attend_unmasked", lambda *_: None)
        assert relative(ours, read(model, cache, ids, form)) <= BFLOAT16


def with_slots(config: ModelConfig, miss: str, dtype: str) -> DevicePlan:
    """One slot more than a token needs. With "compute" the host computes misses of passes of under eight tokens."""
    request = PlanRequest(dtype, context=1024, expert_slots=config.num_experts_per_tok + 1, miss=miss)  # type: ignore[arg-type]
    return replace(plan(unmeasured(), config, request), compute_below=8)


def check_misses(model: Transformer, miss: str) -> None:
    """Whether misses went the way that the plan says."""
    cache = expert_cache(model)
    assert cache is not None
    assert cache.stats.misses > 0
    assert (cache.stats.computed > 0) == (miss == "compute")


@pytest.mark.parametrize("miss", ["fetch", "compute"])
def test_slots_say_what_resident_experts_say(tmp_path: Path, miss: str) -> None:
    folder = write_checkpoint(tmp_path, tiny_config(n_routed_experts=16), tokenizer=False)
    checkpoint = Checkpoint.open(folder)
    resident = load(checkpoint, device=CUDA, dtype=torch.float32)
    slots = load(checkpoint, device=CUDA, dtype=torch.float32, plan=with_slots(checkpoint.config, miss, "float32"))
    prompt, given = random_ids(70, 288), random_ids(30, 288, seed=1)
    torch.testing.assert_close(decode(slots, prompt, given), decode(resident, prompt, given), rtol=0, atol=FLOAT32)
    check_misses(slots, miss)


@pytest.mark.parametrize("miss", ["fetch", "compute"])
def test_slots_of_real_size_are_near_resident_experts(tmp_path: Path, miss: str) -> None:
    """A dense and a MoE layer, 3.0 GB in a temporary folder."""
    folder = write_checkpoint(tmp_path, lite_layers(2), std=0.02, dtype=torch.bfloat16, tokenizer=False)
    try:
        checkpoint = Checkpoint.open(folder)
        prompt, given = random_ids(40, 102_400), random_ids(10, 102_400, seed=1)
        expected = decode(load(checkpoint, device=CUDA, dtype=torch.bfloat16), prompt, given)
        made = with_slots(checkpoint.config, miss, "bfloat16")
        slots = load(checkpoint, device=CUDA, dtype=torch.bfloat16, plan=made)
        assert relative(decode(slots, prompt, given), expected) <= BFLOAT16
        check_misses(slots, miss)
    finally:
        (folder / "model.safetensors").unlink()


def test_tokens_drawn_on_the_gpu_are_the_hosts() -> None:
    generator = torch.Generator().manual_seed(0)
    device = compute_device(CUDA)
    for seed in range(20):
        ways = [
            SamplingParams(temperature=0),
            SamplingParams(temperature=1.0, top_p=1.0, seed=seed),
            SamplingParams(temperature=0.3, top_p=0.95, seed=seed),
            SamplingParams(temperature=1.0, top_k=40, top_p=1.0, seed=seed),
            SamplingParams(temperature=2.0, top_p=0.9, min_p=0.001, seed=seed),
        ]
        logits = torch.randn(len(ways), 102_400, generator=generator) * 3
        samplers = [Sampler(params, [0] * seed, 100_002) for params in ways]
        drawn = draw(logits.to(CUDA), [sampler.race for sampler in samplers], 100_002, device)
        assert drawn == [sampler.sample(row) for sampler, row in zip(samplers, logits, strict=True)]
