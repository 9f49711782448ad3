"""The engine: prompt ids in, events out.

One sequence is the special case of many: `generate` drives a scheduler with room for one. The prefix cache belongs to
the engine, so that a batch or a server finds what a conversation computed, and the other way round.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from threading import Event as Flag

import torch

from dslite.model.moe import MoE
from dslite.model.parameters import parameter_shapes
from dslite.runtime.cache.latent_cache import kv_bytes_per_token
from dslite.runtime.engine.core import EngineCore
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.errors import DsliteError
from dslite.runtime.events import Event, Prefilling
from dslite.runtime.system.memory import peak_rss

__all__ = ["Engine", "Request"]


class Engine(EngineCore):
    """One model, and what users ask of it."""

    def generate(
        self, request: Request, cancel: Flag | None = None, on_prefill: Callable[[Prefilling], None] | None = None
    ) -> Iterator[Event]:
        """Answer a request: Prefilling and Token events, one Done at the end.

        `cancel` ends it between two tokens and, while the prompt is read, between two layers; `on_prefill` is called
        between layers several times a second. Raises ContextFullError for a prompt that does not fit, NumericsError
        where logits are not finite, OutOfMemoryError.
        """
        self.check_fits(request)  # here, not when the first event is asked for
        return self._generate(request, cancel, on_prefill)

    def _generate(
        self, request: Request, cancel: Flag | None, on_prefill: Callable[[Prefilling], None] | None
    ) -> Iterator[Event]:
        report = None if on_prefill is None else lambda _, event: on_prefill(event)
        scheduler = Scheduler(self, max_sequences=1, chunk=None, on_progress=report)
        scheduler.add(0, request, cancel)
        try:
            for _, event in scheduler.run():
                if isinstance(event, DsliteError):
                    raise event
                yield event
        finally:
            scheduler.remove(0)

    def resume(self, conversation: str, prompt_ids: Sequence[int]) -> int:
        """Read what is saved of a conversation as far as the prompt begins like it; returns the tokens known."""
        return self.prefix_cache.resume(conversation, prompt_ids)

    def save(self, conversation: str) -> None:
        """Write the latent entries of the last answer to disk as those of a conversation, unless they are there."""
        self.prefix_cache.save(conversation)

    def memory(self) -> dict[str, int]:
        """Bytes: weights, latent cache in use, cache of one token, most host and GPU memory of this process so far."""
        per_token = kv_bytes_per_token(self.model.config, self.model.dtype)
        newest = self.prefix_cache.newest
        return {
            "weights_bytes": sum(math.prod(shape) for shape in parameter_shapes(self.model.config).values())
            * self.model.dtype.itemsize,
            "kv_bytes": (0 if newest is None else len(newest.ids)) * per_token,
            "kv_bytes_per_token": per_token,
            "peak_rss_bytes": peak_rss(),
            "peak_vram_bytes": torch.cuda.max_memory_allocated() if self.model.device.type == "cuda" else 0,
        }

    def expert_stats(self) -> dict[str, int]:
        """Slots on the compute device for each layer, and what they saved and cost."""
        if self.experts is not None:
            return self.experts.stats.summary()
        return {"slots": self.model.config.n_routed_experts, "hits": 0, "misses": 0, "bytes_moved": 0}

    def expert_uses(self) -> list[list[int]] | None:
        """How often tokens chose each expert of each MoE layer since `reset_expert_counts`; None on a GPU."""
        if self.model.device.type != "cpu":
            return None
        return [layer.mlp.expert_counts.tolist() for layer in self.model.layers if isinstance(layer.mlp, MoE)]

    def reset_expert_counts(self) -> None:
        for layer in self.model.layers:
            if isinstance(layer.mlp, MoE):
                layer.mlp.expert_counts.zero_()
