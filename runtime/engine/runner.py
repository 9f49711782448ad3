"""Passes of the network over sequences, and what is done when memory runs out in one."""

# T tokens of a pass  B spans  D hidden

import logging
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from dslite.model.attention import Span, last_of_each
from dslite.model.transformer import OnLayer, Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache
from dslite.runtime.cache.prefix_cache import PrefixCache
from dslite.runtime.device import compute_device
from dslite.runtime.engine import device_sampling
from dslite.runtime.engine.device_sampling import Race
from dslite.runtime.memory import with_room
from dslite.runtime.weights.loader import expert_cache

log = logging.getLogger("dslite.engine")

PREFILL_CHUNK = 2048
_GROW_AFTER = 16  # prefill chunks at a shortened limit that went through


class DrawnSequence(Protocol):
    """What drawing asks of a sequence."""

    @property
    def race(self) -> Race: ...

    def adjust(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) to draw from: the given ones, or others."""
        ...


class ModelRunner:
    """Runs the network. `prefill_chunk` is the most prompt tokens of a pass.

    One recovery serves every pass: where memory runs out, the oldest entry of the prefix cache is dropped; where there
    is none, a slot of every layer's experts is given back and the limit of a prefill chunk is halved. The limit doubles
    again after _GROW_AFTER chunks that went through, so that one shortage does not slow a server for good.
    """

    def __init__(self, model: Transformer, prefill_chunk: int = PREFILL_CHUNK) -> None:
        self.model = model
        self.experts = expert_cache(model)
        self.prefill_chunk = prefill_chunk
        self._planned_chunk = prefill_chunk
        self._device = compute_device(model.device)
        self._passed = 0  # prefill chunks since the limit changed

    def make_cache(self, tokens: int) -> LatentKVCache:
        """An empty latent cache. Raises OutOfMemoryError."""
        config, dtype, device = self.model.config, self.model.dtype, self.model.device
        return with_room(
            lambda: LatentKVCache(config, tokens, dtype=dtype, device=device),
            self.experts,
            f"a context of {tokens:,} tokens",
        )

    def run(
        self, ids: Sequence[int], spans: Sequence[Span], *, all_hidden: bool = False, on_layer: OnLayer = lambda _: None
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Run token ids (T,): of each span its hidden states, and the logits (vocabulary,) behind its last token.

        The states of a span are those of all its tokens (T, D) with `all_hidden`, else of the last one (1, D). The
        caches hold the new tokens once this returns; an exception of the network or of `on_layer` leaves them alone.
        """
        with torch.inference_mode():
            tokens = torch.tensor(ids, dtype=torch.long)
            hidden = self.model.forward(tokens, spans, last_only=not all_hidden, on_layer=on_layer)
            states = hidden.split([span.count if all_hidden else 1 for span in spans])
            logits = self.model.logits(last_of_each(hidden, spans) if all_hidden else hidden)
        return states, logits

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (T, vocabulary), float32, of hidden states (T, D). Raises OutOfMemoryError."""
        with torch.inference_mode():
            return with_room(lambda: self.model.logits(hidden), self.experts, f"the logits of {len(hidden)} tokens")

    def draw(self, logits: Tensor, sequences: Sequence[DrawnSequence], tokens: int) -> list[int] | None:
        """The next token of each sequence from logits (B, vocabulary), DAMAGED where they are not finite.

        None where tokens are drawn on the host, one sequence after the other. Raises OutOfMemoryError.
        """
        if not device_sampling.usable(logits):
            return None
        with torch.inference_mode():
            rows = list(logits)
            adjusted = [sequence.adjust(row) for sequence, row in zip(sequences, rows, strict=True)]
            if any(own is not row for own, row in zip(adjusted, rows, strict=True)):
                logits = torch.stack(adjusted)
            races = [sequence.race for sequence in sequences]
            draw = partial(device_sampling.draw, logits, races, tokens, self._device)
            return with_room(draw, self.experts, "drawing a token")

    def prefill_went_through(self) -> None:
        """Count a prefill chunk; after enough of them a limit that a shortage halved doubles again."""
        if self.prefill_chunk == self._planned_chunk:
            return
        self._passed += 1
        if self._passed >= _GROW_AFTER:
            self._passed = 0
            self.prefill_chunk = min(2 * self.prefill_chunk, self._planned_chunk)

    def make_room(self, prefix_cache: PrefixCache, prefill_tokens: int) -> bool:
        """Free memory after a pass with `prefill_tokens` of prompts ran out of it. False: nothing can be freed."""
        self._passed = 0
        if prefix_cache.evict(drop=True):
            return True
        given_back = self.experts is not None and self.experts.give_back()
        if prefill_tokens > 1:
            self.prefill_chunk = max(1, min(self.prefill_chunk, prefill_tokens) // 2)
            log.warning("memory is short: prompts are read %d tokens at a time", self.prefill_chunk)
            return True
        return given_back
