"""The user's home folder, and paths that begin with it."""

import os
from pathlib import Path

from dslite.runtime.errors import DsliteError


def expand_home(path: str | Path) -> Path:
    """A path whose `~` or `~user` is replaced; unchanged where that home folder is not known."""
    return Path(os.path.expanduser(path))


def require_home(path: str | Path, *variables: str) -> Path:
    """A path whose `~` is replaced. Raises DsliteError, naming the variables, where there is no home folder.

    HOME may be unset in a service or a container, and its user may have no entry in the list of users. huggingface_hub
    then gives a path that begins with `~`, which would make a folder of that name.
    """
    expanded = expand_home(path)
    if expanded.parts and expanded.parts[0].startswith("~"):
        raise no_home(*variables)
    return expanded


def no_home(*variables: str) -> DsliteError:
    """The error of a missing home folder; the variables are those that name the folder wanted."""
    return DsliteError(
        "there is no home folder: HOME is not set, and this user has no entry in the list of users",
        "set HOME to a folder that can be written" + (f", or set {' and '.join(variables)}" if variables else ""),
    )
