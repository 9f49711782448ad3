"""How long `dslite complete` takes with a warm engine and without, from key to exit.

    .venv/bin/python tests/benchmarks/warm_start.py [--runs 15] [-m demo]

Both take turns, so that other work on the machine meets both.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DSLITE = Path(sys.executable).with_name("dslite")


def seconds(command: list[str], env: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("-m", "--model", default="demo")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        places = {f"DSLITE_{kind}_DIR": f"{home}/{kind.lower()}" for kind in ("CONFIG", "DATA", "CACHE", "RUNTIME")}
        env = {**os.environ, **places}
        subprocess.run([DSLITE, "engine", "start", "-m", given.model], env=env, check=True)
        complete = [str(DSLITE), "complete", "-m", given.model, "-t", "0", "-n", "16", "hi"]
        times: dict[str, list[float]] = {"warm": [], "in-process": []}
        try:
            for command in (complete, [*complete, "--no-warm"]):  # files are in the page cache, bytecode is compiled
                seconds(command, env)
            for _ in range(given.runs):
                times["warm"].append(seconds(complete, env))
                times["in-process"].append(seconds([*complete, "--no-warm"], env))
        finally:
            subprocess.run([DSLITE, "engine", "stop"], env=env, check=True)
    for name, found in times.items():
        print(f"{name:11} median {statistics.median(found):.3f} s, {min(found):.3f} to {max(found):.3f}")
    print(f"ratio of the medians {statistics.median(times['warm']) / statistics.median(times['in-process']):.2f}")


if __name__ == "__main__":
    main()
