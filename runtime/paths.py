"""Where dslite keeps its own files. The environment overrules the system's places."""

import json
import os
from pathlib import Path
from typing import Any

import platformdirs

_NAME = "dslite"


def config_dir() -> Path:
    """config.toml: DSLITE_CONFIG_DIR, or the system's place for settings."""
    return _chosen("DSLITE_CONFIG_DIR") or platformdirs.user_config_path(_NAME)


def data_dir() -> Path:
    """Conversations: DSLITE_DATA_DIR, or the system's place for data."""
    return _chosen("DSLITE_DATA_DIR") or platformdirs.user_data_path(_NAME)


def cache_dir() -> Path:
    """What can be made again: saved caches, measurements. DSLITE_CACHE_DIR, or the system's place."""
    return _chosen("DSLITE_CACHE_DIR") or platformdirs.user_cache_path(_NAME)


def latents_dir() -> Path:
    """The saved rows of conversations."""
    return cache_dir() / "latents"


def latents_file(conversation: str) -> Path:
    """The saved rows of one conversation: they go where it goes."""
    return latents_dir() / f"{conversation}.safetensors"


def log_dir() -> Path:
    """The log: beside the data when that was moved, or the system's place."""
    return _chosen("DSLITE_DATA_DIR") or platformdirs.user_log_path(_NAME)


def write_json(file: Path, value: Any) -> None:
    """Put a value in place of a file at once: whoever reads meanwhile sees the old or the new one. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    beside.write_text(json.dumps(value, indent=1), encoding="utf-8")
    beside.replace(file)


def _chosen(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else None
