"""Loading makes a GPU ready before it gives the rest of the memory to expert slots."""

from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from support.checkpoints import load_model, tiny_config, write_checkpoint
from support.forward import new_cache, random_ids, read
from support.machines import machine
from torch import Tensor

from dslite.app.terminal.progress_text import loading_text
from dslite.model.transformer import Transformer
from dslite.runtime.device import PlainDevice, anonymous_memory
from dslite.runtime.events import Compiling, Loading, LoadingEvent
from dslite.runtime.planning.device_plan import PlanRequest
from dslite.runtime.planning.placement import plan
from dslite.runtime.weights import loader
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.loader import expert_cache, load
from dslite.runtime.weights.warm_up import warm_up

CUDA = torch.device("cuda", 0)


class HostGpu(PlainDevice):
    """Says that it is a GPU, and computes in host memory."""

    def __init__(self) -> None:
        super().__init__(CUDA)

    def allocate(self, nbytes: int) -> Tensor:
        return anonymous_memory(nbytes)

    def to_device(self, values: Tensor | NDArray[Any]) -> Tensor:
        return torch.as_tensor(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), tiny_config(n_routed_experts=16))


def load_on_gpu(folder: Path, told: list[LoadingEvent]) -> tuple[Transformer, int]:
    """A network with five slots a layer, and the slots that were planned."""
    checkpoint = Checkpoint.open(folder)
    made = plan(machine(24), checkpoint.config, PlanRequest(dtype="float32", expert_slots=5))
    model = load(checkpoint, device=CUDA, dtype=torch.float32, plan=made, backend=HostGpu(), report=told.append)
    return model, made.slots


def test_kernels_are_compiled_behind_the_weights_and_before_slots_are_added(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots: list[int] = []

    def watched(model: Transformer, report: Any) -> None:
        cache = expert_cache(model)
        assert cache is not None
        slots.append(cache.slots)
        warm_up(model, report)

    monkeypatch.setattr(loader, "warm_up", watched)
    told: list[LoadingEvent] = []
    model, planned = load_on_gpu(folder, told)
    cache = expert_cache(model)
    assert cache is not None
    fewest = cache.config.num_experts_per_tok
    assert (slots, cache.slots) == ([fewest], planned)
    assert (cache.stats.hits, cache.stats.misses) == (0, 0), "warming up is no use of an expert"
    kinds = [type(event) for event in told]
    assert kinds == sorted(kinds, key=[Loading, Compiling].index)
    last = [event for event in told if isinstance(event, Compiling)]
    assert [event.done for event in last] == list(range(last[-1].total + 1))
    assert loading_text(last[1]) == f"compiling kernels, 1 of {last[-1].total}"


def test_memory_that_ends_while_kernels_are_compiled_leaves_the_answer_right(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward, left = Transformer.forward, iter([1, 2])

    def short(self: Transformer, *args: Any, **options: Any) -> Tensor:
        if next(left, None) == 2:  # the prompt went through, the first token does not
            raise torch.AcceleratorError("CUDA error: out of memory")
        return forward(self, *args, **options)

    monkeypatch.setattr(Transformer, "forward", short)
    model, _ = load_on_gpu(folder, [])
    assert "while kernels were compiled" in caplog.text
    prompt, resident = random_ids(40, 288), load_model(folder)
    expected = read(resident, new_cache(resident, 64), prompt)
    torch.testing.assert_close(read(model, new_cache(model, 64), prompt), expected, rtol=0, atol=1e-4)


def test_another_error_while_kernels_are_compiled_is_not_hidden(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Tensor:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Transformer, "forward", broken)
    with pytest.raises(torch.AcceleratorError):
        load_on_gpu(folder, [])
