"""Writes the dequantized values of quantized weights as a checkpoint in Hub layout, to compare results with."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dslite.model.parameters import parameter_shapes
from dslite.model.quantized import QuantizedMatrix
from dslite.runtime.atomic_file import replacing
from dslite.runtime.downloads.layout import INDEX, NEEDED, OPTIONAL
from dslite.runtime.errors import DsliteError, UsageError
from dslite.runtime.system.files import free_disk_bytes
from dslite.runtime.weights.checkpoint import Checkpoint
from dslite.runtime.weights.safetensors_file import TensorForm, write


def write_dequantized(checkpoint: Checkpoint, out: Path) -> None:
    """Write into a new or empty folder, a file a layer. All in float32, which holds a quantized value exactly.

    Raises UsageError, DsliteError.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already", "name a new or an empty folder")
    shapes = parameter_shapes(checkpoint.config)
    nbytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    if nbytes > (free := free_disk_bytes(out)):
        raise DsliteError(
            f"the weights in float32 need {nbytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free", "free some room"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (*NEEDED, *OPTIONAL):
            if name != INDEX and (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, out / name)
        _write_shards(checkpoint, shapes, out)
    except OSError as error:
        raise DsliteError(f"{out} cannot be written: {error.strerror}", "check the folder and its disk") from None


def _write_shards(checkpoint: Checkpoint, shapes: dict[str, tuple[int, ...]], out: Path) -> None:
    shards: dict[str, list[str]] = {}
    for name in shapes:
        layer = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        shards.setdefault(f"model-{layer}.safetensors", []).append(name)
    for file, names in shards.items():
        layout = {name: TensorForm(torch.float32, shapes[name]) for name in names}
        with replacing(out / file) as stream:
            write(stream, layout, _tensors(checkpoint, names), {"format": "pt"}, small=0)
        checkpoint.unmap()
    owners = {name: file for file, names in shards.items() for name in names}
    (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": owners}))


def _tensors(checkpoint: Checkpoint, names: list[str]) -> Iterator[Tensor]:
    for name in names:
        weight = checkpoint.weight(name)
        yield weight.dequantize() if isinstance(weight, QuantizedMatrix) else weight.float()
