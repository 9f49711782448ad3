"""The user's home folder, and paths that begin with it."""

import os
from pathlib import Path

from dslite.runtime.errors import DsliteError


def expand_home(path: str | Path) -> Path:
    """A path whose `~` or `~user` is replaced; unchanged where that home folder is not known."""
    return Path(os.path.expanduser(path))


def require_home(path: str | Path, *variables: str) -> Path:
    """A path whose `~` is replaced. Raises DsliteError, naming the variables, where there is no home folder.

    HOME may be unset in a service or a container, and its user may have no entry in the list of users: platformdirs
    and huggingface_hub then give a path that begins with `~`, which would make a folder of that name.
    """
    expanded = expand_home(path)
    if expanded.parts[:1] and expanded.parts[0].startswith("~"):
        named = ", ".join(variables)
        raise DsliteError(
            f"there is no home folder for {path}: HOME is not set, and this user has no entry in the list of users",
            f"set HOME to a folder that can be written, or set {named}" if named else "set HOME",
        )
    return expanded
