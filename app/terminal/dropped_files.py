"""Files dropped on a terminal: it types their paths, as a paste of nothing else."""

import os
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dslite.runtime.system import system_name

_LONGEST = 16_384  # characters of a drop
_MOST = 50


def dropped_files(text: str) -> list[str]:
    """The paths of a pasted text that is nothing but absolute paths of files that exist; else none.

    Terminals quote a path, escape its spaces, or write it as a file: address.
    """
    if not text.strip() or len(text) > _LONGEST:
        return []
    windows = system_name() == "windows"
    try:
        words = shlex.split(text, posix=not windows)
    except ValueError:  # a quote without its end
        return []
    paths = [_path(word.strip("'\"") if windows else word) for word in words]
    if not 0 < len(paths) <= _MOST:
        return []
    return paths if all(os.path.isabs(path) and Path(path).is_file() for path in paths) else []


def _path(word: str) -> str:
    if not word.startswith("file://"):
        return word
    parts = urlsplit(word)
    return unquote(parts.path) if parts.netloc in ("", "localhost") else ""
