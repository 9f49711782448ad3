"""Check dslite on this machine's GPU and write one report to attach to a bug: `make gpu-check`.

Runs the tests marked gpu, then times decoding, reading prompts and loading, on random layers of Lite's size, beside
what `dslite plan` predicts for them. Ends with 0 where every test passed, 1 where one failed, 3 without a GPU. Works
with any CUDA build of torch from 2.9 on:

    make gpu-check GPU_PYTHON=/path/to/python
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dslite.model.config import ModelConfig
    from dslite.model.transformer import Transformer
    from dslite.runtime.planning.hardware import MachineSpec

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
_LEAST_TORCH = (2, 9)
_NEEDED = ("numpy", "pytest", "triton", "safetensors", "tokenizers", "huggingface_hub", "platformdirs")
_GENERATED, _REPEAT = 64, 5
_PROMPTS, _DEPTHS = (20, 512, 2048), (0, 4096, 32_768)
_BATCHES = (2, 4, 8, 16)
_ROOM = 6 * 2**30  # of GPU memory beside the layers: embedding, head, cache, workspace


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8, help="layers of Lite's size to time, fewer where memory ends")
    parser.add_argument("--output", type=Path, default=Path("gpu-report.md"), help="where the report goes")
    parser.add_argument("--no-tests", action="store_true", help="only measure")
    parser.add_argument("--only", action="append", choices=SECTIONS, help="measure this section alone; repeatable")
    options = parser.parse_args()
    if (why := why_not()) is not None:
        print(f"gpu-check: {why}", file=sys.stderr)
        return 3
    passed, lines = (True, ["not run"]) if options.no_tests else run_tests()
    report = [*head(), "", "## Tests", "```", *lines, "```", ""]
    options.output.write_text("\n".join(report), encoding="utf-8")  # kept, should measuring fail
    for line in measurements(options.layers, options.only or list(SECTIONS)):
        print(line, flush=True)
        report.append(line)
        options.output.write_text("\n".join(report) + "\n", encoding="utf-8")
    failed = any(line.startswith(_FAILED) for line in report)
    passed = passed and not failed
    print(f"\n{'all passed' if passed else 'FAILED'}; the report is in {options.output.resolve()}")
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
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        return f"this Python lacks {', '.join(missing)}: install them, or carry their wheels"
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
    yield f"- torch's kernels are for {', '.join(torch.cuda.get_arch_list())}"
    fields = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,pcie.link.gen.current,pcie.link.width.current"
    yield f"- {fields}: {_nvidia_smi(fields)}"


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def _driver() -> str:
    return _nvidia_smi("driver_version")


def _nvidia_smi(fields: str) -> str:
    return _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader").partition("\n")[0]


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measurements(layers: int, wanted: list[str]) -> Iterator[str]:
    """The report's second part, line by line. A section that fails is told, and the next one begins."""
    import torch

    from dslite.runtime.diagnostics.benchmark import random_model
    from dslite.runtime.planning.bandwidth import bandwidths
    from dslite.runtime.planning.hardware import unmeasured

    machine = unmeasured()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DSLITE_CACHE_DIR"] = cache
        speeds = bandwidths("here", "cuda", refresh=True)
        here = replace(machine, gpu_bandwidth=speeds.gpu, pcie_bandwidth=speeds.pcie, ram_bandwidth=speeds.ram)
        given = (f"{name} {speed / 1e9:,.1f}" for name, speed in vars(speeds).items() if speed)
        yield f"Read bandwidths, GB/s: {', '.join(given)}."
        config = _cut(layers, here.vram_free)
        model = random_model(config, torch.device("cuda", 0), torch.bfloat16)
        yield f"{config.num_hidden_layers} layers of Lite's size, BF16, random weights."
        for name in wanted:
            yield ""
            yield f"## {name.capitalize()}"
            begin = time.perf_counter()
            try:
                yield from SECTIONS[name](model, here)
            except Exception as error:
                traceback.print_exc()
                yield f"{_FAILED} {type(error).__name__}: {error}"
            yield f"({time.perf_counter() - begin:.1f} s)"
        yield f"Most GPU memory: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB used, "
        yield f"{torch.cuda.max_memory_reserved() / 1e9:.2f} GB reserved by torch."


def _cut(layers: int, memory: int) -> "ModelConfig":
    """Lite with as many of its layers as are wanted and fit."""
    from support.machines import lite_config

    from dslite.runtime.planning.footprint import Footprint

    config = lite_config()
    layer = Footprint(config, "bfloat16").routed // 26
    return replace(config, num_hidden_layers=max(2, min(layers, config.num_hidden_layers, (memory - _ROOM) // layer)))


def _record(model: "Transformer", here: "MachineSpec") -> Iterator[str]:
    """What the first steps cost, and what a replay takes by the GPU's own clock."""
    import torch

    from dslite.model.attention import Span
    from dslite.model.decode_cuda import BATCH_SIZES
    from dslite.runtime.cache.latent_cache import LatentKVCache

    def step(count: int) -> None:
        caches = [LatentKVCache(model.config, 8, dtype=model.dtype, device=model.device) for _ in range(count)]
        model.logits(model.forward(torch.zeros(count, dtype=torch.long), [Span(cache, 1) for cache in caches]))

    recorder = model.step_recorder
    assert recorder is not None
    with torch.inference_mode():
        for count in BATCH_SIZES:
            first = _seconds(lambda count=count: step(count))
            again = min(_seconds(lambda count=count: step(count)) for _ in range(5))
            replays = [segment.replays[count] for segment in recorder.segments]
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(20):
                for replay in replays:
                    replay()
            end.record()
            torch.cuda.synchronize()
            alone = begin.elapsed_time(end) / 20
            yield f"- {count} sequences: first step {first:.2f} s, later {again * 1e3:.2f} ms, replay {alone:.3f} ms"


def _seconds(action: Callable[[], Any]) -> float:
    import torch

    torch.cuda.synchronize()
    begin = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def _speeds(model: "Transformer", here: "MachineSpec") -> Iterator[str]:
    """One sequence, decoding and prompts; torch alone for the shallowest."""
    from dslite.runtime.diagnostics.benchmark import SpeedTest
    from dslite.runtime.planning.placement import PREFILL_CHUNKS, plan

    expected = plan(here, model.config).prediction
    yield f"Predicted: {expected.decode_tps:.1f} tok/s, {expected.share:.0%} of the bound; {expected.launches} launches"
    yield f"a token; {plan(here, model.config).vram_bytes / 1e9:.2f} GB of GPU memory for a context of 32,768."
    yield ""
    yield "| test | cached | tok/s (least to most) | GB/s | of the memory's | of the prediction |"
    yield "| --- | --- | --- | --- | --- | --- |"
    chunk = PREFILL_CHUNKS[0]
    for row in SpeedTest(_PROMPTS, _GENERATED, _DEPTHS, _REPEAT).run(model, chunk):
        decodes = row.test.startswith("tg")
        gbps = f"{row.achieved / 1e9:,.0f}" if decodes else ""
        share = f"{row.achieved / here.gpu_bandwidth:.0%}" if decodes else ""
        part = f"{row.median / expected.decode_tps:.0%}" if decodes else ""
        speed = f"{row.median:,.1f} ({min(row.runs):,.1f} to {max(row.runs):,.1f})"
        yield f"| {row.test} | {row.depth} | {speed} | {gbps} | {share} | {part} |"
    with _torch_alone():
        for row in SpeedTest((512,), 8, (512,), 2).run(replace(model, recorder=None), chunk):
            yield f"| {row.test}, torch alone | {row.depth} | {row.median:,.1f} | | | |"


def _several(model: "Transformer", here: "MachineSpec") -> Iterator[str]:
    """Several sequences in one step, 512 tokens deep."""
    from dslite.runtime.diagnostics.benchmark import SpeedTest

    for count in _BATCHES:
        (row,) = SpeedTest((), _GENERATED, (512,), _REPEAT, batch_size=count).run(model, 2048)
        yield f"- {count} sequences: {row.median:,.1f} tok/s in all ({min(row.runs):,.1f} to {max(row.runs):,.1f})"


def _drawing(model: "Transformer", here: "MachineSpec") -> Iterator[str]:
    """Decoding as the engine does it: each token comes to the host before the next step."""
    import torch

    from dslite.model.attention import Span
    from dslite.runtime.engine.runner import ModelRunner
    from dslite.runtime.engine.sampling import Sampler
    from dslite.runtime.engine.sampling_params import SamplingParams

    class Drawn:
        """What drawing asks of a sequence."""

        def __init__(self, params: SamplingParams) -> None:
            self._sampler = Sampler(params, [], model.config.vocab_size)

        @property
        def race(self) -> Any:
            return self._sampler.race

        def adjust(self, logits: torch.Tensor) -> torch.Tensor:
            return logits

    runner = ModelRunner(model)
    ways = {
        "greedy": SamplingParams(temperature=0),
        "temperature 0.3, top_p 0.95": SamplingParams(temperature=0.3, top_p=0.95, seed=1),
        "temperature 1, top_p 1": SamplingParams(temperature=1.0, top_p=1.0, seed=1),
        "temperature 1, top_k 40": SamplingParams(temperature=1.0, top_p=1.0, top_k=40, seed=1),
    }
    for count in (1, 16):
        for name, params in ways.items():
            sequences = [Drawn(params) for _ in range(count)]
            caches = [runner.make_cache(1024) for _ in sequences]
            shape = (model.config.num_hidden_layers, 512, model.config.latent_width)
            for cache in caches:
                cache.put(torch.randn(shape, dtype=model.dtype, device=model.device))
            ids = [1] * count

            def run(steps: int) -> None:
                nonlocal ids
                for _ in range(steps):
                    _, logits = runner.run(ids, [Span(cache, 1) for cache in caches])  # noqa: B023 - called at once
                    ids = runner.draw(logits, sequences, model.config.vocab_size) or ids  # noqa: B023

            run(8)
            seconds = min(_seconds(lambda: run(_GENERATED)) for _ in range(3))
            yield f"- {count} sequences, {name}: {count * _GENERATED / seconds:,.1f} tok/s"


def _copies(model: "Transformer", here: "MachineSpec") -> Iterator[str]:
    """Host to device, pinned and not; registering memory as the expert arena does."""
    import torch

    from dslite.runtime.device import anonymous_memory, compute_device

    count = 1 << 30
    target = torch.empty(count, dtype=torch.uint8, device="cuda")
    memory = anonymous_memory(4 * count)
    memory[::4096] = 1
    plain = min(_seconds(lambda: target.copy_(memory[:count])) for _ in range(3))
    begin = time.perf_counter()
    registration = compute_device(model.device).pin(memory, 1 << 28)
    took = time.perf_counter() - begin
    pinned = min(_seconds(lambda: target.copy_(memory[:count], non_blocking=True)) for _ in range(3))
    if registration is not None:
        registration.close()
    yield f"- to the device: {count / plain / 1e9:.1f} GB/s, pinned {count / pinned / 1e9:.1f} GB/s"
    yield f"- registering 4.3 GB took {took:.2f} s"


def _loading(model: "Transformer", here: "MachineSpec") -> Iterator[str]:
    """A checkpoint's way from the page cache to the GPU, twice in one process, and the plan's memory."""
    import torch
    from support.checkpoints import write_checkpoint
    from support.reference import golden

    from dslite.runtime.weights.checkpoint import Checkpoint
    from dslite.runtime.weights.loader import load

    raw = {**golden("deepseek-v2-lite.config.json"), "num_hidden_layers": 2}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), raw, std=0.02, dtype=torch.bfloat16, tokenizer=False)
        checkpoint = Checkpoint.open(Path(folder))
        gigabytes = checkpoint.nbytes / 1e9
        for turn in ("first", "second"):
            gc.collect()
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info()[0]
            loaded: Any = None
            begin = time.perf_counter()
            loaded = load(checkpoint, device=torch.device("cuda", 0), dtype=torch.bfloat16)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
            taken = (free - torch.cuda.mem_get_info()[0]) / 1e9
            del loaded
            speed = gigabytes / seconds
            yield f"- {turn}: {gigabytes:.2f} GB in {seconds:.2f} s, {speed:.1f} GB/s; {taken:.2f} GB taken"


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


_FAILED = "FAILED:"
SECTIONS: dict[str, Callable[["Transformer", "MachineSpec"], Iterator[str]]] = {
    "recording": _record,
    "one sequence": _speeds,
    "several sequences": _several,
    "drawing": _drawing,
    "copies": _copies,
    "loading": _loading,
}

if __name__ == "__main__":
    sys.exit(main())
