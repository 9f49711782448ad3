"""Where engines are found: a socket each, in a folder that no other user can enter."""

import hashlib
import os
import tempfile
from pathlib import Path

from dslite.runtime.errors import DsliteError
from dslite.runtime.system.local_socket import MOST_PATH_BYTES, fault_of_private_folder, user_id

_NAME_BYTES = 28  # a slash, an engine's name and ".socket"


class RuntimeFolderError(DsliteError):
    """The folder of the sockets cannot be made, or is not this user's alone."""


def runtime_folder() -> Path:
    """DSLITE_RUNTIME_DIR, or `dslite` in XDG_RUNTIME_DIR, or a folder of this user's among the temporary files.

    The path of a socket may have no more than a hundred bytes: in place of a longer folder stands a short one, named by
    a hash of it.
    """
    user = user_id()
    if given := os.environ.get("DSLITE_RUNTIME_DIR"):
        folder = Path(given).absolute()
    elif given := os.environ.get("XDG_RUNTIME_DIR"):
        folder = Path(given).absolute() / "dslite"
    else:
        folder = Path(tempfile.gettempdir()).absolute() / f"dslite-{user}"
    if len(os.fsencode(folder)) + _NAME_BYTES <= MOST_PATH_BYTES:
        return folder
    return Path("/tmp") / f"dslite-{user}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"


def find_folder() -> Path | None:
    """The folder of the sockets; None where there is none. Raises RuntimeFolderError where it is not safe."""
    folder = runtime_folder()
    try:
        fault = fault_of_private_folder(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RuntimeFolderError(f"{folder} cannot be looked at: {error.strerror}", _REMEDY) from None
    if fault is not None:
        raise RuntimeFolderError(f"the folder of warm engines {folder} {fault}", _REMEDY)
    return folder


def make_folder() -> Path:
    """The folder of the sockets, made where there is none. Raises RuntimeFolderError."""
    folder = runtime_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise RuntimeFolderError(
            f"the folder of warm engines {folder} cannot be made: {error.strerror}", _REMEDY
        ) from None
    found = find_folder()
    assert found is not None
    return found


def socket_file(folder: Path, name: str) -> Path:
    """The socket of the engine with this name."""
    return folder / f"{name}.socket"


_REMEDY = "chmod 700 it if it is yours, or name another folder with DSLITE_RUNTIME_DIR"
