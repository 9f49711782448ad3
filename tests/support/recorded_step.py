"""Steps on a fake GPU: what is recorded, and what is launched between recordings."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dslite.model.attention import Span
from dslite.model.config import ModelConfig
from dslite.model.decoder_layer import MakeBank
from dslite.model.parameters import parameter_shapes
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache
from support.fake_cuda import CUDA, CrossingError, FakeGpu, Route

Operation = tuple[Any, ...]
_NO_LAUNCH = ("prim.", "aten.empty", "aten.detach", "aten.lift_fresh")


class RecordingGpu(FakeGpu):
    """Runs what it recorded each time anew, and says when."""

    def __init__(self, route: Route = lambda *_: pytest.fail("nothing is routed here")) -> None:
        super().__init__(route)
        self.recorded = self.puts = 0
        self.recording = False

    def put(self, target: Tensor, values: Tensor) -> None:
        assert values.device.type == "cpu"
        self.puts += 1
        self.log.append("put")
        with self._crossing():
            target.copy_(values)

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.log.append("launch")
            self.recording = True
            try:
                launch()
            finally:
                self.recording = False

        replay()
        return replay


class Tape(TorchDispatchMode):
    """Every operation that launches something, by what it is given and gives: shapes, and whose memory."""

    def __init__(self, gpu: RecordingGpu) -> None:
        super().__init__()
        self._gpu = gpu
        self._new: dict[int, Tensor] = {}
        self.recorded: list[Operation] = []
        self.between: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if self._gpu.inside:
            return out
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        for result in results:
            if result.untyped_storage()._cdata not in storages and self._gpu.recording:
                self._new.setdefault(result.untyped_storage()._cdata, result)  # kept: a number is used once
        devices = {tensor.device.type for tensor in (*given, *results)}
        if devices == {"cpu", "cuda"}:
            raise CrossingError(f"{func} is between host and device")
        mutates = func._schema.is_mutable
        views = not mutates and any(result.untyped_storage()._cdata in storages for result in results)
        if "cuda" in devices and not views and not str(func).startswith(_NO_LAUNCH):
            tensors = [self._named(tensor) for tensor in (*given, *results)]
            others = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, int | float)]
            (self.recorded if self._gpu.recording else self.between).append((str(func), *tensors, *others))
        return out

    def _named(self, tensor: Tensor) -> Operation:
        """Whose memory, and how it lies. What the recording makes itself is named by its order."""
        storage = tensor.untyped_storage()._cdata
        name = list(self._new).index(storage) if storage in self._new else f"fixed {storage}"
        return name, tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), str(tensor.dtype)


class Step:
    """A network of fake tensors on a fake GPU, which makes one token after the other."""

    def __init__(
        self,
        gpu: RecordingGpu,
        config: ModelConfig,
        *,
        embedded: bool = True,
        make_bank: MakeBank | None = None,
    ) -> None:
        shapes = parameter_shapes(config)

        def take(name: str) -> Tensor:
            device = CUDA if embedded or name != "model.embed_tokens.weight" else torch.device("cpu")
            return torch.empty(shapes[name], dtype=torch.bfloat16, device=device)

        with torch.device("cpu"):
            self.model = Transformer.build(config, take, make_bank, recorder=gpu)
        self._gpu = gpu

    def token(self, token: Tensor, position: int, capacity: int = 64) -> Tape:
        """Make a token behind `position` others of a new cache; tell what was launched."""
        return self.tokens(token, [position], capacity)

    def tokens(self, tokens: Tensor, positions: list[int], capacity: int = 64) -> Tape:
        """A token of each of some new caches."""
        caches = [LatentKVCache(self.model.config, capacity, device=CUDA) for _ in positions]
        for cache, position in zip(caches, positions, strict=True):
            cache.addresses(position + 1)  # grows to what it is to hold: outside of the step that is watched
            cache.commit(position)
        tape = Tape(self._gpu)
        with tape:
            logits = self.model.logits(self.model.forward(tokens, [Span(cache, 1) for cache in caches]))
        assert logits.shape == (len(positions), self.model.config.vocab_size)
        assert [cache.length for cache in caches] == [position + 1 for position in positions]
        return tape
