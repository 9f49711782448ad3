"""Opening a model: check its files, plan, load, and build the engine."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from dslite.model.config import ModelConfig
from dslite.runtime.cache.disk_cache import LatentDiskCache, fingerprint
from dslite.runtime.downloads.hub import ModelRef, parse_model
from dslite.runtime.downloads.layout import generation_defaults
from dslite.runtime.engine.engine import Engine
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import ModelUnavailableError, UsageError
from dslite.runtime.events import LoadingEvent
from dslite.runtime.paths import latents_dir, prompts_dir
from dslite.runtime.planning.autotune import choose_products
from dslite.runtime.planning.device_plan import DevicePlan, PlanRequest
from dslite.runtime.planning.fit import fit
from dslite.runtime.planning.placement import pick_context
from dslite.runtime.system.processors import processors
from dslite.runtime.text.tokenizer import Tokenizer
from dslite.runtime.weights.loader import load
from dslite.runtime.weights.open_checkpoint import open_checkpoint
from dslite.runtime.weights.quantized_checkpoint import QuantizingCheckpoint

_DEFAULTS = EngineOptions()
_TINY_BYTES = 256 * 2**20
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def open_engine(
    model: str | Path | ModelRef,
    options: EngineOptions = _DEFAULTS,
    report: Callable[[LoadingEvent], None] = lambda _: None,
) -> Engine:
    """Check and load a model that is on this machine: a folder, or a name as `-m` takes it (`demo`, `chat`, a Hub id).

    `report` is called as weights come into place. Raises UsageError, ModelUnavailableError.
    """
    ref = _ref(model)
    dtype = torch_dtype(options)
    device = pick_device(options.device)
    checkpoint = open_checkpoint(ref, options.weights, pack=options.pack)
    folder = checkpoint.folder
    torch.set_num_threads(pick_threads(options.threads, checkpoint.nbytes))
    pick_context(options.ctx_size, checkpoint.config)
    plan = fit(checkpoint.config, device.type, plan_request(options))
    if plan.source in ("disk", "mapped") and isinstance(checkpoint, QuantizingCheckpoint):
        raise UsageError(
            f"--no-pack keeps {options.weights} weights in memory, and they do not fit", "leave it out: pack them"
        )
    if device.type == "cpu" and checkpoint.nbytes >= _TINY_BYTES:
        choose_products()
    tokenizer = Tokenizer.from_folder(folder)
    network = load(checkpoint, device=device, dtype=dtype, plan=plan, report=report)
    ends = _end_tokens(folder, checkpoint.config)
    return Engine(
        network,
        tokenizer,
        context=plan.context,
        eos_token_ids=ends,
        prefill_chunk=plan.prefill_chunk,
        open_disk_cache=cache(lambda: LatentDiskCache(latents_dir(), fingerprint(checkpoint, dtype))),
        prompt_cache=LatentDiskCache(prompts_dir(), fingerprint(checkpoint, dtype), most_bytes=options.disk_cache)
        if options.disk_cache
        else None,
        memory_left=_memory_left(options, plan),
    )


def _ref(model: str | Path | ModelRef) -> ModelRef:
    if isinstance(model, str):
        return parse_model(model)
    return ModelRef(str(model), folder=model) if isinstance(model, Path) else model


def _memory_left(options: EngineOptions, plan: DevicePlan) -> int | None:
    """Of the limit that the user set, what the plan does not take."""
    limit, taken = (options.ram, plan.ram_bytes) if plan.device == "cpu" else (options.vram, plan.vram_bytes)
    return None if limit is None else max(0, limit - taken)


def plan_request(options: EngineOptions) -> PlanRequest:
    """What the options ask of the planner."""
    return PlanRequest(
        options.dtype,
        options.ctx_size,
        options.vram,
        options.ram,
        options.expert_slots,
        options.miss,
        options.weights,
    )


def torch_dtype(options: EngineOptions) -> torch.dtype:
    """The type of activations and weights."""
    return _DTYPES[options.dtype]


def pick_device(name: str) -> torch.device:
    """The device of an EngineOptions' name; auto takes cuda, then mps, then cpu. Raises ModelUnavailableError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    kind, _, index = name.partition(":")
    if not available[kind] or (index and int(index) >= torch.cuda.device_count()):
        raise ModelUnavailableError(
            f"the device {name} is not available", "choose another with --device; dslite doctor lists what is there"
        )
    return torch.device(name)


def pick_threads(asked: int | None, weights_bytes: int) -> int:
    """CPU threads: those asked for, else the physical cores, but one for a tiny network.

    In a tiny network threads only wait for each other, on a busy machine for seconds.
    """
    if asked is not None:
        return asked
    return 1 if weights_bytes < _TINY_BYTES else processors().threads


def _end_tokens(folder: Path, config: ModelConfig) -> list[int]:
    """End tokens of config.json and, where it names more, of generation_config.json."""
    more = generation_defaults(folder).get("eos_token_id", [])
    listed = more if isinstance(more, list) else [more]
    return [*config.eos_token_ids, *(token for token in listed if isinstance(token, int))]
