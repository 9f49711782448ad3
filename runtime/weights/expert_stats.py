"""Hits, misses and transfers of the expert slots, for the JSON output, the log and the inspector."""

from dataclasses import dataclass, field


@dataclass
class LayerStats:
    """One MoE layer. A use is an expert that one pass needs, however many of its tokens chose it."""

    hits: int = 0
    misses: int = 0
    uses: list[int] = field(default_factory=list)  # by expert


@dataclass
class ExpertStats:
    """All layers together. `bytes_moved` into slots, `computed` misses where they lay, seconds waited for experts."""

    slots: int
    n_experts: int
    bytes_moved: int = 0
    computed: int = 0
    wait_s: float = 0.0
    layers: dict[int, LayerStats] = field(default_factory=dict)

    @property
    def hits(self) -> int:
        return sum(layer.hits for layer in self.layers.values())

    @property
    def misses(self) -> int:
        return sum(layer.misses for layer in self.layers.values())

    def count(self, layer: int, hits: list[int], misses: list[int]) -> None:
        """Count the experts that a pass through a layer needs."""
        stats = self.layers.setdefault(layer, LayerStats(uses=[0] * self.n_experts))
        stats.hits += len(hits)
        stats.misses += len(misses)
        for expert in (*hits, *misses):
            stats.uses[expert] += 1

    def summary(self) -> dict[str, int]:
        """The contract's figures."""
        return {"slots": self.slots, "hits": self.hits, "misses": self.misses, "bytes_moved": self.bytes_moved}
