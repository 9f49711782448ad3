"""Running a network by hand, cache by cache."""

# T tokens  V vocabulary

from collections.abc import Sequence

import torch
from torch import Tensor

from dslite.model.attention import Form, Span
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache


def new_cache(model: Transformer, capacity: int) -> LatentKVCache:
    """An empty cache in the network's dtype."""
    return LatentKVCache(model.config, capacity, dtype=model.dtype, device=model.device)


@torch.inference_mode()
def read(model: Transformer, cache: LatentKVCache, token_ids: Sequence[int], form: Form = "auto") -> Tensor:
    """Read tokens behind the cached ones: log-probabilities (T, V) of the token behind each."""
    return read_batch(model, [(cache, token_ids)], form)[0]


@torch.inference_mode()
def read_batch(
    model: Transformer, parts: Sequence[tuple[LatentKVCache, Sequence[int]]], form: Form = "auto"
) -> list[Tensor]:
    """Read tokens of several sequences in one pass: log-probabilities (T, V) of each."""
    flat = torch.tensor([token_id for _, ids in parts for token_id in ids])
    spans = [Span(cache, len(ids)) for cache, ids in parts]
    logprobs = model.logits(model.forward(flat, spans, form)).log_softmax(-1)
    return list(logprobs.split([span.count for span in spans]))


def read_once(model: Transformer, token_ids: Sequence[int], form: Form = "auto") -> Tensor:
    """Log-probabilities (T, V) of the token behind each of T tokens, from an empty cache."""
    return read(model, new_cache(model, len(token_ids)), token_ids, form)


def greedy(model: Transformer, token_ids: Sequence[int], count: int) -> list[int]:
    """The `count` most probable tokens behind a prompt, one after the other."""
    cache = new_cache(model, len(token_ids) + count)
    given, answer = list(token_ids), []
    for _ in range(count):
        given = [int(read(model, cache, given)[-1].argmax())]
        answer += given
    return answer


def random_ids(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Token ids drawn evenly from a vocabulary."""
    ids: list[int] = torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids
