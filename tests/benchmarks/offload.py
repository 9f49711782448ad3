"""Decoding and reading prompts with less memory than the model, inside a memory limit that counts the page cache.

    python tests/benchmarks/offload.py FOLDER --ram 20GiB --tokens 64

Needs root and control groups of version 1 (or a limit set from outside, with --no-limit). Prints one JSON object:
medians per token, hit rate, bytes per token, the disk's rate for the same kind of reads before and behind, and how near
decoding comes to the bound made of the disk time of the misses plus the computing that cannot go on beside it. Prompts
are read once with empty slots ("cold") and then with those that the earlier ones left, which is how a chat finds them.
--mapped measures the same network with its weights mapped and left to page faults, for comparison.
"""

import argparse
import gc
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

GROUP = Path("/sys/fs/cgroup/memory/dslite-offload")
CONTEXT = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ram", default="20GiB")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prefill", default="128,2048", help="prompt lengths")
    parser.add_argument("--mapped", action="store_true", help="page faults instead of slots")
    parser.add_argument("--no-limit", action="store_true", help="make no control group")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()

    from dslite.runtime.units import parse_size

    ram = parse_size(args.ram)
    if not args.no_limit:
        enter_group(ram)
    print(json.dumps(measure(args, ram), indent=1))


def enter_group(limit: int) -> None:
    """Put this process under a limit of memory, before it has taken any to speak of."""
    GROUP.mkdir(exist_ok=True)
    (GROUP / "memory.limit_in_bytes").write_text(str(limit))
    (GROUP / "cgroup.procs").write_text(str(os.getpid()))


def measure(args: argparse.Namespace, ram: int) -> dict[str, Any]:
    import torch

    from dslite.runtime.engine.engine import Engine
    from dslite.runtime.planning.device_plan import PlanRequest
    from dslite.runtime.planning.fit import fit
    from dslite.runtime.system.memory import peak_rss
    from dslite.runtime.system.processors import processors
    from dslite.runtime.text.tokenizer import Tokenizer
    from dslite.runtime.weights.checkpoint import Checkpoint
    from dslite.runtime.weights.loader import load

    torch.set_num_threads(args.threads or processors().threads)
    checkpoint = Checkpoint.open(args.folder)
    plan = None if args.mapped else fit(checkpoint.config, "cpu", PlanRequest(context=CONTEXT, ram=ram))
    began = time.perf_counter()
    model = load(checkpoint, device=torch.device("cpu"), dtype=torch.bfloat16, plan=plan)
    loaded = time.perf_counter() - began
    engine = Engine(model, Tokenizer.from_folder(args.folder), context=CONTEXT)
    random.seed(0)
    shown: dict[str, Any] = {"ram": ram, "slots": None if plan is None else plan.slots, "load_s": round(loaded, 2)}
    counts = list(map(int, args.prefill.split(",")))
    shown[f"prefill_{counts[0]}_cold"] = prefill(engine, counts[0])
    before = disk_rate(checkpoint)
    for count in counts:
        shown[f"prefill_{count}"] = prefill(engine, count)
    decoded = decode(engine, args.tokens)
    after = disk_rate(checkpoint)
    rate = (before + after) / 2
    shown |= {"disk_gbps_before": round(before / 1e9, 2), "disk_gbps_after": round(after / 1e9, 2)}
    shown["decode"] = decoded | (against_bound(engine, decoded, rate) if plan is not None else {})
    shown["peak_rss_gb"] = round(peak_rss() / 1e9, 2)
    if not args.no_limit:
        shown["group_peak_gb"] = round(int((GROUP / "memory.max_usage_in_bytes").read_text()) / 1e9, 2)
    return shown


def disk_rate(checkpoint: Any, runs: int = 7, count: int = 12) -> float:
    """Bytes per second of reading whole experts at random places, one behind the other, as misses are read: the median
    of some runs.
    """
    from dslite.runtime.device import anonymous_memory
    from dslite.runtime.weights.disk import Extents, Reader, Reading
    from dslite.runtime.weights.packed_layout import MATRICES
    from dslite.runtime.weights.sources import expert_name

    config = checkpoint.config
    reader = Reader(checkpoint)
    buffer = anonymous_memory(2**25).fill_(0)  # in place: its first pages are not the disk's time
    rates = []
    for _ in range(runs):
        moved, began = 0, time.perf_counter()
        for _ in range(count):
            layer = random.randrange(config.first_k_dense_replace, config.num_hidden_layers)
            expert = random.randrange(config.n_routed_experts)
            entries = [checkpoint.entries[expert_name(layer, expert, matrix)] for matrix in MATRICES]
            extents = Extents.of(entries, reader.files)
            Reading(extents, reader.read(extents, buffer)).wait()
            moved += sum(entry.nbytes for entry in entries)
        rates.append(moved / (time.perf_counter() - began))
    reader.close()
    return statistics.median(rates)


def prefill(engine: Any, count: int) -> dict[str, float]:
    """Read a prompt of random tokens from an empty cache."""
    ids = [random.randrange(engine.model.config.vocab_size) for _ in range(count)]
    moved, waited = counters(engine)
    began = time.perf_counter()
    from dslite.model.attention import Span

    cache = engine.runner.make_cache(engine.context)
    for start in range(0, count, engine.runner.prefill_chunk):
        chunk = ids[start : start + engine.runner.prefill_chunk]
        engine.runner.run(chunk, [Span(cache, len(chunk))])
    took = time.perf_counter() - began
    now_moved, now_waited = counters(engine)
    return {
        "tps": round(count / took, 2),
        "waited_s": round(now_waited - waited, 2),
        "took_s": round(took, 2),
        "moved_gb": round((now_moved - moved) / 1e9, 2),
    }


def decode(engine: Any, count: int) -> dict[str, float]:
    """Decode random tokens. Each is then computed again, with all that it wants in slots: its computing alone."""
    times, moves, waits, computing = [], [], [], []
    hits = misses = 0
    cache = engine.runner.make_cache(engine.context)
    step(engine, cache, 1)
    gc.disable()
    for _ in range(count):
        token_id = random.randrange(engine.model.config.vocab_size)
        (moved, waited), (hits_before, misses_before) = counters(engine), hits_and_misses(engine)
        times.append(step(engine, cache, token_id))
        (now_moved, now_waited), (now_hits, now_misses) = counters(engine), hits_and_misses(engine)
        moves.append(now_moved - moved)
        waits.append(now_waited - waited)
        hits, misses = hits + now_hits - hits_before, misses + now_misses - misses_before
        cache.truncate(cache.length - 1)
        computing.append(step(engine, cache, token_id))
    token = statistics.median(times)
    return {
        "tps": round(1 / token, 3),
        "token_s": round(token, 4),
        "slowest_s": round(max(times), 3),
        "waited_s": round(statistics.median(waits), 4),
        "computing_s": round(statistics.median(computing), 4),
        "hit_rate": round(hits / max(1, hits + misses), 3),
        "bytes_per_token": round(statistics.mean(moves)),
    }


def step(engine: Any, cache: Any, token_id: int) -> float:
    """Seconds of one token."""
    from dslite.model.attention import Span

    began = time.perf_counter()
    engine.runner.run([token_id], [Span(cache, 1)])
    return time.perf_counter() - began


def against_bound(engine: Any, decoded: dict[str, float], rate: float) -> dict[str, float]:
    """The bound at a disk's `rate`, and how near to it a token came."""
    on_disk = decoded["bytes_per_token"] / rate
    beside = decoded["computing_s"] * beside_share(engine, decoded["hit_rate"])
    bound = decoded["computing_s"] + on_disk - min(on_disk, beside)
    return {
        "disk_s": round(on_disk, 4),
        "bound_tps": round(1 / bound, 3),
        "of_bound": round(bound / decoded["token_s"], 3),
    }


def beside_share(engine: Any, hit_rate: float) -> float:
    """The share of the computing, by bytes, that can go on while misses are read: hits and shared experts."""
    from dslite.runtime.planning.footprint import Footprint

    size = Footprint(engine.model.config, "bfloat16")
    beside = hit_rate * size.routed_per_token + size.shared_per_layer * size.moe_layers
    return beside / size.read_per_token


def counters(engine: Any) -> tuple[int, float]:
    stats = None if engine.experts is None else engine.experts.stats
    return (0, 0.0) if stats is None else (stats.bytes_moved, stats.wait_s)


def hits_and_misses(engine: Any) -> tuple[int, int]:
    stats = None if engine.experts is None else engine.experts.stats
    return (0, 0) if stats is None else (stats.hits, stats.misses)


if __name__ == "__main__":
    main()
