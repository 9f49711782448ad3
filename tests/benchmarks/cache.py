"""What keeping a conversation's latent entries saves: turns, resuming from disk, many prompts at once.

    python tests/benchmarks/cache.py FOLDER [--tokens 4096] [--long 32768] [--repeat 5]

FOLDER holds a checkpoint of real layer sizes. Prints medians and the ratios between them.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dslite.runtime.cache.disk_cache import LatentDiskCache
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine.request import Request
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine.scheduler import Scheduler
from dslite.runtime.engine_loader import open_engine
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.events import Done, Token

_NEW = 32  # tokens of a turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--long", type=int, default=32768)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    arguments = parser.parse_args()
    engine = open_engine(arguments.folder, EngineOptions(ctx_size=arguments.long + 256))
    print(f"{arguments.folder}: {len(engine.model.layers)} layers, {torch.get_num_threads()} threads")
    computing = second_turn(engine, arguments.tokens, arguments.repeat)
    resuming(engine, arguments.tokens, arguments.repeat, computing)
    if arguments.long > arguments.tokens:
        resuming(engine, arguments.long, arguments.repeat, computing * arguments.long / arguments.tokens)
    together(engine, arguments.prompts, arguments.repeat)


def tokens(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000, 90_000) for _ in range(count)]


def greedy(ids: list[int], max_tokens: int) -> Request:
    return Request(ids, SamplingParams(temperature=0, max_tokens=max_tokens))


def answer(engine: Engine, request: Request) -> tuple[float, Done]:
    """Seconds to the first token, and the end of the answer."""
    started, first = time.perf_counter(), 0.0
    for event in engine.generate(request):
        if isinstance(event, Token) and not first:
            first = time.perf_counter() - started
        if isinstance(event, Done):
            return first, event
    raise AssertionError("an answer has an end")


def median(measure: Callable[[], float], repeat: int) -> float:
    return statistics.median(measure() for _ in range(repeat))


def second_turn(engine: Engine, count: int, repeat: int) -> float:
    """Time to the first token of 32 new tokens behind `count` known ones, against a fresh prompt of 32 tokens."""
    conversation = tokens(count, 1)
    started = time.perf_counter()
    answer(engine, greedy(conversation, 1))
    computing = time.perf_counter() - started
    turns, fresh, steps = [], [], []
    for number in range(repeat):
        engine.prefix_cache.release(engine.prefix_cache.acquire(conversation))
        turns.append(answer(engine, greedy(conversation + tokens(_NEW, 100 + number), 1))[0])
        engine.prefix_cache.clear()
        _, done = answer(engine, greedy(tokens(_NEW, 200 + number), 9))
        fresh.append(done.timing.ttft_s)
        steps.append((done.timing.decode_s - (done.timing.ttft_s - done.timing.prefill_s)) / 8)
        answer(engine, greedy(conversation, 1))
    bound = statistics.median(fresh) + statistics.median(steps)
    print(
        f"turn of {_NEW} tokens behind {count:,}: first token after {statistics.median(turns):.3f} s; fresh prompt of "
        f"{_NEW} and one step: {bound:.3f} s; ratio {statistics.median(turns) / bound:.2f}"
    )
    return computing


def resuming(engine: Engine, count: int, repeat: int, computing: float) -> None:
    """Load `count` tokens' entries from disk, against computing them (of a long context: at the short one's speed)."""
    ids = tokens(count, 1)
    engine.prefix_cache.clear()
    cache = engine.runner.make_cache(engine.context)
    cache.reserve(count).normal_()
    cache.commit(count)
    with tempfile.TemporaryDirectory() as folder:
        store = LatentDiskCache(Path(folder), "benchmark")
        started = time.perf_counter()
        assert store.save("chat", ids, cache)
        saving = time.perf_counter() - started

        def load() -> float:
            cache.truncate(0)
            started = time.perf_counter()
            assert store.load("chat", ids, cache) == count
            return time.perf_counter() - started

        loading = median(load, repeat)
        print(
            f"resume {count:,} tokens ({store.nbytes / 1e6:.0f} MB): {loading:.3f} s; saved in {saving:.2f} s; "
            f"computing takes about {computing:.1f} s: {computing / loading:.0f} times as long"
        )
    engine.prefix_cache.clear()


def together(engine: Engine, prompts: int, repeat: int) -> None:
    """Tokens per second of prompts answered together, against one after the other."""
    made = 32
    requests = [greedy(tokens(64, 300 + number), made) for number in range(prompts)]

    def one_by_one() -> float:
        seconds = 0.0
        for request in requests:
            engine.prefix_cache.clear()
            _, done = answer(engine, request)
            seconds += done.timing.prefill_s + done.timing.decode_s
        return seconds

    def at_once() -> float:
        scheduler = Scheduler(engine, max_sequences=prompts)
        for number, request in enumerate(requests):
            scheduler.add(number, request)
        started = time.perf_counter()
        for _ in scheduler.run():
            pass
        return time.perf_counter() - started

    pairs = [(one_by_one(), at_once()) for _ in range(repeat)]
    total = prompts * made
    alone, batched = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{prompts} prompts, {made} tokens each: {total / alone:.1f} tok/s one after the other, "
        f"{total / batched:.1f} tok/s together; ratio {statistics.median(a / b for a, b in pairs):.2f}"
    )


if __name__ == "__main__":
    main()
