"""The GPU's path without a GPU: every operation of prefill and decode, and the order between copies and computing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.checkpoints import tiny_config
from support.fake_cuda import CUDA, CrossingError, FakeGpu, OrderError, Watch, cuda_guard, fake_gpu
from support.machines import lite_config, machine
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.config import ModelConfig
from dslite.model.moe import MLP
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.planning.device_plan import PlanRequest
from dslite.runtime.planning.placement import plan
from dslite.runtime.weights.experts import ExpertCache
from dslite.runtime.weights.packed_layout import MATRICES
from dslite.runtime.weights.slot_bank import SlotExperts
from dslite.runtime.weights.sources import HostSource, expert_name

pytestmark = pytest.mark.skipif(not cuda_guard(), reason="no C++ compiler for the guard of fake CUDA tensors")

CONFIG = ModelConfig.from_dict(tiny_config(n_routed_experts=16, num_experts_per_tok=3, num_hidden_layers=4))
DTYPE = torch.float32
CHUNK = 48


def random_routes(seed: int = 0) -> Callable[[int, int], NDArray[np.int64]]:
    """A router that chooses K different experts for each token, evenly."""
    rng = np.random.default_rng(seed)
    return lambda tokens, per_token: rng.random((tokens, CONFIG.n_routed_experts)).argsort(1)[:, :per_token]


def sometimes() -> Callable[[], bool]:
    """Copies that have arrived every other time that one asks."""
    count = iter(range(10**9))
    return lambda: next(count) % 2 == 1


class Setup:
    """A network of fake tensors on 'cuda' whose experts lie in fake host memory."""

    def __init__(
        self, gpu: FakeGpu, *, slots: int, spare: int, compute_below: int, config: ModelConfig = CONFIG
    ) -> None:
        shapes = parameter_shapes(config)
        host = {name: torch.empty(shape, dtype=DTYPE) for name, shape in shapes.items() if ".mlp.experts." in name}

        def lies(layer: int, expert: int) -> MLP:
            return MLP(*(host[expert_name(layer, expert, matrix)] for matrix in MATRICES))

        source = HostSource(config, gpu, DTYPE, lies)
        self.cache = ExpertCache(
            config, gpu, source, slots=slots, spare=spare, slot_bytes=source.nbytes_moved, compute_below=compute_below
        )
        gpu.know_buffers(source.nbytes_moved)

        def take(name: str) -> Tensor:
            return torch.empty(shapes[name], dtype=DTYPE, device=CUDA)

        with torch.device("cpu"):
            self.model = Transformer.build(config, take, lambda layer: SlotExperts(self.cache, layer))
        self.latents = LatentKVCache(config, 4 * CHUNK, dtype=DTYPE, device=CUDA)

    def run(self, count: int) -> Tensor:
        ids = torch.zeros(count, dtype=torch.long)
        return self.model.logits(self.model.forward(ids, [Span(self.latents, count)])[-1:])


def run_all(gpu: FakeGpu, *, slots: int, spare: int, compute_below: int, decoded: int = 8) -> tuple[Setup, Watch]:
    """Two chunks of prefill, some tokens of decode, another chunk, some tokens."""
    with fake_gpu(gpu) as watch, torch.inference_mode():
        setup = Setup(gpu, slots=slots, spare=spare, compute_below=compute_below)
        for count in (CHUNK, CHUNK, *[1] * decoded, CHUNK, *[1] * 4):
            logits = setup.run(count)
            assert logits.device.type == "cuda"
            assert logits.shape == (1, CONFIG.vocab_size)
    return setup, watch


@pytest.mark.parametrize(
    ("slots", "spare", "compute_below"), [(16, 1, 0), (7, 4, 0), (3, 1, 0), (16, 4, 8), (7, 4, 8), (3, 1, 8)]
)
def test_no_slot_is_overwritten_while_a_computation_may_read_it(slots: int, spare: int, compute_below: int) -> None:
    gpu = FakeGpu(random_routes(), arrives=sometimes())
    setup, watch = run_all(gpu, slots=slots, spare=spare, compute_below=compute_below)
    stats = setup.cache.stats
    assert stats.hits > 0
    assert stats.misses > 0
    assert (stats.computed > 0) == (compute_below > 0 and slots < 16)
    assert watch.operations > 1000


def test_the_host_waits_once_a_layer_and_no_more() -> None:
    gpu = FakeGpu(random_routes())
    run_all(gpu, slots=7, spare=4, compute_below=8, decoded=5)
    passes, moe_layers = 2 + 5 + 1 + 4, 3
    assert gpu.log.count("to_host") == passes * moe_layers
    assert gpu.log.count("settle") == 0


def test_misses_are_computed_on_the_host_only_below_the_crossover() -> None:
    gpu = FakeGpu(random_routes())
    with fake_gpu(gpu), torch.inference_mode():
        setup = Setup(gpu, slots=5, spare=2, compute_below=8)
        setup.run(CHUNK)
        assert setup.cache.stats.computed == 0
        setup.run(4)
        assert setup.cache.stats.computed > 0


def test_prefill_brings_the_next_layers_experts_ahead() -> None:
    """When a layer of a chunk begins, experts of it are already on their way."""
    gpu = FakeGpu(random_routes())
    ahead: dict[int, int] = {}
    with fake_gpu(gpu), torch.inference_mode():
        setup = Setup(gpu, slots=4, spare=6, compute_below=0)
        setup.run(CHUNK)
        begin = setup.cache.begin_pass

        def begun(layer: int, used: Any) -> None:
            ahead[layer] = sum(key[0] == layer for key in setup.cache._loading)
            begin(layer, used)

        setup.cache.begin_pass = begun  # type: ignore[method-assign]
        setup.run(CHUNK)
    assert ahead[2] > 0
    assert ahead[3] > 0


class ForgetsToWaitForReaders(FakeGpu):
    """Copies at once, whoever still reads."""

    def copy(self, copies: Any, after: Any = None) -> Any:
        return super().copy(copies, None)


class ForgetsToWaitForCopies(FakeGpu):
    """Computes at once, whether or not the expert has arrived."""

    def wait(self, event: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("broken", "message"),
    [(ForgetsToWaitForReaders, "is overwritten while"), (ForgetsToWaitForCopies, "before it has arrived")],
)
def test_a_broken_order_is_found(broken: type[FakeGpu], message: str) -> None:
    with pytest.raises(OrderError, match=message):
        run_all(broken(random_routes()), slots=4, spare=2, compute_below=0)


def test_a_copy_behind_the_seams_back_is_found() -> None:
    gpu = FakeGpu(random_routes())
    for crossing in (lambda x: x.cpu(), lambda x: x.to("cpu"), lambda x: torch.empty(4).copy_(x)):
        with fake_gpu(gpu):
            inside = torch.empty(4, device=CUDA)
            with pytest.raises(CrossingError):
                crossing(inside)


def test_the_plan_of_a_24_gib_card_is_what_is_allocated() -> None:
    """Lite at full size, in fake memory: not a byte more on the device than the plan says."""
    config = lite_config()
    made = plan(machine(24), config, PlanRequest(context=4096))
    gpu = FakeGpu(random_routes())
    with fake_gpu(gpu):
        source = HostSource(config, gpu, torch.bfloat16, lambda *_: pytest.fail("nothing is fetched here"))
        cache = ExpertCache(config, gpu, source, slots=made.slots, spare=made.spare, slot_bytes=made.slot_bytes)
        fixed = sum(
            torch.empty(shape, dtype=torch.bfloat16, device=CUDA).nbytes
            for name, shape in parameter_shapes(config).items()
            if ".mlp.experts." not in name and name != "model.embed_tokens.weight"
        )
        latents = LatentKVCache(config, made.context, device=CUDA)
        assert latents.nbytes == 0, "it takes memory with its tokens"
        latents.put(torch.empty(config.num_hidden_layers, made.context, config.latent_width, device=CUDA))
    assert gpu.allocated == cache.arena.nbytes == (made.slots * 26 + made.spare) * 17_301_504
    assert made.resident_bytes + made.spare * made.slot_bytes == fixed + cache.arena.nbytes
    assert made.kv_bytes == latents.nbytes
