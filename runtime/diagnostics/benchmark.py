"""Prefill and decode speed of a network by prompt length and depth, for `dslite bench`."""

# B sequences  T new tokens

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.config import ModelConfig
from dslite.model.parameters import parameter_shapes
from dslite.model.quantized_layout import Weights
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache, kv_bytes_per_token
from dslite.runtime.device import compute_device
from dslite.runtime.planning.bandwidth import measure_ram, note_read_rate
from dslite.runtime.planning.footprint import Footprint
from dslite.runtime.planning.hardware import unmeasured
from dslite.runtime.planning.machine import machine, machine_key
from dslite.runtime.weights.expert_blocks import ExpertBlocks

_BLOCK = 1 << 24  # random values made once and repeated: noise for 30 GB would take minutes


@dataclass(frozen=True)
class SpeedRow:
    """One test. Tokens per second of the runs; bytes and bytes per second."""

    test: str
    depth: int
    runs: tuple[float, ...]
    bytes_per_token: int
    read_bandwidth: float

    @property
    def median(self) -> float:
        return statistics.median(self.runs)

    @property
    def achieved(self) -> float:
        """Bytes per second that the median speed comes to."""
        return self.median * self.bytes_per_token


@dataclass(frozen=True)
class SpeedTest:
    """What to measure: at each depth of cached tokens each prompt length, and `gen_tokens` tokens (0: none)."""

    prompts: Sequence[int]
    gen_tokens: int
    depths: Sequence[int]
    repeat: int
    batch_size: int = 1

    @property
    def context(self) -> int:
        """Tokens of context that one sequence needs."""
        return max(self.depths) + max([*self.prompts, self.gen_tokens])

    def run(self, model: Transformer, chunk: int) -> Iterator[SpeedRow]:
        """Measure each in turn. Prompts are read `chunk` tokens at a time."""
        bench = _Bench(model, chunk, self.context, self.batch_size)
        bench.warm_up()
        for depth in self.depths:
            for count in self.prompts:
                yield bench.row(f"pp{count}", depth, count, min(count, chunk), self.repeat, bench.prefill(count))
            if self.gen_tokens:
                count = self.gen_tokens
                yield bench.row(
                    f"tg{count}", depth, count * self.batch_size, self.batch_size, self.repeat, bench.decode(count)
                )


class _Bench:
    def __init__(self, model: Transformer, chunk: int, context: int, batch_size: int) -> None:
        self._model, self._chunk = model, chunk
        config, dtype, device = model.config, model.dtype, model.device
        self._caches = [LatentKVCache(config, context, dtype=dtype, device=device) for _ in range(batch_size)]
        self._context = context
        self._random = torch.Generator().manual_seed(0)

    def row(self, test: str, depth: int, tokens: int, together: int, repeat: int, run: Callable[[], None]) -> SpeedRow:
        """Time `run`, which makes or reads `tokens` tokens, `together` of them in one pass over the weights."""
        speeds = []
        for _ in range(repeat):
            self._fill(depth)
            start = time.perf_counter()
            run()
            self._synchronize()
            speeds.append(tokens / (time.perf_counter() - start))
        config = self._model.config
        read = bytes_per_token(config, self._model.dtype, together, self._model.weights) + depth * kv_bytes_per_token(
            config, self._model.dtype
        )
        return SpeedRow(test, depth, tuple(speeds), read, read_bandwidth(self._model.device))

    def warm_up(self) -> None:
        """Read every page of the weights, and compile kernels that are compiled at their first use."""
        self._fill(0)
        self.prefill(min(512, self._context))()
        self._fill(0)
        self.decode(1)()

    def prefill(self, count: int) -> Callable[[], None]:
        """Reading `count` tokens of the first sequence, up to the next token's scores."""
        ids = self._tokens(count)

        @torch.inference_mode()
        def run() -> None:
            hidden = ids
            for chunk in ids.split(self._chunk):
                hidden = self._model.forward(chunk, [Span(self._caches[0], len(chunk))], last_only=True)
            self._model.logits(hidden).argmax()

        return run

    def decode(self, count: int) -> Callable[[], None]:
        """Making `count` tokens of every sequence, greedily, each from the one before."""

        @torch.inference_mode()
        def run() -> None:
            ids = self._tokens(len(self._caches))
            for _ in range(count):
                hidden = self._model.forward(ids, [Span(cache, 1) for cache in self._caches])
                ids = self._model.logits(hidden).argmax(-1)

        return run

    def _tokens(self, count: int) -> Tensor:
        return torch.randint(0, self._model.config.vocab_size, (count,), generator=self._random)

    def _fill(self, depth: int) -> None:
        """Make every cache `depth` random tokens deep."""
        model = self._model
        shape = (model.config.num_hidden_layers, depth, model.config.latent_width)
        for cache in self._caches:
            cache.truncate(0)
            cache.put(torch.randn(shape, dtype=model.dtype, device=model.device))

    def _synchronize(self) -> None:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        elif self._model.device.type == "mps":
            torch.mps.synchronize()


def bytes_per_token(config: ModelConfig, dtype: torch.dtype, together: int, weights: Weights = "bfloat16") -> int:
    """Weights read for one of `together` tokens of a pass: its share, if tokens choose their experts independently."""
    size = Footprint(config, str(dtype).removeprefix("torch."), weights)
    experts, chosen = config.n_routed_experts, config.num_experts_per_tok
    used = experts * (1 - (1 - chosen / experts) ** together)  # expected distinct experts of a layer
    routed = size.expert * used * size.moe_layers
    return round((size.always + routed) / together) + config.hidden_size * size.item


def read_bandwidth(device: torch.device) -> float:
    """Read bandwidth of the device's memory, bytes per second; measured now on the CPU, which other programs share."""
    if device.type != "cpu":
        return machine().gpu_bandwidth
    rate = measure_ram()
    note_read_rate(machine_key(unmeasured()), "ram", rate)  # the kept one may be of a busy machine
    return rate


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Transformer:
    """A network of a config with random weights (std 0.02; norms 1): for speed alone."""
    noise = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    shapes = parameter_shapes(config)
    backend = compute_device(device)
    matrix = config.hidden_size * config.moe_intermediate_size * dtype.itemsize
    blocks = ExpertBlocks(config.n_routed_experts, 3, matrix, backend.allocate)
    place = 0

    def take(name: str) -> Tensor:
        nonlocal place
        tensor = torch.empty(shapes[name], dtype=dtype)
        if tensor.dim() == 1:
            return tensor.fill_(1.0).to(device)
        place = (place + 4_099) % (_BLOCK // 2)  # another stretch for every tensor
        flat = tensor.view(-1)
        for part in flat.split(_BLOCK // 2):
            part.copy_(noise[place : place + len(part)])
        target = blocks.allocate(name, tensor.nbytes).view(dtype).view(tensor.shape)
        return target.copy_(tensor)

    return Transformer.build(config, take, recorder=backend)
