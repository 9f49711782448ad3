"""Folders written from a table of names and texts: /proc and /sys as a system under test shows them."""

from pathlib import Path

GIB = 2**30


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def linux(root: Path, *, group: str = "0::/\n", mounts: str | None = None, files: dict[str, str] | None = None) -> Path:
    """A Linux with 32 GiB of memory, 20 of them available, and a process in a control group."""
    meminfo = f"MemTotal: {32 * 2**20} kB\nMemFree: {2**20} kB\nMemAvailable: {20 * 2**20} kB\n"
    tree = {"proc/meminfo": meminfo, "proc/self/cgroup": group}
    if mounts is not None:
        tree["proc/self/mountinfo"] = mounts
    return write_tree(root, tree | (files or {}))
