"""The buffer of latents: append, commit, truncate."""

import pytest
import torch
from support.checkpoints import tiny_config
from support.memory import anonymous_bytes
from support.reference import golden
from torch import Tensor

from dslite.model.config import ModelConfig
from dslite.runtime.cache.latent_cache import LatentKVCache, kv_bytes_per_token
from dslite.runtime.errors import ContextFullError

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
