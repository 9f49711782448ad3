"""macOS and Windows as far as Linux can pretend them: what these systems lack is missing for dslite's own modules.

    FAKE_SYSTEM=windows pytest tests/runtime/downloads

Only modules of dslite see the fake: their `import os` gives a view of `os` without `preadv`, with the name "nt", and so
on; `import fcntl` fails; files below /proc are not found. Python's library and other packages go on as on Linux, and
tests use the real system. Processes that a test starts see the fake too, by way of fake_site/sitecustomize.py.
What such a fake cannot show is listed in docs/platforms.md.
"""

import builtins
import errno
import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

VARIABLE = "FAKE_SYSTEM"
_SITE = Path(__file__).with_name("fake_site")
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f]|[^.][. ]$')
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|COM[0-9]|LPT[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class FakeSystem:
    """What a system has in place of Linux's, by module."""

    modules: frozenset[str]  # that cannot be imported
    missing: Mapping[str, Sequence[str]]  # attributes of a module; `*` at the end stands for any letters
    instead: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    locks_open_files: bool = False  # they cannot be renamed, replaced or removed
    has_drive_names: bool = False  # `:` and others are not allowed in names, and some names are devices
    encoding: str | None = None  # of redirected standard streams


def _mmap_of_windows() -> type:
    import mmap

    class WindowsMmap(mmap.mmap):
        """mmap(fileno, length, tagname, access, offset): no flags, no protection, no advice."""

        def __new__(cls, fileno: int, length: int, tagname: str | None = None, access: int = 0, offset: int = 0) -> Any:
            return super().__new__(cls, fileno, length, access=access, offset=offset)

        madvise = property()  # raises AttributeError

    return WindowsMmap


def _cdll_of_windows() -> type:
    import ctypes

    class WindowsCDLL(ctypes.CDLL):
        """Libraries by name: there is no handle of the whole process."""

        def __init__(self, name: str | None, *arguments: Any, **options: Any) -> None:
            if name is None:
                raise TypeError("bad argument type for built-in operation")
            super().__init__(name, *arguments, **options)

    return WindowsCDLL


def systems() -> dict[str, FakeSystem]:
    macos = FakeSystem(
        modules=frozenset(),
        missing={
            "os": "preadv pwritev posix_fadvise sched_getaffinity sched_setaffinity memfd_create eventfd O_DIRECT "
            "O_TMPFILE posix_fallocate splice getrandom copy_file_range".split(),
            "mmap": ["MADV_HUGEPAGE", "MADV_NOHUGEPAGE", "MADV_REMOVE", "MADV_DONTFORK", "MADV_DOFORK", "MAP_POPULATE"],
            "signal": ["SIGRTM*", "SIGPWR", "SIGPOLL", "SIGSTKFLT", "sigwaitinfo", "sigtimedwait"],
            "ctypes": ["windll", "WinDLL"],
        },
        instead={"sys": {"platform": "darwin"}, "platform": {"system": lambda: "Darwin"}},
    )
    windows = FakeSystem(
        modules=frozenset("fcntl resource termios tty pty pwd grp spwd syslog posix readline curses crypt nis".split()),
        missing={
            "os": "pread preadv pwrite pwritev readv writev posix_* sched_* statvfs fstatvfs sysconf* uname getuid "
            "geteuid getgid getegid getgroups getpgid getpgrp getsid setsid setuid setgid fork* mkfifo mknod "
            "chown fchown lchown fchmod killpg wait3 wait4 WNOHANG WIF* WEXITSTATUS WTERMSIG nice getloadavg "
            "sync ttyname tcgetpgrp tcsetpgrp openpty memfd_create eventfd O_DIRECT O_DIRECTORY O_CLOEXEC "
            "O_NOFOLLOW O_NONBLOCK O_NOCTTY O_TMPFILE O_SYNC RTLD_* confstr ctermid pathconf fpathconf "
            "set_blocking get_blocking sendfile".split(),
            "mmap": ["MADV_*", "MAP_*", "PROT_*"],
            "signal": "SIGHUP SIGTSTP SIGCONT SIGWINCH SIGUSR1 SIGUSR2 SIGALRM SIGPIPE SIGQUIT SIGKILL SIGCHLD SIGSTOP "
            "SIGTTIN SIGTTOU SIGRTM* SIGPWR SIGPOLL SIGBUS SIGXFSZ alarm setitimer pthread_* sigwait* sigtimedwait "
            "sigpending pause".split(),
            "socket": ["AF_UNIX", "send_fds", "recv_fds"],
            "time": ["tzset", "clock_gettime", "CLOCK_*"],
        },
        instead={
            "sys": {"platform": "win32"},
            "os": {"name": "nt"},
            "platform": {"system": lambda: "Windows"},
            "signal": {"SIGBREAK": 21},
            "mmap": {"mmap": _mmap_of_windows()},
            "ctypes": {"CDLL": _cdll_of_windows()},
        },
        locks_open_files=True,
        has_drive_names=True,
        encoding="cp1252",
    )
    return {"macos": macos, "windows": windows}


class _View(ModuleType):
    """A module as the fake system has it. What is patched on the real module is seen here too."""

    def __init__(self, real: ModuleType, missing: Sequence[str], instead: Mapping[str, Any]) -> None:
        super().__init__(real.__name__, real.__doc__)
        patterns = [re.escape(name).replace(r"\*", r"\w*") for name in missing]
        self.__dict__.update(instead, _real=real, _missing=re.compile("|".join(patterns) or "(?!)"))

    def __getattr__(self, name: str) -> Any:
        if self.__dict__["_missing"].fullmatch(name):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} on this system")
        return getattr(self.__dict__["_real"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        """`sys.stdout = …` is meant for the process."""
        setattr(self.__dict__["_real"], name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.__dict__["_real"], name)

    def __dir__(self) -> list[str]:
        return [name for name in dir(self._real) if not self._missing.fullmatch(name)]


def current() -> str | None:
    """The fake system that this process shows, or None."""
    return os.environ.get(VARIABLE) or None


def install(name: str | None = None) -> None:
    """Let the modules of dslite that are imported from now on, here and in child processes, see a fake system."""
    name = name or current()
    if name is None or getattr(sys, "_fake_system", None) == name:
        return
    system = systems()[name]
    sys._fake_system = name  # type: ignore[attr-defined]
    os.environ[VARIABLE] = name
    path = os.environ.get("PYTHONPATH", "")
    if str(_SITE) not in path.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_SITE), path]))
    if system.encoding is not None:
        os.environ["PYTHONIOENCODING"] = system.encoding
    _hide_modules(system)
    sys.addaudithook(_Files(system))


def _hide_modules(system: FakeSystem) -> None:
    real_import = builtins.__import__
    views: dict[str, _View] = {}

    def fake_import(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        found = real_import(name, globals, locals, fromlist or (), level)
        importer = (globals or {}).get("__name__") or ""
        if level or not importer.startswith("dslite."):
            return found
        if name.partition(".")[0] in system.modules:
            raise ModuleNotFoundError(f"No module named {name!r} on this system", name=name)
        if found.__name__ not in system.missing and found.__name__ not in system.instead:
            return found
        if found.__name__ not in views:
            missing, instead = system.missing.get(found.__name__, ()), system.instead.get(found.__name__, {})
            views[found.__name__] = _View(found, missing, instead)
        return views[found.__name__]

    builtins.__import__ = fake_import


class _Files:
    """An audit hook: what dslite does to files, refused as the fake system refuses it."""

    def __init__(self, system: FakeSystem) -> None:
        self._system = system
        self._busy = threading.local()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.listdir", "os.scandir"):
            return
        if getattr(self._busy, "looking", False) or not _is_ours(sys._getframe(1)):
            return
        self._busy.looking = True
        try:
            self._check(event, arguments)
        finally:
            self._busy.looking = False

    def _check(self, event: str, arguments: tuple[Any, ...]) -> None:
        paths = [os.fsdecode(path) for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
        if event != "os.rename":
            paths = paths[:1] if isinstance(arguments[0], str | bytes | os.PathLike) else []
        for path in paths:
            if path.startswith(("/proc/", "/sys/")) or path in ("/proc", "/sys"):
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
            name = os.path.basename(path)
            if self._system.has_drive_names and (_FORBIDDEN.search(name) or _RESERVED.fullmatch(name)):
                raise OSError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect", path)
            if event in ("os.rename", "os.remove") and self._system.locks_open_files and _is_open(path):
                raise PermissionError(
                    errno.EACCES, "The process cannot access the file because it is being used by another process", path
                )


def _is_ours(frame: FrameType | None) -> bool:
    """Whether dslite asked, itself or through Python's library."""
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        if name.startswith("dslite."):
            return True
        if name.partition(".")[0] not in sys.stdlib_module_names:
            return False
        frame = frame.f_back
    return False


def _is_open(path: str) -> bool:
    """Whether this process has a file open or mapped."""
    target = os.path.realpath(path)
    if not os.path.isfile(target):
        return False
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") == target:
                return True
        except OSError:
            continue
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return any(line.rstrip("\n").endswith(f" {target}") for line in maps)
