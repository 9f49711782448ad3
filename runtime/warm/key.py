"""What an engine is for: a command uses it only where both name the same user, version, model, files and settings."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dslite.runtime.downloads.hub import ModelRef
from dslite.runtime.downloads.layout import read_config
from dslite.runtime.downloads.packed import locate_weights
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import CheckpointError
from dslite.runtime.paths import cache_dir, config_dir, data_dir
from dslite.runtime.system.local_socket import user_id

PROTOCOL = 1  # of frames and messages
_FILES = (".json", ".jinja", ".safetensors")
_LEFT_OUT = ("offline", "disk_cache")  # options that change no answer


@dataclass(frozen=True)
class EngineKey:
    """`settings` say where the engine is found; `files` identifies the model's files as they are at this moment.

    An engine whose model was changed on disk is found, and not used.
    """

    settings: Mapping[str, Any]
    files: str

    @classmethod
    def of(cls, ref: ModelRef, options: EngineOptions) -> "EngineKey":
        """The key of a model that is on this machine. Raises ModelUnavailableError, CheckpointError."""
        given = {name: value for name, value in asdict(options).items() if name not in _LEFT_OUT}
        settings = {
            "protocol": PROTOCOL,
            "version": _version(),
            "user": user_id(),
            "model": ref.key,
            "revision": ref.revision,
            **given,
            "config_dir": str(config_dir().absolute()),
            "data_dir": str(data_dir().absolute()),
            "cache_dir": str(cache_dir().absolute()),
        }
        folder = locate_weights(ref, options.weights)
        try:
            return cls(settings, files_identity(folder))
        except OSError as error:
            read_config(folder)  # says what is wrong where it is the folder
            raise CheckpointError(f"{folder} cannot be read: {error.strerror}", "check its permissions") from None

    @property
    def name(self) -> str:
        """The name of the engine's socket and lock, without their endings."""
        text = json.dumps(dict(self.settings), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


def files_identity(folder: Path) -> str:
    """Identifies the files of a model by place, size, inode and dates: reading 31 GB would take longer than loading.

    A file that was written over in place has another date of change, which no program can set back.
    """
    digest = hashlib.sha256(str(folder.absolute()).encode("utf-8", "surrogateescape"))
    for file in sorted(file for file in folder.iterdir() if file.name.endswith(_FILES)):
        status = file.stat()  # of what a link of the Hub's cache points to
        facts = (file.name, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("dslite")
