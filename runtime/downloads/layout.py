"""The files of a model folder in Hub layout: which ones dslite reads, and the JSON ones read with their faults named.

Free of torch: what only lists, downloads or describes models should not take seconds to start.
"""

import json
from pathlib import Path
from typing import Any

from dslite.model.config import ModelConfig
from dslite.model.errors import ConfigError
from dslite.runtime.errors import CheckpointError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = ".safetensors"
NEEDED = (CONFIG, "tokenizer.json", "tokenizer_config.json")
OPTIONAL = ("generation_config.json", "chat_template.jinja", INDEX)
_REMEDY = "download the model again, or check the folder"


def read_config(folder: Path) -> ModelConfig:
    """config.json of a folder. Raises CheckpointError, or ConfigError naming the key at fault."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}", "give a folder in Hub layout, a Hub id or a short name")
    file = folder / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{folder} has no config.json", "give a folder that holds a model in Hub layout")
    try:
        return ModelConfig.from_dict(read_json(file))
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error.message}", error.remedy) from None


def read_json(file: Path) -> Any:
    """The JSON value of a file. Raises CheckpointError with its place."""
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", "check the file's permissions") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}", _REMEDY) from None


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name → file name, as an index file says. Raises CheckpointError."""
    raw = read_json(index)
    owners = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(owners, dict) or not owners:
        raise CheckpointError(f"{index} has no weight_map", _REMEDY)
    for name, file in owners.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: {name} is said to be in {file!r}, which is not a file name", _REMEDY)
    return owners


def files_of(folder: Path) -> list[str]:
    """The names of the files that dslite reads of a folder, present or not; with no weights, `*.safetensors`."""
    names = [*NEEDED, *(name for name in OPTIONAL if (folder / name).is_file())]
    if INDEX in names:
        return names + sorted(set(weight_map(folder / INDEX).values()))
    return names + (sorted(file.name for file in folder.glob("*" + WEIGHTS)) or ["*" + WEIGHTS])


def missing_files(folder: Path) -> list[str]:
    """What a folder lacks of the model that it should hold. Opens only the index. Raises CheckpointError."""
    return [name for name in files_of(folder) if not (folder / name).is_file()]


def generation_defaults(folder: Path) -> dict[str, object]:
    """generation_config.json of a model: sampling values and end tokens; empty where there is none."""
    file = folder / "generation_config.json"
    raw = read_json(file) if file.is_file() else {}
    return raw if isinstance(raw, dict) else {}
