"""Steps through the GPU's launches, interpreted on the CPU, against the same network by torch's products."""

import gc
import os
import subprocess
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not here")
from support.checkpoints import random_tensors, tiny_config
from support.forward import new_cache, random_ids, read, read_batch
from support.interpreted import GraphRecorder, interpret
from triton import language as tl
from triton.runtime import errors as triton_errors
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

from dslite.model.attention import Span
from dslite.model.config import ModelConfig
from dslite.model.kernels import gpu
from dslite.model.transformer import Transformer
from dslite.runtime.device import Launch, PlainDevice

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton compiles here")

CPU = torch.device("cpu")
TOLERANCE = 2e-5  # of log-probabilities in float32, through the whole network


class Operations(TorchDispatchMode):
    """CountsExpertUse the operations of this project."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "dslite"
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    interpret(monkeypatch)


def pair(**config: Any) -> tuple[Transformer, Transformer, GraphRecorder]:
    """A random network by the kernels and by torch's products, and the recorder of the former."""
    raw = tiny_config(vocab_size=160, **config)
    tensors, recorder = random_tensors(raw), GraphRecorder()
    model = Transformer.build(ModelConfig.from_dict(raw), tensors.__getitem__, recorder=recorder)
    return model, replace(model, recorder=None), recorder


def torch_read(model: Transformer, cache: Any, ids: list[int]) -> Tensor:
    """Log-probabilities by torch's products, head included."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "usable", lambda device: False)
        return read(model, cache, ids)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"q_lora_rank": 24, "rms_norm_eps": 0.2},
        {"n_shared_experts": None, "num_experts_per_tok": 1},
        {"first_k_dense_replace": 3},
        {"first_k_dense_replace": 0, "routed_scaling_factor": 2.5, "n_routed_experts": 5},
        {"num_attention_heads": 3, "hidden_size": 90, "kv_lora_rank": 30, "qk_rope_head_dim": 6, "v_head_dim": 10},
        {"rope_scaling": None},
    ],
    ids=["lite-like", "compressed queries", "no shared experts", "dense", "no dense layer", "odd sizes", "plain rope"],
)
def test_tokens_decode_as_by_torchs_products(config: dict[str, Any]) -> None:
    model, plain, recorder = pair(**config)
    prompt = random_ids(45, 160)
    cache, expected_cache = new_cache(model, 64), new_cache(plain, 64)
    logprobs, expected = torch_read(plain, cache, prompt)[-1], torch_read(plain, expected_cache, prompt)[-1]
    chosen: list[list[int]] = [[], []]
    for _ in range(4):
        chosen[0].append(int(logprobs.argmax()))
        chosen[1].append(int(expected.argmax()))
        logprobs, expected = read(model, cache, chosen[0][-1:])[0], torch_read(plain, expected_cache, chosen[1][-1:])[0]
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=TOLERANCE)
    assert chosen[0] == chosen[1]
    assert (recorder.recorded, recorder.replayed) == (1, 3)
    torch.testing.assert_close(cache.entries(0, 49), expected_cache.entries(0, 49), rtol=0, atol=TOLERANCE)


def create_dot(self: Any, a: Any, b: Any, total: Any, *_: Any) -> Any:
    """The interpreter's product multiplies the bit patterns of BF16 (triton issue 11584). This one its values."""

    def values(part: Any) -> Any:
        brain = part.dtype.scalar == tl.bfloat16
        return (part.data.astype(np.uint32) << 16).view(np.float32) if brain else part.data

    product = np.matmul(values(a), values(b), dtype=total.data.dtype)
    return TensorHandle(product + total.data, total.dtype.scalar)


def test_bfloat16_is_near_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter rounds towards zero, a GPU to the nearest: this is more than a GPU's error. Torch's is 3e-3.

    Every expert is chosen: of two that are nearly equal, rounding may choose another.
    """
    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    raw = tiny_config(vocab_size=160, n_routed_experts=4, num_experts_per_tok=4)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in random_tensors(raw).items()}
    config = ModelConfig.from_dict(raw)
    model = Transformer.build(config, tensors.__getitem__, recorder=GraphRecorder())
    wide = Transformer.build(config, lambda name: tensors[name].float())
    cache, wide_cache = new_cache(model, 64), new_cache(wide, 64)
    for each, network in ((cache, model), (wide_cache, wide)):
        torch_read(network, each, random_ids(45, 160))
    for token in (1, 2, 3):
        expected = torch_read(wide, wide_cache, [token])
        assert (read(model, cache, [token]) - expected).norm() / expected.norm() <= 1e-2


def test_a_sequence_begins_with_its_first_token() -> None:
    model, plain, _ = pair()
    torch.testing.assert_close(
        read(model, new_cache(model, 4), [7]), torch_read(plain, new_cache(plain, 4), [7]), rtol=0, atol=TOLERANCE
    )


def test_one_recording_serves_other_conversations_and_bigger_caches() -> None:
    model, plain, recorder = pair()
    for capacity, length in ((40, 20), (100, 3), (40, 33)):
        ids = random_ids(length, 160, seed=length)
        cache, expected_cache = new_cache(model, capacity), new_cache(plain, capacity)
        for each in (cache, expected_cache):
            torch_read(plain, each, ids)
        for token in (1, 2):
            expected = torch_read(plain, expected_cache, [token])
            torch.testing.assert_close(read(model, cache, [token]), expected, rtol=0, atol=TOLERANCE)
    assert (recorder.recorded, recorder.replayed) == (1, 5)


def test_a_branch_is_decoded_over_the_rows_of_the_one_left() -> None:
    model, plain, _ = pair()
    cache, expected_cache = new_cache(model, 30), new_cache(plain, 30)
    for each in (cache, expected_cache):
        torch_read(plain, each, random_ids(20, 160))
    read(model, cache, [5])
    read(model, cache, [6])
    cache.truncate(18)
    expected_cache.truncate(18)
    expected = torch_read(plain, expected_cache, [9])
    torch.testing.assert_close(read(model, cache, [9]), expected, rtol=0, atol=TOLERANCE)


def test_each_operation_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations are what can be counted without a GPU."""
    grids: list[Any] = []
    run = GridExecutor.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        grids.append(self.grid)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", counted)
    model, _, _ = pair(q_lora_rank=24)
    with Operations() as operations:
        read(model, new_cache(model, 8), [1])
    assert len(grids) == operations.count == 1 + 3 * 9 - 1 + 1  # the embedding; a dense layer has no router; the head


def test_a_hidden_state_outlives_the_next_token() -> None:
    """The buffers are written over; what was handed out is not."""
    model, _, _ = pair()
    cache = new_cache(model, 8)
    with torch.inference_mode():
        first = model.forward(torch.tensor([3]), [Span(cache, 1)])
        kept = first.clone()
        model.forward(torch.tensor([4]), [Span(cache, 1)])
    assert torch.equal(first, kept)


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd sizes": {
        "q_lora_rank": 24,
        "num_attention_heads": 3,
        "hidden_size": 90,
        "kv_lora_rank": 30,
        "qk_rope_head_dim": 6,
        "v_head_dim": 10,
    },
    "one expert of five": {"n_routed_experts": 5, "num_experts_per_tok": 1, "n_shared_experts": None},
}


@pytest.mark.parametrize(
    ("config", "count"), [("plain", 2), ("plain", 5), ("plain", 17), ("odd sizes", 4), ("one expert of five", 8)]
)
def test_several_sequences_decode_as_by_torchs_products(config: str, count: int) -> None:
    """In the next larger recorded size; 17 in two steps. The sequences differ in length."""
    model, plain, recorder = pair(**CONFIGS[config])
    prompts = [random_ids(1 + 7 * number % 40, 160, seed=number) for number in range(count)]
    caches = [new_cache(model, 48) for _ in prompts], [new_cache(plain, 48) for _ in prompts]
    for cache, expected_cache, prompt in zip(*caches, prompts, strict=True):
        torch_read(plain, cache, prompt)
        torch_read(plain, expected_cache, prompt)
    for step in range(2):
        tokens = random_ids(count, 160, seed=100 + step)
        logprobs = read_batch(model, [(cache, [token]) for cache, token in zip(caches[0], tokens, strict=True)])
        for own, cache, token in zip(logprobs, caches[1], tokens, strict=True):
            torch.testing.assert_close(own, torch_read(plain, cache, [token]), rtol=0, atol=TOLERANCE)
    steps = 2 if count > 16 else 1
    assert (recorder.recorded, recorder.replayed) == (steps, steps)


class Failing(GraphRecorder):
    """A recorder that fails: when a step of `size` sequences or more is recorded, or launched again."""

    def __init__(self, error: Exception, when: str, size: int = 1) -> None:
        super().__init__()
        self._error, self._when, self._size = error, when, size
        self._begun = 0

    def put(self, target: Tensor, values: Tensor) -> None:
        self._begun = len(values)
        if self._when == "put":
            raise self._error
        super().put(target, values)

    def record(self, launch: Launch) -> Launch:
        if self._when == "record" and self._begun >= self._size:
            raise self._error
        replay = super().record(launch)

        def failing() -> None:
            if self._when == "replay":
                raise self._error
            replay()

        return failing


ERRORS = {
    "a compiler": subprocess.CalledProcessError(1, "ptxas"),
    "Triton": triton_errors.OutOfResources(120_000, 101_376, "shared memory"),
    "CUDA": RuntimeError("CUDA error: operation not permitted when stream is capturing"),
    "anything": KeyError("x"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("when", ["put", "record", "replay"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_step_that_cannot_be_recorded_or_launched_is_computed_by_torch(
    error: Exception, when: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, plain, _ = pair()
    model = replace(model, recorder=Failing(error, when))
    caches = [new_cache(model, 16) for _ in range(count)], [new_cache(plain, 16) for _ in range(count)]
    for token in (1, 2, 3, 4):
        batch = read_batch(model, [(cache, [token + place]) for place, cache in enumerate(caches[0])])
        for place, (own, cache) in enumerate(zip(batch, caches[1], strict=True)):
            torch.testing.assert_close(own, torch_read(plain, cache, [token + place]), rtol=0, atol=TOLERANCE)
    assert [record.levelname for record in caplog.records if "recorded steps are switched off" in record.message] == [
        "WARNING"
    ]


def test_a_layer_that_fails_is_no_failure_of_the_recording() -> None:
    """What on_layer raises stops the pass; the recording stays."""
    model, _, recorder = pair()
    cache = new_cache(model, 8)

    def stop(_: int) -> None:
        raise InterruptedError

    with torch.inference_mode(), pytest.raises(InterruptedError):
        model.forward(torch.tensor([1]), [Span(cache, 1)], on_layer=stop)
    assert cache.length == 0
    read(model, cache, [1])
    assert (recorder.recorded, recorder.replayed) == (1, 1)


def test_where_memory_ends_for_a_large_step_smaller_ones_are_recorded() -> None:
    model, plain, _ = pair()
    recorder = Failing(torch.OutOfMemoryError("CUDA out of memory"), "record", size=4)
    model = replace(model, recorder=recorder)
    caches = [new_cache(model, 8) for _ in range(5)]
    batch = read_batch(model, [(cache, [place]) for place, cache in enumerate(caches)])
    for place, own in enumerate(batch):
        torch.testing.assert_close(own, torch_read(plain, new_cache(plain, 8), [place]), rtol=0, atol=TOLERANCE)
    assert recorder.recorded == 2  # of two sequences, and of one


def test_memory_that_ends_for_a_single_token_is_for_the_caller_to_free() -> None:
    model, _, _ = pair()
    model = replace(model, recorder=Failing(torch.OutOfMemoryError("CUDA out of memory"), "record"))
    cache = new_cache(model, 8)
    with pytest.raises(torch.OutOfMemoryError):
        read(model, cache, [1])
    assert cache.length == 0


def test_what_the_launches_do_not_compute_goes_torchs_way() -> None:
    model, _, recorder = pair()
    read(model, new_cache(model, 8), [1, 2])
    read(model, new_cache(model, 8), [1], "expanded")
    read_batch(model, [(new_cache(model, 8), [1]), (new_cache(model, 8), [2, 3])])
    grouped, _, other = pair(topk_method="group_limited_greedy", n_group=4, topk_group=2)
    read(grouped, new_cache(grouped, 8), [1])
    assert recorder.recorded == other.recorded == 0


def test_a_recording_keeps_no_cache_and_no_network_alive() -> None:
    model, plain, _ = pair()
    del plain
    model = replace(model, recorder=PlainDevice(CPU))
    cache = new_cache(model, 8)
    read(model, cache, [1])
    gone = weakref.ref(cache.entries(0, 1)._base), weakref.ref(model)
    gc.disable()
    try:
        del cache, model
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()
