"""Steps on a GPU that is not there: what is recorded, what comes between recordings, and how much it is.

A recording (a CUDA graph) replays the same kernels on the same memory. So what is recorded must not depend on the
token, its position or its cache, and must not wait. Here each recording is run anew for every token and its operations,
with shapes and memory, are compared: fake tensors raise where a shape or the host would need a value.
"""

from collections.abc import Callable
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from support.checkpoints import tiny_config
from support.fake_cuda import CUDA, CrossingError, cuda_guard
from support.machines import lite_config
from support.recorded_step import RecordingGpu, Step
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

pytest.importorskip("triton", reason="Triton is not here")
from dslite.model import decode_cuda
from dslite.model.config import ModelConfig
from dslite.model.decode_buffers import DecodeBuffers
from dslite.model.kernels import gpu, gpu_limits, triton_experts
from dslite.runtime.planning import launch_count
from dslite.runtime.weights.slot_bank import SlotExperts

pytestmark = pytest.mark.skipif(not cuda_guard(), reason="no C++ compiler for the guard of fake CUDA tensors")

TINY = ModelConfig.from_dict(tiny_config(num_hidden_layers=4))


class Slots(SlotExperts):
    """Experts elsewhere, where no kernel reads them, and without a place: only that they are asked."""

    addressable = False

    def __init__(self) -> None:
        self.asked = 0

    def expect(self, hidden: Tensor, expert_ids: Tensor) -> None:
        self.asked += 1

    def __call__(self, hidden: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        return torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)


@contextmanager
def fake_step(config: ModelConfig, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Fake tensors have no addresses: those that the device is told of are made up."""

    def table(routed: Any, shared: Any) -> Tensor:
        width = len(routed[0][0]) if routed else len(shared[0])
        return torch.empty(len(routed) + (len(shared[0]) // width if shared else 0), 4, dtype=torch.int64, device=CUDA)

    monkeypatch.setattr(gpu, "usable", lambda device: device.type == "cuda")
    monkeypatch.setattr(gpu_limits, "multiprocessors", lambda device: 108)
    monkeypatch.setattr(triton_experts, "address_table", table)
    monkeypatch.setattr(decode_cuda, "address", lambda tensor: 4096)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        yield Step(RecordingGpu(), config, **options)


def on_host(token: int) -> Tensor:
    return torch.tensor([token])


@pytest.mark.parametrize(("count", "more"), [(1, 0), (2, 26), (3, 26), (4, 26), (8, 26), (16, 26)])
def test_a_step_of_lite_takes_eight_launches_a_layer_or_nine(
    monkeypatch: pytest.MonkeyPatch, count: int, more: int
) -> None:
    """Nine for several sequences, however many these are."""
    config = lite_config()
    with fake_step(config, monkeypatch) as step:
        tape = step.tokens(torch.arange(count), [30 + place for place in range(count)])
    assert all(name.startswith("dslite.") for name, *_ in tape.recorded)
    assert len(tape.recorded) == 1 + 26 * 8 + 7 + more
    assert [name for name, *_ in tape.between] == ["aten.clone.default", "dslite.norm_product.default"]
    assert len(tape.recorded) + len(tape.between) == launch_count.per_token(config) + more == 218 + more


def test_compressed_queries_take_one_launch_more(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.from_dict(tiny_config(q_lora_rank=24))
    with fake_step(config, monkeypatch) as step:
        tape = step.token(on_host(7), 3)
    assert len(tape.recorded) + len(tape.between) == launch_count.per_token(config) == 3 * 9 - 1 + 1 + 2


def test_more_sequences_than_the_largest_recording_take_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_step(TINY, monkeypatch) as step:
        step.tokens(torch.arange(19), [5] * 19)
        assert step._gpu.recorded == 2  # of sixteen, and of four for the three that are left
        step.tokens(torch.arange(4), [9] * 4)
        assert step._gpu.recorded == 2


def test_a_batch_is_one_recording_whatever_its_caches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_step(TINY, monkeypatch) as step:
        first = step.tokens(torch.tensor([1, 2, 3]), [0, 5, 60])
        for positions, capacity in (([62, 0, 1], 64), ([1, 1, 4000], 5000), ([3, 9, 4, 7], 80)):
            assert step.tokens(torch.arange(len(positions)), positions, capacity).recorded == first.recorded
        assert step._gpu.recorded == 1
        assert step._gpu.puts == 4


def test_every_position_of_every_cache_is_the_same_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_step(TINY, monkeypatch) as step:
        first = step.token(on_host(1), 0)
        for token, position, capacity in ((5, 1, 64), (6, 15, 64), (7, 16, 40), (8, 62, 100), (0, 4000, 5000)):
            assert step.token(on_host(token), position, capacity).recorded == first.recorded
        assert step._gpu.recorded == 1


def test_one_small_copy_a_token_crosses_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token, position and the cache's place; with the embedding in host memory also its row. Nothing comes back."""
    for embedded, puts in ((True, 1), (False, 2)):
        with fake_step(TINY, monkeypatch, embedded=embedded) as step:
            for count in range(3):
                step.token(on_host(1), count)
                assert step._gpu.puts == puts * (count + 1)


def test_a_token_that_is_on_the_device_need_not_come_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_step(TINY, monkeypatch) as step:
        tape = step.token(torch.empty(1, dtype=torch.int64, device=CUDA), 9)
    assert next(name for name, *_ in tape.between) == "aten.copy_.default"


def test_experts_elsewhere_are_asked_between_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_step(TINY, monkeypatch, make_bank=lambda layer: Slots()) as step:
        first = step.token(on_host(1), 0)
        assert step.token(on_host(3), 20).recorded == first.recorded
        assert step._gpu.recorded == 3  # the dense layer and the first attention, then one each
        assert [layer.mlp.experts.asked for layer in step.model.layers[1:]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (lambda fixed: fixed.state[0, 1].item(), DataDependentOutputException),
        (lambda fixed: fixed.hidden.cpu(), CrossingError),
        (lambda fixed: fixed.state[0, :1].copy_(torch.zeros(1, dtype=torch.int64)), CrossingError),
        (lambda fixed: fixed.hidden[fixed.hidden > 0], Exception),
    ],
    ids=["an item", "a copy to the host", "a copy from the host", "a shape that depends on values"],
)
def test_what_waits_within_a_recording_is_found(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[Any], Any], error: type[Exception]
) -> None:
    embed, errors = DecodeBuffers._embed, list[BaseException]()

    def faulty(fixed: Any, tokens: int) -> None:
        embed(fixed, tokens)
        try:
            fault(fixed)
        except Exception as found:
            errors.append(found)
            raise

    monkeypatch.setattr(DecodeBuffers, "_embed", faulty)
    with fake_step(TINY, monkeypatch) as step, suppress(Exception):  # torch's layers compute the step then
        step.token(on_host(1), 0)
    assert [isinstance(found, error) for found in errors] == [True]


def test_a_recording_that_depends_on_the_position_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer made for each token is other memory; here it is also as long as the sequence."""
    begin = decode_cuda.CudaDecode._begin

    def faulty(self: Any, fixed: Any, size: int, token_ids: Tensor, places: Any) -> None:
        begin(self, fixed, size, token_ids, places)
        fixed._scores = torch.empty(size, TINY.n_routed_experts + places[0][0], device=CUDA)

    monkeypatch.setattr(decode_cuda.CudaDecode, "_begin", faulty)
    with fake_step(TINY, monkeypatch) as step:
        assert step.token(on_host(1), 0).recorded != step.token(on_host(1), 1).recorded
