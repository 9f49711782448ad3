"""Sockets between processes of one user on one machine, and what makes them safe: whose process is at the other end,
folders that no other user can enter, a lock that ends with its process, a process without a terminal.
"""

import ctypes
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Any

from dslite.runtime.system import system_name

MOST_PATH_BYTES = 103  # of a socket: sun_path has 104 bytes on macOS and 108 on Linux, the zero at its end included


def has_local_sockets() -> bool:
    """Whether the system has Unix sockets that tell whose process is at the other end: Linux and macOS."""
    return system_name() in ("linux", "macos") and hasattr(socket, "AF_UNIX")


def user_id() -> int:
    """The user of this process, as the owner of files and sockets."""
    return os.geteuid()


def peer_user(connection: socket.socket) -> int | None:
    """The user of the process at the other end, as the system says; None where it does not."""
    try:
        if system_name() == "linux":
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", raw)[1])  # process, user, group
        user, group = ctypes.c_uint32(), ctypes.c_uint32()
        library: Any = ctypes.CDLL(None)
        failed = library.getpeereid(connection.fileno(), ctypes.byref(user), ctypes.byref(group))
        return None if failed else user.value
    except (OSError, AttributeError):
        return None


def fault_of_private_folder(folder: Path) -> str | None:
    """Why a folder is not this user's alone; None where it is. Raises FileNotFoundError, OSError."""
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return "is not a folder"
    if status.st_uid != user_id():
        return f"belongs to user {status.st_uid}"
    if status.st_mode & 0o077:
        return f"is open to other users (mode {stat.S_IMODE(status.st_mode):04o}; it must be 0700)"
    return None


def hold_lock(file: Path) -> int | None:
    """Lock a file until this process ends, however it ends, or its descriptor is closed.

    Returns the descriptor; None where another process has the lock. Raises OSError.
    """
    import fcntl

    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def continue_in_background() -> None:
    """Go on in a child process, which belongs to no terminal; this process ends with exit code 0.

    To be called while there is one thread only.
    """
    if os.fork():
        os._exit(0)
    os.setsid()
