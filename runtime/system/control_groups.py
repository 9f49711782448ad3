"""Limits that Linux's control groups set on this process: memory and processor time.

Version 1 has one hierarchy for each controller, version 2 one for all, and a hybrid system mounts both. A group's
limit holds for all groups inside it, so every folder from the process's own group up to the mount is read. Inside a
container the mount may begin below the real root; what lies above it cannot be seen.
Sources: Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/memory.rst, proc_pid_mountinfo(5).
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# The kernel reclaims these before it ends a process. Mapped weights are mostly active_file.
_RECLAIMABLE_V2 = ("active_file", "inactive_file", "slab_reclaimable")
_STAT = "memory.stat"
_NO_LIMIT_V1 = 1 << 60  # a group without a limit shows the largest number, rounded down to a page
_RECLAIMABLE_V1 = ("total_active_file", "total_inactive_file")


@dataclass(frozen=True)
class MemoryLimit:
    """A limit of a group in bytes, what counts against it and cannot be reclaimed, and the file that says so."""

    limit: int
    used: int
    source: str

    @property
    def free(self) -> int:
        return max(0, self.limit - self.used)


@dataclass(frozen=True)
class CpuQuota:
    """Processors' worth of time that a group may use, and the file that says so."""

    processors: float
    source: str


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """The memory limits of every group around this process, innermost first; empty where there is none."""
    found: list[MemoryLimit] = []
    for version, folder in _groups("memory", root):
        with suppress(OSError, ValueError):
            found += _limits_v2(folder, root) if version == 2 else _limits_v1(folder, root)
    seen = {limit.limit for limit in found if not limit.source.endswith(_STAT)}
    return [limit for limit in found if not limit.source.endswith(_STAT) or limit.limit not in seen]


def _limits_v2(folder: Path, root: Path) -> Iterator[MemoryLimit]:
    for name in ("memory.max", "memory.high"):
        limit = _number(folder / name)
        if limit is not None:
            used = _used(folder / "memory.current", folder / _STAT, _RECLAIMABLE_V2)
            yield MemoryLimit(limit, used, _shown(folder / name, root))


def _limits_v1(folder: Path, root: Path) -> Iterator[MemoryLimit]:
    stat = folder / _STAT
    limits = {"memory.limit_in_bytes": _number(folder / "memory.limit_in_bytes")}
    # Counts the groups above as well, those outside of a container's view included.
    limits[_STAT] = _fields(stat).get("hierarchical_memory_limit")
    for name, limit in limits.items():
        if limit is not None and limit < _NO_LIMIT_V1:
            used = _used(folder / "memory.usage_in_bytes", stat, _RECLAIMABLE_V1)
            yield MemoryLimit(limit, used, _shown(folder / name, root))


def _used(current: Path, stat: Path, reclaimable: tuple[str, ...]) -> int:
    """Bytes of a group that cannot be reclaimed. Without memory.stat all of them count. Raises OSError, ValueError."""
    fields = _fields(stat)
    return max(0, int(current.read_text()) - sum(fields.get(name, 0) for name in reclaimable))


def _fields(stat: Path) -> dict[str, int]:
    """The fields of a memory.stat; empty where there is none."""
    try:
        words = [line.split() for line in stat.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in words if len(line) == 2 and line[1].isdecimal()}


def cpu_quota(root: Path = Path("/")) -> CpuQuota | None:
    """The smallest share of processor time of the groups around this process; None without a quota."""
    found = []
    for version, folder in _groups("cpu", root):
        name = "cpu.max" if version == 2 else "cpu.cfs_quota_us"
        with suppress(OSError, ValueError):
            quota, *rest = (folder / name).read_text().split()
            period = rest[0] if version == 2 else (folder / "cpu.cfs_period_us").read_text()
            if quota != "max" and int(quota) > 0 and int(period) > 0:
                found.append(CpuQuota(int(quota) / int(period), _shown(folder / name, root)))
    return min(found, key=lambda quota: quota.processors, default=None)


def _groups(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """Version and folder of each group around this process that may have a controller's files, innermost first."""
    memberships = _memberships(root, controller)
    for version, mount_root, point in _mounts(root, controller):
        if version not in memberships:
            continue
        own = memberships[version]
        if mount_root != "/" and (own == mount_root or own.startswith(mount_root + "/")):
            own = own[len(mount_root) :]
        folder = point
        folders = [point]
        # A path outside of the mount begins with "/..": the process sees no more than the mount's own folder.
        for part in () if own.startswith("/..") else Path(own.lstrip("/")).parts:
            folder = folder / part
            folders.append(folder)
        for each in reversed(folders):
            yield version, each


def _memberships(root: Path, controller: str) -> dict[int, str]:
    """Version of a hierarchy → this process's group in it."""
    found: dict[int, str] = {}
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                found[2] = path
            elif controller in controllers.split(","):
                found[1] = path
    return found


def _mounts(root: Path, controller: str) -> list[tuple[int, str, Path]]:
    """Version, root inside the hierarchy and folder of each mounted hierarchy; usual folders without mountinfo."""
    try:
        lines = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        base = root / "sys/fs/cgroup"
        return [(1, "/", base / controller), (2, "/", base), (2, "/", base / "unified")]
    found = []
    for line in lines:
        place, _, kind = line.partition(" - ")
        fields, (filesystem, *options) = place.split(), kind.split() or [""]
        if len(fields) < 5 or filesystem not in ("cgroup", "cgroup2"):
            continue
        if filesystem == "cgroup" and controller not in options[-1].split(","):
            continue
        point = root / _unescaped(fields[4]).lstrip("/")
        found.append((2 if filesystem == "cgroup2" else 1, _unescaped(fields[3]), point))
    return found


def _unescaped(field: str) -> str:
    r"""A path of mountinfo, where a space is written as \040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _number(file: Path) -> int | None:
    """The number in a file; None where there is no file or no number ("max")."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _shown(file: Path, root: Path) -> str:
    """A file's path on the system whose root is `root`."""
    return str(Path("/") / file.relative_to(root))
