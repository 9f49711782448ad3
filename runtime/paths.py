"""Where dslite keeps its own files. The environment overrules the system's places."""

import glob
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs

from dslite.runtime.atomic_file import write_file
from dslite.runtime.system.folders import no_home, require_home

_NAME = "dslite"


def config_dir() -> Path:
    """config.toml: DSLITE_CONFIG_DIR, or the system's place for settings."""
    return _folder("DSLITE_CONFIG_DIR", platformdirs.user_config_path)


def data_dir() -> Path:
    """Conversations: DSLITE_DATA_DIR, or the system's place for data."""
    return _folder("DSLITE_DATA_DIR", platformdirs.user_data_path)


def cache_dir() -> Path:
    """What can be made again: saved caches, measurements. DSLITE_CACHE_DIR, or the system's place."""
    return _folder("DSLITE_CACHE_DIR", platformdirs.user_cache_path)


def latents_dir() -> Path:
    """The saved rows of conversations."""
    return cache_dir() / "latents"


def prompts_dir() -> Path:
    """Latent entries of prompts that belong to no saved conversation (`serve --disk-cache`)."""
    return cache_dir() / "prompts"


def latents_file(conversation: str) -> Path:
    """The saved rows of one conversation: they go where it goes."""
    return latents_dir() / f"{conversation}.safetensors"


def remove_saved_cache(conversation: str) -> None:
    """Remove what the model computed of a conversation, half-written files included; leaves what cannot be removed."""
    file = latents_file(conversation)
    for found in (
        file,
        *file.parent.glob(f".{glob.escape(conversation)}.*"),
        *file.parent.glob(f".{glob.escape(file.name)}.*"),
    ):
        with suppress(OSError):
            found.unlink()


def log_dir() -> Path:
    """The log: beside the data when that was moved, or the system's place."""
    return _folder("DSLITE_DATA_DIR", platformdirs.user_log_path)


def write_json(file: Path, value: Any) -> None:
    """Replace a file by a value as JSON; it can be made again, so it is not flushed to the disk. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, json.dumps(value, indent=1).encode(), sync=False)


def _folder(variable: str, default: Callable[[str], Path]) -> Path:
    """The folder that a variable names, or the system's. Raises DsliteError where there is no home folder."""
    try:
        return require_home(os.environ.get(variable) or default(_NAME), variable)
    except RuntimeError:  # of platformdirs
        raise no_home(variable) from None
