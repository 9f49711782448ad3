"""Only runtime/system asks which system this is: the sources are searched for questions elsewhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from dslite.runtime import system

ROOT = Path(system.__file__).parents[2]
MODULES = {"fcntl", "resource", "termios", "tty", "pwd", "grp", "winreg", "msvcrt", "psutil"}
ATTRIBUTES = {
    "os": "name preadv pread pwritev statvfs posix_fadvise sched_getaffinity sysconf getuid geteuid fork uname mkfifo "
    "O_DIRECT getrusage".split(),
    "sys": ["platform", "getwindowsversion"],
    "mmap": "madvise PAGESIZE MADV_HUGEPAGE MADV_DONTNEED MADV_SEQUENTIAL MADV_WILLNEED MAP_ANONYMOUS".split(),
}
FOLDERS = ("/proc", "/sys/")
ALLOWED: dict[tuple[str, str], str] = {}  # (file, question): reason


def questions(source: str) -> Iterator[str]:
    """What a module asks of the system."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module in MODULES:
                yield node.module
            yield from (f"{node.module}.{n.name}" for n in node.names if n.name in ATTRIBUTES.get(node.module, ()))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in ATTRIBUTES.get(node.value.id, ()):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(FOLDERS):
            yield node.value


def sources() -> list[Path]:
    return [file for room in ("app", "model", "runtime") for file in sorted((ROOT / room).rglob("*.py"))]


def test_no_other_module_asks_the_system() -> None:
    asked = {
        (file.relative_to(ROOT).as_posix(), question)
        for file in sources()
        if Path(system.__file__).parent not in file.parents
        for question in questions(file.read_text(encoding="utf-8"))
    }
    assert asked == ALLOWED.keys()
    assert len(sources()) > 100


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl", ["fcntl"]),
        ("from resource import getrusage", ["resource"]),
        ("import sys\nif sys.platform == 'win32': pass", ["sys.platform"]),
        ("from sys import platform", ["sys.platform"]),
        ("import os\nos.preadv(1, [], 0)", ["os.preadv"]),
        ("open('/proc/self/maps')", ["/proc/self/maps"]),
        ("import os\nos.path.join('a')", []),
    ],
)
def test_the_search_finds_questions(source: str, found: list[str]) -> None:
    assert list(questions(source)) == found
