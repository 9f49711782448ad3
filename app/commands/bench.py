"""`dslite bench`: prefill and decode speed, by prompt length and depth."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from dslite.app.commands import flags
from dslite.app.commands.flags import flag
from dslite.app.terminal.tables import print_table
from dslite.runtime.downloads.hub import ModelRef, locate, parse_model
from dslite.runtime.downloads.model_config import config_of
from dslite.runtime.errors import ModelUnavailableError, UsageError

if TYPE_CHECKING:
    from dslite.model.transformer import Transformer
    from dslite.runtime.diagnostics.benchmark import SpeedRow
    from dslite.runtime.open_engine import EngineOptions


def bench(
    model: flags.Model = None,
    revision: flags.Revision = None,
    prompt_tokens: Annotated[str, flag("--prompt-tokens", "-p", help="Prompt lengths, such as 512,2048.")] = "512,2048",
    gen_tokens: Annotated[int, flag("--gen-tokens", "-n", help="Tokens to make; 0: none.")] = 64,
    depth: Annotated[str, flag("--depth", "-d", help="Cached tokens before, such as 0,4096,16384.")] = "0,4096,16384",
    repeat: Annotated[int, flag("--repeat", "-r", help="Runs of each test.")] = 3,
    batch_size: Annotated[int, flag("--batch-size", help="Sequences decoded together.")] = 1,
    random_weights: Annotated[bool, flag("--random-weights", help="Needs config.json only.")] = False,
    layers: Annotated[int | None, flag("--layers", help="With --random-weights: this many layers.")] = None,
    device: flags.Device = "auto",
    dtype: flags.Dtype = "bfloat16",
    vram: flags.Vram = None,
    ram: flags.Ram = None,
    expert_slots: flags.ExpertSlots = None,
    miss: flags.Miss = "auto",
    ctx_size: flags.CtxSize = None,
    threads: flags.Threads = None,
    offline: flags.Offline = False,
    output: flags.ListOutput = "text",
    as_json: flags.AsJson = False,
) -> None:
    """Measure how fast prompts are read and tokens are made."""
    wants_json = flags.wants_json(output, as_json)
    prompts, depths = numbers("--prompt-tokens", prompt_tokens, least=1), numbers("--depth", depth, least=0)
    for name, value, least in (
        ("--repeat", repeat, 1),
        ("--batch-size", batch_size, 1),
        ("--gen-tokens", gen_tokens, 0),
    ):
        if value < least:
            raise UsageError(f"{name} is {value}; it must be at least {least}")
    if not depths or not (prompts or gen_tokens):
        raise UsageError("there is nothing to measure", "give --prompt-tokens or --gen-tokens, and --depth")
    if layers is not None and not random_weights:
        raise UsageError("--layers cuts random weights only", "add --random-weights")
    placement = flags.placing(vram, ram, expert_slots, miss)
    ref = parse_model(model or "chat", revision)

    from dslite.runtime.diagnostics.benchmark import SpeedTest
    from dslite.runtime.open_engine import EngineOptions

    test = SpeedTest(prompts, gen_tokens, depths, repeat, batch_size)
    if ctx_size is not None and ctx_size < test.context:
        raise UsageError(
            f"--ctx-size is {ctx_size:,}, and the tests need {test.context:,} tokens", "raise it, or measure less"
        )
    asked = EngineOptions(
        device=device, dtype=dtype, ctx_size=ctx_size or test.context, threads=threads, offline=offline, **placement
    )
    network, chunk = _random(ref, asked, layers) if random_weights else _real(ref, asked)
    rows = list(test.run(network, chunk))
    if wants_json:
        print(json.dumps([row_object(row) for row in rows]))
    else:
        _print(rows)


def numbers(name: str, text: str, *, least: int) -> list[int]:
    """Whole numbers with commas between. Raises UsageError."""
    try:
        values = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{name} is {text!r}; it must be whole numbers with commas between") from None
    if any(value < least for value in values):
        raise UsageError(f"{name} is {text!r}; each must be at least {least}")
    return values


def row_object(row: "SpeedRow") -> dict[str, Any]:
    """A row as the contract names its parts; GB are 10⁹ bytes."""
    return {
        "test": row.test,
        "depth": row.depth,
        "tps_median": round(row.median, 3),
        "tps_min": round(min(row.runs), 3),
        "tps_max": round(max(row.runs), 3),
        "bytes_per_token": row.bytes_per_token,
        "achieved_gbps": round(row.achieved / 1e9, 3),
        "read_bandwidth_gbps": round(row.read_bandwidth / 1e9, 3),
    }


def _real(ref: ModelRef, asked: "EngineOptions") -> "tuple[Transformer, int]":
    from dslite.runtime.open_engine import open_engine

    engine = open_engine(locate(ref), asked)
    return engine.model, engine.prefill_chunk


def _random(ref: ModelRef, asked: "EngineOptions", layers: int | None) -> "tuple[Transformer, int]":
    """Random weights, all of them resident."""
    import torch

    from dslite.runtime.diagnostics.benchmark import random_model
    from dslite.runtime.open_engine import parse_dtype, pick_context, pick_device, pick_threads
    from dslite.runtime.planning.device_plan import PlanRequest
    from dslite.runtime.planning.fit import fit

    config = config_of(ref, offline=asked.offline)
    if layers is not None:
        if not 1 <= layers <= config.num_hidden_layers:
            raise UsageError(f"--layers is {layers}; the model has {config.num_hidden_layers}")
        config = replace(config, num_hidden_layers=layers)
    device, dtype = pick_device(asked.device), parse_dtype(asked.dtype)
    pick_context(asked.ctx_size, config)
    plan = fit(config, device.type, PlanRequest(asked.dtype, asked.ctx_size, asked.vram, asked.ram))
    if plan.source != "resident":
        raise ModelUnavailableError(
            f"{plan.weights_bytes / 1e9:.1f} GB of random weights do not fit into memory", "take fewer with --layers"
        )
    torch.set_num_threads(pick_threads(asked.threads, plan.weights_bytes))
    return random_model(config, device, dtype), plan.prefill_chunk


def _print(rows: "list[SpeedRow]") -> None:
    heads = ("test", "depth", "tok/s", "from", "to", "GB a token", "GB/s", "of memory's")
    cells = [
        (
            row.test,
            f"{row.depth:,}",
            f"{row.median:.2f}",
            f"{min(row.runs):.2f}",
            f"{max(row.runs):.2f}",
            f"{row.bytes_per_token / 1e9:.3f}",
            f"{row.achieved / 1e9:.1f}",
            f"{row.read_bandwidth / 1e9:.1f}",
        )
        for row in rows
    ]
    print_table(heads, cells)
