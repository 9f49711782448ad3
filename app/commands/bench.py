"""`dslite bench`: prefill and decode speed, by prompt length and depth."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from dslite.app.commands.command import Needs, flag, rules
from dslite.app.commands.flags import EngineFlags, ListFlags
from dslite.app.commands.packing import ensure_packed
from dslite.app.terminal.tables import print_table
from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.engine_options import EngineOptions, check_whole
from dslite.runtime.errors import ModelUnavailableError, UsageError

if TYPE_CHECKING:
    from dslite.model.config import ModelConfig
    from dslite.model.transformer import Transformer
    from dslite.runtime.diagnostics.benchmark import SpeedRow, SpeedTest

_PROMPTS, _DEPTHS = (512, 2048), (0, 4096, 16384)
_MOST_TOKENS = 2**31 - 1  # of one number; what the model's context allows is checked with its config


@rules(Needs("layers", "random_weights"))
def bench(
    *,
    engine: EngineFlags,
    prompt_tokens: Annotated[
        str | None, flag("--prompt-tokens", "-p", help="Prompt lengths; default: 512,2048, if they fit the model.")
    ] = None,
    gen_tokens: Annotated[int, flag("--gen-tokens", "-n", help="Tokens to make; 0: none.")] = 64,
    depth: Annotated[
        str | None, flag("--depth", "-d", help="Cached tokens before; default: 0,4096,16384, if they fit the model.")
    ] = None,
    repeat: Annotated[int, flag("--repeat", "-r", help="Runs of each test.")] = 3,
    batch_size: Annotated[int, flag("--batch-size", help="Sequences decoded together.")] = 1,
    random_weights: Annotated[bool, flag("--random-weights", help="Needs config.json only.")] = False,
    layers: Annotated[int | None, flag("--layers", help="With --random-weights: this many layers.")] = None,
    listing: ListFlags,
) -> None:
    """Measure how fast prompts are read and tokens are made."""
    prompts = None if prompt_tokens is None else numbers("--prompt-tokens", prompt_tokens, least=1)
    depths = None if depth is None else numbers("--depth", depth, least=0)
    check_whole("--repeat", repeat, 1, 1000)
    check_whole("--batch-size", batch_size, 1, 1024)
    check_whole("--gen-tokens", gen_tokens, 0, _MOST_TOKENS)
    if depths == [] or (prompts == [] and not gen_tokens):
        raise UsageError("there is nothing to measure", "give --prompt-tokens or --gen-tokens, and --depth")
    ref, options = engine.ref("chat"), engine.settled_options()

    from dslite.runtime.diagnostics.benchmark import SpeedTest
    from dslite.runtime.downloads.model_config import config_of

    config = config_of(ref, offline=options.offline)
    most = options.ctx_size or config.max_position_embeddings
    if prompts is None:
        prompts = _fitting(_PROMPTS, most - min(depths or [0]))
    if depths is None:
        depths = _fitting(_DEPTHS, most - max([*prompts, gen_tokens])) or [0]
    test = SpeedTest(prompts, gen_tokens, depths, repeat, batch_size)
    if options.ctx_size is not None and options.ctx_size < test.context:
        raise UsageError(
            f"--ctx-size is {options.ctx_size:,}, and the tests need {test.context:,} tokens",
            "raise it, or measure less",
        )
    _check_context(test, config)
    options = replace(options, ctx_size=options.ctx_size or test.context)
    network, chunk = _random(config, options, layers) if random_weights else _real(ref, options, yes=engine.yes)
    rows = list(test.run(network, chunk))
    if listing.json:
        print(json.dumps([row_object(row, options.weights) for row in rows]))
    else:
        _print(rows)


def _fitting(counts: Sequence[int], most: int) -> list[int]:
    """The defaults that a context has room for."""
    return [count for count in counts if count <= most]


def numbers(name: str, text: str, *, least: int) -> list[int]:
    """Whole numbers with commas between; none for an empty text. Raises UsageError."""
    try:
        values = [int(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise UsageError(f"{name} is {text!r}; it must be whole numbers with commas between") from None
    for value in values:
        check_whole(f"each of {name}", value, least, _MOST_TOKENS)
    return values


def _check_context(test: "SpeedTest", config: "ModelConfig") -> None:
    """Raise UsageError, with the flags at fault, for tests that need a longer context than the model has."""
    if test.context > config.max_position_embeddings:
        longest = max([*test.prompts, test.gen_tokens])
        name = "--prompt-tokens" if test.prompts and longest == max(test.prompts) else "--gen-tokens"
        deepest = max(test.depths)
        raise UsageError(
            f"{name} {longest}{f' after --depth {deepest}' if deepest else ''} needs {test.context} tokens, "
            f"and the model's context is at most {config.max_position_embeddings}",
            f"give a smaller {name}{' or --depth' if deepest else ''}",
        )


def row_object(row: "SpeedRow", weights: str) -> dict[str, Any]:
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
        "weights": weights,
    }


def _real(ref: ModelRef, options: EngineOptions, *, yes: bool) -> "tuple[Transformer, int]":
    from dslite.runtime.engine_loader import open_engine

    ensure_packed(ref, options, yes=yes)
    engine = open_engine(ref, options)
    return engine.model, engine.runner.prefill_chunk


def _random(config: "ModelConfig", options: EngineOptions, layers: int | None) -> "tuple[Transformer, int]":
    """Random weights, all of them resident."""
    import torch

    from dslite.runtime.diagnostics.benchmark import random_model
    from dslite.runtime.engine_loader import pick_device, pick_threads, plan_request, torch_dtype
    from dslite.runtime.planning.fit import fit

    if layers is not None:
        check_whole("--layers", layers, 1, config.num_hidden_layers)
        config = replace(config, num_hidden_layers=layers)
    device = pick_device(options.device)
    plan = fit(config, device.type, plan_request(options))
    if plan.source != "resident":
        raise ModelUnavailableError(
            f"{plan.weights_bytes / 1e9:.1f} GB of random weights do not fit into memory", "take fewer with --layers"
        )
    torch.set_num_threads(pick_threads(options.threads, plan.weights_bytes))
    return random_model(config, device, torch_dtype(options)), plan.prefill_chunk


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
