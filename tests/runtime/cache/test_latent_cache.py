"""The buffer of latents: append, commit, truncate."""

import itertools
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import tiny_config
from support.memory import anonymous_bytes
from support.reference import golden
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dslite.model.config import ModelConfig
from dslite.runtime.cache.latent_cache import LatentKVCache, kv_bytes_per_token, tokens_that_fit
from dslite.runtime.errors import ContextFullError
from dslite.runtime.planning.footprint import growth_bytes

CONFIG = ModelConfig.from_dict(tiny_config())


def new_cache(capacity: int = 8) -> LatentKVCache:
    return LatentKVCache(CONFIG, capacity, dtype=torch.float32)


def rows(count: int, value: float) -> Tensor:
    return torch.full((count, CONFIG.latent_width), value)


def test_a_context_of_lite_takes_31104_bytes_a_token() -> None:
    lite = ModelConfig.from_dict(golden("deepseek-v2-lite.config.json"))

    assert LatentKVCache(lite, 100).nbytes == 100 * 31_104 == 100 * kv_bytes_per_token(lite)


def test_rows_stay_in_order_and_layers_apart() -> None:
    cache = new_cache()
    for layer in range(CONFIG.num_hidden_layers):
        cache.append(layer, rows(2, layer))
    cache.commit(2)

    seen = cache.append(1, rows(1, 9.0))

    assert seen.shape == (3, CONFIG.latent_width)
    assert seen[:, 0].tolist() == [1.0, 1.0, 9.0]
    assert cache.length == 2


def test_rows_without_a_commit_are_overwritten() -> None:
    cache = new_cache()
    cache.append(0, rows(3, 1.0))

    assert cache.append(0, rows(1, 2.0))[:, 0].tolist() == [2.0]


def test_append_gives_a_view_and_no_copy() -> None:
    cache = new_cache()

    first = cache.append(0, rows(2, 1.0))
    cache.commit(2)

    assert cache.append(0, rows(1, 2.0)).data_ptr() == first.data_ptr()


def test_truncated_rows_are_forgotten_and_the_others_kept() -> None:
    cache = new_cache()
    cache.append(0, torch.arange(4.0)[:, None].expand(-1, CONFIG.latent_width))
    cache.commit(4)

    cache.truncate(2)

    assert cache.length == 2
    assert cache.append(0, rows(1, 9.0))[:, 0].tolist() == [0.0, 1.0, 9.0]


@pytest.mark.parametrize("length", [-1, 3])
def test_a_length_that_was_never_there_is_no_place_to_truncate_to(length: int) -> None:
    cache = new_cache()
    cache.append(0, rows(2, 1.0))
    cache.commit(2)

    with pytest.raises(ValueError, match=str(length)):
        cache.truncate(length)
    assert cache.length == 2


def test_more_rows_than_the_capacity_are_refused_with_both_numbers() -> None:
    cache = new_cache(capacity=8)
    cache.append(0, rows(6, 1.0))
    cache.commit(6)

    with pytest.raises(ContextFullError, match=r"9 tokens .* 8"):
        cache.append(0, rows(3, 1.0))
    assert cache.append(0, rows(2, 1.0)).shape[0] == 8


def test_a_whole_context_costs_no_memory_before_it_is_used() -> None:
    """31 KB × 163,840 tokens: the pages of a context are not touched by allocating it."""
    before = anonymous_bytes()
    cache = LatentKVCache(ModelConfig.from_dict(golden("deepseek-v2-lite.config.json")), 163_840)

    assert cache.nbytes == 163_840 * 31_104
    assert anonymous_bytes() - before < 64 * 2**20


def test_what_caches_have_touched_goes_back_to_the_system_with_them() -> None:
    """Also while a later one lives: an allocator's heap would keep what lies below it."""

    def filled() -> LatentKVCache:
        cache = LatentKVCache(CONFIG, 20_000, dtype=torch.float32)
        cache.reserve(20_000).fill_(1.0)
        return cache

    size = filled().nbytes
    assert 2**21 < size < 2**25  # a size that glibc takes from the heap once such a block was freed
    before = anonymous_bytes()
    caches = [filled() for _ in range(20)]
    assert anonymous_bytes() - before > 19 * size
    del caches[:-1]
    assert anonymous_bytes() - before < 3 * size


def growing(max_tokens: int = 5000) -> LatentKVCache:
    """As on a device: with buffers for what it holds."""
    return LatentKVCache(CONFIG, max_tokens, dtype=torch.float32, grows=True)


def test_a_cache_that_grows_takes_memory_for_what_it_holds() -> None:
    cache = growing()
    assert cache.nbytes == 0
    cache.put(torch.ones(CONFIG.num_hidden_layers, 300, CONFIG.latent_width))
    assert cache.nbytes == 512 * kv_bytes_per_token(CONFIG, torch.float32)


def test_buffers_that_a_pass_has_grown_are_written_outside_of_passes_too() -> None:
    """As the prefix cache does, and the benchmark: such a pass runs in torch's inference mode."""
    cache, other = growing(), growing()
    with torch.inference_mode():
        for layer in range(CONFIG.num_hidden_layers):
            cache.append(layer, torch.ones(3, CONFIG.latent_width))
        cache.commit(3)
    cache.put(torch.full((CONFIG.num_hidden_layers, 2, CONFIG.latent_width), 2.0))
    other.put(torch.zeros(CONFIG.num_hidden_layers, 1, CONFIG.latent_width))
    other.copy_prefix(cache, 4)
    assert cache.entries(0, 5)[:, :, 0].tolist() == [[1, 1, 1, 2, 2]] * CONFIG.num_hidden_layers
    assert other.entries(0, 4)[:, :, 0].tolist() == [[1, 1, 1, 2]] * CONFIG.num_hidden_layers


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 400)),
        st.tuples(st.just("put"), st.integers(1, 400)),
        st.tuples(st.just("truncate"), st.floats(0, 1)),
        st.tuples(st.just("copy"), st.floats(0, 1)),
    ),
    max_size=12,
)


@given(STEPS)
def test_a_cache_that_grows_holds_what_a_reserved_one_holds(steps: list[tuple[str, float]]) -> None:
    pair = [growing(), new_cache(5000)]
    value = 0.0
    for step, amount in steps:
        count = int(amount)
        for number, cache in enumerate(pair):
            new = torch.arange(count * CONFIG.latent_width).view(count, CONFIG.latent_width) + value
            if step == "append":
                for layer in range(CONFIG.num_hidden_layers):
                    cache.append(layer, new + layer)
                cache.commit(count)
            elif step == "put":
                cache.put(torch.stack([new + layer for layer in range(CONFIG.num_hidden_layers)]))
            elif step == "truncate":
                cache.truncate(int(amount * cache.length))
            else:
                pair[number] = growing() if number == 0 else new_cache(5000)
                pair[number].copy_prefix(cache, int(amount * cache.length))
        value += 1
        grown, reserved = pair
        assert grown.length == reserved.length
        assert torch.equal(grown.entries(0, grown.length), reserved.entries(0, reserved.length))
        held = [grown.append(layer, rows(0, 0.0)) for layer in range(CONFIG.num_hidden_layers)]
        assert not grown.length or grown.addresses(0) == [layer.data_ptr() for layer in held]


def test_growing_never_holds_more_than_one_layer_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = growing()
    cache.put(torch.ones(CONFIG.num_hidden_layers, 200, CONFIG.latent_width))
    old = [weakref.ref(layer) for layer in cache._layers]
    new_empty, alive = torch.Tensor.new_empty, []

    def count(self: Tensor, *size: int) -> Tensor:
        alive.append(sum(layer() is not None for layer in old))
        return new_empty(self, *size)

    monkeypatch.setattr(torch.Tensor, "new_empty", count)
    cache.append(0, rows(100, 1.0))
    assert alive == [CONFIG.num_hidden_layers - grown for grown in range(CONFIG.num_hidden_layers)]


def test_memory_that_runs_out_while_a_cache_grows_leaves_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = growing()
    cache.put(torch.ones(CONFIG.num_hidden_layers, 200, CONFIG.latent_width))
    new_empty, calls = torch.Tensor.new_empty, iter([True, False])

    def fail(self: Tensor, *size: int) -> Tensor:
        if next(calls, True):
            return new_empty(self, *size)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", fail)
        with pytest.raises(torch.OutOfMemoryError):
            cache.append(0, rows(100, 1.0))
    assert torch.equal(cache.entries(0, 200), torch.ones(CONFIG.num_hidden_layers, 200, CONFIG.latent_width))
    cache.put(torch.ones(CONFIG.num_hidden_layers, 100, CONFIG.latent_width) * 2)
    assert cache.entries(0, 300).sum() == CONFIG.num_hidden_layers * CONFIG.latent_width * 400


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made and still exist, on a device without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.new_empty.default, torch.ops.aten.empty.memory_format):
            self.now += made.nbytes
            self.peak = max(self.peak, self.now)
            weakref.finalize(made, self._free, made.nbytes)
        return made

    def _free(self, nbytes: int) -> None:
        self.now -= nbytes


@pytest.mark.parametrize("context", [1, 255, 256, 1000, 1024, 4096, 5000])
@pytest.mark.parametrize("pieces", [[1], [7], [200, 1, 1, 1], [2048, 1]])
def test_a_cache_that_grows_never_takes_more_than_the_plan_counts(context: int, pieces: list[int]) -> None:
    """Its tokens, and one layer twice; admission counts the room ahead of the tokens as well."""
    layers, item = CONFIG.num_hidden_layers, 2
    known = torch.empty(layers, context, CONFIG.latent_width, dtype=torch.bfloat16, device="meta")
    with LiveBytes() as live:
        cache = LatentKVCache(CONFIG, context, device="meta")
        for piece in itertools.cycle(pieces):
            count = min(piece, context - cache.length)
            before = cache.capacity
            for layer in range(layers):
                cache.append(layer, known[layer, :count])
            cache.commit(count)
            if cache.capacity > before:
                assert live.now == cache.nbytes == cache.capacity * kv_bytes_per_token(CONFIG)
                assert live.peak == cache.nbytes + before * CONFIG.latent_width * item
            if cache.length == context:
                break
    assert live.peak <= context * kv_bytes_per_token(CONFIG) + growth_bytes(CONFIG, context, item)


@pytest.mark.parametrize("lengths", [[1000, 900, 300], [4096], [300] * 9])
def test_caches_of_as_many_tokens_as_fit_do_not_exceed_their_memory(lengths: list[int]) -> None:
    context, room = 4096, 0
    per_token, more = kv_bytes_per_token(CONFIG), growth_bytes(CONFIG, context, 2)
    while tokens_that_fit(room, CONFIG, context, torch.bfloat16, grows=True) < sum(lengths):
        room += per_token
    held = 0
    for length in lengths:
        cache = LatentKVCache(CONFIG, context, device="meta")
        for count in [length // 2, *[1] * (length - length // 2)]:
            cache.put(torch.empty(CONFIG.num_hidden_layers, count, CONFIG.latent_width, device="meta"))
        held += cache.nbytes
    assert held + more <= room + len(lengths) * 256 * per_token  # each begins with a step of 256 tokens at least
    assert tokens_that_fit(room, CONFIG, context, torch.bfloat16, grows=False) == room // per_token
    assert tokens_that_fit(0, CONFIG, context, torch.bfloat16, grows=True) == 0
