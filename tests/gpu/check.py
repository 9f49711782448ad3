"""Check dslite on this machine's GPU and write one report to attach to a bug: `make gpu-check`.

Runs the tests marked gpu, then times decoding, reading prompts and loading, on random layers of Lite's size, beside
what `dslite plan` predicts for them. Ends with 0 where every test passed, 1 where one failed, 3 without a GPU. Works
with any CUDA build of torch from 2.9 on:

    make gpu-check GPU_PYTHON=/path/to/python
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dslite.model.config import ModelConfig
    from dslite.runtime.planning.hardware import MachineSpec

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_LEAST_TORCH = (2, 9)
_GENERATED, _REPEAT = 64, 5
_PROMPTS, _DEPTHS = (512, 2048), (512, 4096, 16384)
_ROOM = 6 * 2**30  # of GPU memory beside the layers: embedding, head, cache, workspace


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="layers of Lite's size to time, fewer where memory ends")
    parser.add_argument("--output", type=Path, default=Path("gpu-report.md"), help="where the report goes")
    parser.add_argument("--no-tests", action="store_true", help="only measure")
    options = parser.parse_args()
    if (why := why_not()) is not None:
        print(f"gpu-check: {why}", file=sys.stderr)
        return 3
    passed, lines = (True, ["not run"]) if options.no_tests else run_tests()
    report = [*head(), "", "## Tests", "```", *lines, "```", ""]
    options.output.write_text("\n".join(report), encoding="utf-8")  # kept, should measuring fail
    for line in measurements(options.layers):
        print(line, flush=True)
        report.append(line)
        options.output.write_text("\n".join(report) + "\n", encoding="utf-8")
    print(f"\n{'all tests passed' if passed else 'TESTS FAILED'}; the report is in {options.output.resolve()}")
    return 0 if passed else 1


def why_not() -> str | None:
    """What keeps this machine from being checked, in one line."""
    try:
        import torch
    except ImportError:
        return "torch is not installed in this Python"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _LEAST_TORCH:
        return f"torch {torch.__version__} is older than {'.'.join(map(str, _LEAST_TORCH))}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA: there is nothing to check"
    if not torch.cuda.is_available():
        return "there is no CUDA device: nothing was checked"
    return None


def run_tests() -> tuple[bool, list[str]]:
    """The tests marked gpu, in a process of their own; the end of what they said."""
    command = [sys.executable, "-m", "pytest", str(HERE), "-m", "gpu", "-q", "-rfEs", "--tb=short", "-W", "default"]
    command += ["--noconftest", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    print("running the tests marked gpu", flush=True)
    # Triton must compile, not interpret.
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).rstrip().splitlines()
    print(lines[-1] if lines else "pytest said nothing")
    return done.returncode == 0, lines[-400:]


def head() -> Iterator[str]:
    """What ran where."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    yield "# dslite on a GPU"
    yield ""
    yield f"- {properties.name}, compute capability {properties.major}.{properties.minor}, "
    yield f"  {properties.multi_processor_count} processors, {properties.total_memory / 2**30:.1f} GiB"
    yield f"- torch {torch.__version__} (CUDA {torch.version.cuda}), {_version('triton')}, driver {_driver()}"
    yield f"- {_version('dslite')}, commit {_output('git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD')}"
    yield f"- Python {platform.python_version()}, {platform.platform()}"


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def _driver() -> str:
    return _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measurements(layers: int) -> Iterator[str]:
    """The report's second part, line by line."""
    import torch

    from dslite.runtime.planning.bandwidth import bandwidths
    from dslite.runtime.planning.hardware import unmeasured

    machine = unmeasured()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DSLITE_CACHE_DIR"] = cache
        speeds = bandwidths("here", "cuda", refresh=True)
        here = replace(machine, gpu_bandwidth=speeds.gpu, pcie_bandwidth=speeds.pcie, ram_bandwidth=speeds.ram)
        yield "## Measured"
        given = (f"{name} {speed / 1e9:,.1f}" for name, speed in vars(speeds).items() if speed)
        yield f"Read bandwidths, GB/s: {', '.join(given)}."
        yield ""
        config = _cut(layers, here.vram_free)
        yield from _speeds(config, here)
        yield from _loading(_cut(min(layers, 2), here.vram_free))
        yield f"Most GPU memory: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB."


def _cut(layers: int, memory: int) -> "ModelConfig":
    """Lite with as many of its layers as are wanted and fit."""
    from support.machines import lite_config

    from dslite.runtime.planning.footprint import Footprint

    config = lite_config()
    layer = Footprint(config, "bfloat16").routed // 26
    return replace(config, num_hidden_layers=max(2, min(layers, config.num_hidden_layers, (memory - _ROOM) // layer)))


def _speeds(config: "ModelConfig", here: "MachineSpec") -> Iterator[str]:
    """Decoding and prompts: recorded, and by torch's kernels alone."""
    import torch

    from dslite.model.kernels import gpu
    from dslite.runtime.diagnostics.benchmark import SpeedTest, random_model
    from dslite.runtime.planning.placement import PREFILL_CHUNKS, plan

    expected = plan(here, config).prediction
    model = random_model(config, torch.device("cuda", 0), torch.bfloat16)
    usable = gpu.usable(model.device)
    yield f"{config.num_hidden_layers} layers of Lite's size, BF16, batch 1."
    yield f"Predicted: {expected.decode_tps:.1f} tok/s, {expected.share:.0%} of the bound."
    yield f"{expected.launches} launches a token. Kernels of ours: {'yes' if usable else 'no'}."
    yield ""
    yield "| test | cached | tok/s (least to most) | GB/s | of the memory's | of the prediction | torch alone, tok/s |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    test = SpeedTest(_PROMPTS, _GENERATED, _DEPTHS, _REPEAT)
    chunk = PREFILL_CHUNKS[0]
    rows = list(test.run(model, chunk))
    with _torch_alone():
        plain = list(test.run(replace(model, recorder=None), chunk))
    for row, other in zip(rows, plain, strict=True):
        decodes = row.test.startswith("tg")
        gbps = f"{row.achieved / 1e9:,.0f}" if decodes else ""
        share = f"{row.achieved / here.gpu_bandwidth:.0%}" if decodes else ""
        part = f"{row.median / expected.decode_tps:.0%}" if decodes else ""
        speed = f"{row.median:,.1f} ({min(row.runs):,.1f} to {max(row.runs):,.1f})"
        yield f"| {row.test} | {row.depth} | {speed} | {gbps} | {share} | {part} | {other.median:,.1f} |"
    yield ""


class _torch_alone:
    """No kernel of ours is used within."""

    def __enter__(self) -> None:
        from dslite.model.kernels import gpu

        gpu.usable.cache_clear()
        os.environ["DSLITE_KERNELS"] = "torch"

    def __exit__(self, *_: object) -> None:
        from dslite.model.kernels import gpu

        gpu.usable.cache_clear()
        del os.environ["DSLITE_KERNELS"]


def _loading(config: "ModelConfig") -> Iterator[str]:
    """A checkpoint's way from the page cache to the GPU."""
    import torch
    from support.checkpoints import write_checkpoint
    from support.reference import golden

    from dslite.runtime.weights.checkpoint import Checkpoint
    from dslite.runtime.weights.loader import load

    raw = {**golden("deepseek-v2-lite.config.json"), "num_hidden_layers": config.num_hidden_layers}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), raw, std=0.02, dtype=torch.bfloat16, tokenizer=False)
        checkpoint = Checkpoint.open(Path(folder))
        begin = time.perf_counter()
        load(checkpoint, device=torch.device("cuda", 0), dtype=torch.bfloat16)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    gigabytes = checkpoint.nbytes / 1e9
    yield f"Loading {gigabytes:.2f} GB from the page cache took {seconds:.2f} s: {gigabytes / seconds:.1f} GB/s."


if __name__ == "__main__":
    sys.exit(main())
