"""Two versions of dslite in turns: is this checkout as fast as another one?

    python tests/benchmarks/pairs.py OTHER/.venv/bin/dslite .venv/bin/dslite --model /tmp/lite8 [--pairs 9]

The two programs run one after the other, each pair in the opposite order of the pair before, because a shared machine
is not the same machine a minute later. Printed: the medians of both, and the median of the pairs' ratios (above 1: the
second is faster). `--model` needs weights that memory holds; the start is measured with the demo model.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable


def bench(program: str, model: str, prompt: int, depth: int, tokens: int) -> dict[str, float]:
    """Tokens a second of one prefill and of decoding behind `depth` tokens."""
    flags = ["-p", str(prompt), "-n", str(tokens), "-d", str(depth), "-r", "1", "-o", "json"]
    done = subprocess.run([program, "bench", "-m", model, *flags], check=True, capture_output=True, text=True)
    return {f"{row['test']} at {row['depth']}": row["tps_median"] for row in json.loads(done.stdout)}


def start(program: str) -> dict[str, float]:
    """Answers a second of a whole `complete` over the demo model, from key press to exit."""
    began = time.perf_counter()
    command = [program, "complete", "-m", "demo", "-t", "0", "-n", "1", "--no-save", "hi"]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return {"complete -m demo": 1 / (time.perf_counter() - began)}


def measure(
    programs: tuple[str, str], run: Callable[[str], dict[str, float]], pairs: int
) -> dict[str, list[tuple[float, float]]]:
    """The figures of both programs, pair by pair."""
    found: dict[str, list[tuple[float, float]]] = {}
    for turn in range(pairs):
        order = programs if turn % 2 else programs[::-1]
        got = {program: run(program) for program in order}
        for name, value in got[programs[0]].items():
            found.setdefault(name, []).append((value, got[programs[1]][name]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--model", help="weights for prefill and decode; without it the start alone is measured")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--depth", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    programs = (args.first, args.second)
    runs: list[Callable[[str], dict[str, float]]] = [start]
    if args.model:
        runs.append(lambda program: bench(program, args.model, args.prompt, args.depth, args.tokens))
    for run in runs:
        for name, values in measure(programs, run, args.pairs).items():
            first, second = (statistics.median(pair[side] for pair in values) for side in (0, 1))
            ratios = sorted(after / before for before, after in values)
            print(
                f"{name:>20}  {first:9.3f}  {second:9.3f}  ratio {statistics.median(ratios):.3f}"
                f"  ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(values)} pairs)",
                flush=True,
            )


if __name__ == "__main__":
    main()
