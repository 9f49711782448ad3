"""What `dslite bench` measures, on the CPU and as on a device whose caches grow."""

import pytest
import torch
from support.checkpoints import random_tensors, tiny_config

from dslite.model.attention import Span
from dslite.model.config import ModelConfig
from dslite.model.transformer import Transformer
from dslite.runtime.cache import latent_cache
from dslite.runtime.diagnostics.benchmark import SpeedTest


@pytest.mark.parametrize("grows", [False, True], ids=["reserved", "growing"])
def test_each_test_begins_at_its_depth(grows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_cache, "grows_on", lambda device: grows)
    raw = tiny_config(num_hidden_layers=2)
    model = Transformer.build(ModelConfig.from_dict(raw), random_tensors(raw).__getitem__)
    seen: list[tuple[int, int]] = []
    forward = Transformer.forward

    def watched(self: Transformer, ids: torch.Tensor, spans: list[Span], *args: object, **kwargs: object) -> object:
        seen.append((spans[0].cache.length, len(ids)))
        return forward(self, ids, spans, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Transformer, "forward", watched)
    rows = list(SpeedTest(prompts=(5,), gen_tokens=2, depths=(0, 300), repeat=1).run(model, chunk=3))
    assert [(row.test, row.depth) for row in rows] == [("pp5", 0), ("tg2", 0), ("pp5", 300), ("tg2", 300)]
    warmed_up = seen.index((0, 1)) + 1
    assert seen[warmed_up:] == [(0, 3), (3, 2), (0, 1), (1, 1), (300, 3), (303, 2), (300, 1), (301, 1)]
