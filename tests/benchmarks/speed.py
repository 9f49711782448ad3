"""dslite beside transformers, and beside a llama.cpp build where one is given: one run, same weights, in turns.

    make_checkpoint.py /tmp/lite8 --layers 8        # real sizes, 8 layers, 9.2 GB; or a folder with the real weights
    python tests/benchmarks/speed.py /tmp/lite8 [--prompts 512,2048,8192] [--depths 512,2048,8192,16384] [--repeat 5]
    LLAMA_BENCH=…/llama-bench LLAMA_GGUF=…/model-bf16.gguf python tests/benchmarks/speed.py …

All run in turns, llama.cpp as a program of its own, because a shared machine is not the same machine a minute later:
compare the medians within one run only. Everything is BF16 against BF16.
"""

# T tokens  S cached tokens

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dslite.model.attention import Span
from dslite.model.kernels import native
from dslite.model.transformer import Transformer
from dslite.runtime.cache.latent_cache import LatentKVCache, kv_bytes_per_token
from dslite.runtime.planning.bandwidth import measure_ram
from dslite.runtime.planning.footprint import Footprint
from dslite.runtime.system.processors import cpu_name
from dslite.runtime.weights.checkpoint import Checkpoint

DECODED = 8  # tokens of a turn
WARMING = 2048  # tokens read before anything is timed


class Runner(Protocol):
    """One program under test."""

    name: str

    def prefill(self, ids: Tensor) -> None:
        """Read a prompt into an empty cache, up to the scores of the next token."""

    def decode(self, depth: int) -> Callable[[], None]:
        """Prepare a cache of `depth` tokens; what is returned makes one token greedily."""


class Ours:
    name = "dslite"

    def __init__(self, folder: Path, context: int, chunk: int) -> None:
        self._chunk = chunk
        checkpoint = Checkpoint.open(folder)
        self.config = checkpoint.config
        self._model = Transformer.build(checkpoint.config, checkpoint.tensor)
        self._cache = LatentKVCache(checkpoint.config, context)

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> None:
        self._cache.truncate(0)
        hidden = ids
        for chunk in ids.split(self._chunk):
            hidden = self._model.forward(chunk, [Span(self._cache, len(chunk))], last_only=True)
        self._model.logits(hidden).argmax()

    @torch.inference_mode()
    def decode(self, depth: int) -> Callable[[], None]:
        self._cache.truncate(0)
        rows = self._cache.reserve(depth)
        self._cache.put(torch.randn_like(rows))
        token = torch.tensor([1])

        @torch.inference_mode()
        def step() -> None:
            nonlocal token
            hidden = self._model.forward(token, [Span(self._cache, 1)])
            token = self._model.logits(hidden)[0].argmax()[None] % self.config.vocab_size

        return step


class Transformers:
    """Eager experts, the attention that it chooses itself."""

    name = "transformers"

    def __init__(self, folder: Path, experts: str) -> None:
        from transformers import AutoModelForCausalLM, DynamicCache

        self._new_cache = DynamicCache
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, experts_implementation=experts
            ).eval()
        self._cache: Any = None

    @torch.inference_mode()
    def prefill(self, ids: Tensor) -> None:
        self._cache = self._new_cache(config=self._model.config)
        out = self._model(ids[None], past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        out.logits.argmax()

    @torch.inference_mode()
    def decode(self, depth: int) -> Callable[[], None]:
        if self._cache is None or self._cache.get_seq_length() < depth:
            self.prefill(torch.randint(0, 1000, (depth,)))
        if surplus := self._cache.get_seq_length() - depth:
            self._cache.crop(-surplus)
        token = torch.tensor([[1]])

        @torch.inference_mode()
        def step() -> None:
            nonlocal token
            out = self._model(token, past_key_values=self._cache, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)

        return step


class LlamaCpp:
    """A llama-bench build and a BF16 GGUF file of the same weights, from the environment."""

    name = "llama.cpp"

    def __init__(self, program: str, file: str, threads: int) -> None:
        self._command = [program, "-m", file, "-t", str(threads), "-r", "1", "-o", "json"]

    def seconds(self, *, prompt: int = 0, decoded: int = 0, depth: int = 0) -> float:
        """Seconds a token, as it says itself: loading, its warm-up and the context before are not in it."""
        flags = ["-p", str(prompt), "-n", str(decoded), "-d", str(depth)]
        done = subprocess.run([*self._command, *flags], check=True, capture_output=True, text=True)
        return 1 / float(json.loads(done.stdout)[0]["avg_ts"])


def llama_cpp(threads: int) -> LlamaCpp | None:
    """The build that LLAMA_BENCH and LLAMA_GGUF name."""
    program, file = os.environ.get("LLAMA_BENCH"), os.environ.get("LLAMA_GGUF")
    if not program or not file:
        print("llama.cpp: not measured (LLAMA_BENCH and LLAMA_GGUF name no build and file)")
        return None
    return LlamaCpp(program, file, threads)


@dataclass
class Row:
    """A test's timings: seconds per token of each program, and GB/s that memory gave in the same minute."""

    test: str
    bytes_per_token: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)


def timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure_prefill(runners: list[Runner], llama: LlamaCpp | None, count: int, repeat: int) -> Row:
    row = Row(f"pp{count}", 0)
    ids = torch.randint(0, 1000, (count,), generator=torch.Generator().manual_seed(count))
    for turn in range(repeat):
        row.bandwidths.append(measure_ram() / 1e9)
        for runner in runners if turn % 2 else reversed(runners):
            seconds = timed(lambda runner=runner: runner.prefill(ids)) / count
            row.seconds.setdefault(runner.name, []).append(seconds)
        if llama is not None:
            row.seconds.setdefault(llama.name, []).append(llama.seconds(prompt=count))
    return row


def measure_decode(runners: list[Runner], llama: LlamaCpp | None, depth: int, repeat: int, bytes_per_token: int) -> Row:
    row = Row(f"tg@{depth}", bytes_per_token)
    steps = {runner.name: runner.decode(depth) for runner in runners}
    for step in steps.values():
        step()
    for turn in range(repeat):
        row.bandwidths.append(measure_ram() / 1e9)
        for name, step in steps.items() if turn % 2 else reversed(steps.items()):
            # Each token on its own: on a busy machine some lose their core for 50 ms, and a mean would tell of that.
            row.seconds.setdefault(name, []).extend(timed(step) for _ in range(DECODED))
        if llama is not None:
            row.seconds.setdefault(llama.name, []).append(llama.seconds(decoded=4 * DECODED, depth=depth))
    return row


def show(row: Row) -> None:
    best = max(row.bandwidths)
    ours = statistics.median(row.seconds["dslite"])
    parts = [f"{row.test:>9}  memory {best:5.1f} GB/s"]
    for name, seconds in row.seconds.items():
        middle = statistics.median(seconds)
        parts.append(f"{name} {1 / middle:8.2f} tok/s ({1 / max(seconds):.2f} to {1 / min(seconds):.2f})")
        if name != "dslite":
            parts.append(f"dslite is {middle / ours:.2f}x")
        elif row.bytes_per_token:
            achieved = row.bytes_per_token / middle / 1e9
            parts.append(f"{achieved:.1f} GB/s, {achieved / best:.0%} of the bound")
    print("  ".join(parts), flush=True)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=numbers, default=[512, 2048, 8192])
    parser.add_argument("--depths", type=numbers, default=[512, 2048, 8192])
    parser.add_argument("--alone", type=numbers, default=[512, 4096, 16384], help="depths measured without a peer")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prefill-repeat", type=int, help="default: as --repeat")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--chunk", type=int, default=2048)
    parser.add_argument("--no-transformers", action="store_true", help="where memory holds two programs and not three")
    parser.add_argument("--experts", default="eager", help="transformers' experts_implementation")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    context = max([*args.prompts, *args.depths, *args.alone, WARMING]) + DECODED * args.repeat + 64
    ours = Ours(args.folder, context, args.chunk)
    per_token = Footprint(ours.config, "bfloat16").read_per_token
    print(f"{cpu_name()}, {args.threads} threads, {sys.platform}, torch {torch.__version__}, {native.describe()}")
    print(f"{ours.config.num_hidden_layers} layers, {per_token:,} bytes of weights per token")

    def read(depth: int) -> int:
        return per_token + depth * kv_bytes_per_token(ours.config)

    ours.prefill(torch.randint(0, 1000, (WARMING,)))  # every page of the files has been touched
    llama = llama_cpp(args.threads)
    for depth in args.alone:
        show(measure_decode([ours], None, depth, args.repeat, read(depth)))
    runners: list[Runner] = [ours]
    if (args.prompts or args.depths) and not args.no_transformers:
        runners.append(Transformers(args.folder, args.experts))
    for count in args.prompts:
        show(measure_prefill(runners, llama, count, args.prefill_repeat or args.repeat))
    for depth in args.depths:
        show(measure_decode(runners, llama, depth, args.repeat, read(depth)))


if __name__ == "__main__":
    main()
