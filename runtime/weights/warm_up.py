"""Makes a GPU ready while a model loads: libraries, kernels, the recorded step. Else the first answer would do it.

Kernels of Triton are compiled at their first use, once per machine; cuBLAS makes its handle and workspace, and a
recording its instance, beside torch's allocator. Expert slots are sized by what is free after that.
"""

import logging
from collections.abc import Callable

import torch

from dslite.model.attention import Span
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.events import Compiling, LoadingEvent
from dslite.runtime.memory import is_out_of_memory, release_unused
from dslite.runtime.weights.slot_bank import SlotExperts

log = logging.getLogger(__name__)
_PROMPT = 64  # tokens; of experts that are not resident each would have to be brought
_SHORT_PROMPT = 2


def warm_up(model: Transformer, report: Callable[[LoadingEvent], None]) -> None:
    """Run a prompt and a token, the token twice: recorded and replayed. Where memory ends, the first answer does it."""
    steps = (_read_prompt, _decode, _decode)
    latents = LatentKVCache(model.config, model.config.max_position_embeddings, dtype=model.dtype, device=model.device)
    try:
        with torch.inference_mode():
            for done, step in enumerate(steps):
                report(Compiling(done, len(steps)))
                step(model, latents)
        report(Compiling(len(steps), len(steps)))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        log.warning("memory ran out while kernels were compiled: %s", error)
    release_unused(model.device)


def _read_prompt(model: Transformer, latents: LatentKVCache) -> None:
    elsewhere = any(isinstance(getattr(layer.mlp, "experts", None), SlotExperts) for layer in model.layers)
    count = min(_SHORT_PROMPT if elsewhere else _PROMPT, latents.max_tokens)
    tokens = torch.zeros(count, dtype=torch.long)
    model.logits(model.forward(tokens, [Span(latents, count)], "expanded", last_only=True))
    latents.truncate(0)


def _decode(model: Transformer, latents: LatentKVCache) -> None:
    model.logits(model.forward(torch.zeros(1, dtype=torch.long), [Span(latents, 1)]))
    latents.truncate(0)
