"""Limits of control groups, read from trees as Linux shows them: version 1, version 2, hybrid, in containers."""

from pathlib import Path

import pytest
from support.trees import GIB, linux, write_tree

from dslite.runtime.system.control_groups import cpu_quota, memory_limits
from dslite.runtime.system.memory import host_memory

V2 = "30 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
GROUP_V1 = "5:cpuacct,cpu:/box\n4:memory:/box/inner\n"
NO_LIMIT_V1 = "9223372036854771712\n"


def v1(folder: str, limit: int | str, used: int, **stat: int) -> dict[str, str]:
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used}\n",
        f"{folder}/memory.stat": "".join(f"{name} {value}\n" for name, value in stat.items()),
    }


def v2(folder: str, limit: int | str, used: int, high: int | str = "max", **stat: int) -> dict[str, str]:
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.high": f"{high}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": "".join(f"{name} {value}\n" for name, value in stat.items()),
    }


CG, MEMORY = "sys/fs/cgroup", "sys/fs/cgroup/memory"
CASES = {
    "no group": (dict(group="0::/\n", mounts=V2), 32, 20),
    "v2 limit": (dict(group="0::/box\n", mounts=V2, files=v2(f"{CG}/box", 8 * GIB, 2 * GIB)), 8, 6),
    "v2 mapped weights are active file pages": (
        dict(
            group="0::/box\n",
            mounts=V2,
            files=v2(f"{CG}/box", 8 * GIB, 7 * GIB, anon=GIB, active_file=5 * GIB, inactive_file=GIB),
        ),
        8,
        7,
    ),
    "v2 caches of the kernel": (
        dict(group="0::/box\n", mounts=V2, files=v2(f"{CG}/box", 8 * GIB, 4 * GIB, slab_reclaimable=3 * GIB)),
        8,
        7,
    ),
    "v2 memory.high": (dict(group="0::/box\n", mounts=V2, files=v2(f"{CG}/box", "max", GIB, high=3 * GIB)), 3, 2),
    "v2 memory.high below memory.max": (
        dict(group="0::/box\n", mounts=V2, files=v2(f"{CG}/box", 6 * GIB, GIB, high=5 * GIB)),
        5,
        4,
    ),
    "v2 the outer group is smaller": (
        dict(
            group="0::/box/inner\n",
            mounts=V2,
            files=v2(f"{CG}/box", 4 * GIB, 3 * GIB) | v2(f"{CG}/box/inner", 8 * GIB, GIB),
        ),
        4,
        1,
    ),
    "v2 the inner group is smaller": (
        dict(
            group="0::/box/inner\n",
            mounts=V2,
            files=v2(f"{CG}/box", 8 * GIB, 3 * GIB) | v2(f"{CG}/box/inner", 2 * GIB, GIB),
        ),
        2,
        1,
    ),
    "v2 without mountinfo": (dict(group="0::/box\n", files=v2(f"{CG}/box", 8 * GIB, 2 * GIB)), 8, 6),
    "v2 limit above the machine": (
        dict(group="0::/box\n", mounts=V2, files=v2(f"{CG}/box", 64 * GIB, 40 * GIB)),
        32,
        20,
    ),
    "v2 more used than the limit": (dict(group="0::/box\n", mounts=V2, files=v2(f"{CG}/box", GIB, 2 * GIB)), 1, 0),
    "v2 in a container that sees its own group as the root": (
        dict(group="0::/\n", mounts=V2, files=v2(CG, 2 * GIB, GIB)),
        2,
        1,
    ),
    "v2 in a container whose mount begins at its group": (
        dict(
            group="0::/docker/abc/inner\n",
            mounts=V2.replace(" / /sys", " /docker/abc /sys"),
            files=v2(f"{CG}/inner", 2 * GIB, GIB),
        ),
        2,
        1,
    ),
    "v2 of a group outside of the mount": (dict(group="0::/../other\n", mounts=V2, files=v2(CG, 2 * GIB, GIB)), 2, 1),
    "v2 in a folder with a space": (
        dict(
            group="0::/box\n",
            mounts=V2.replace("/sys/fs/cgroup", r"/mnt/my\040groups"),
            files=v2("mnt/my groups/box", 2 * GIB, GIB),
        ),
        2,
        1,
    ),
    "v1 limit of one GiB": (
        dict(group=GROUP_V1, mounts=V1, files=v1(f"{MEMORY}/box/inner", GIB, GIB // 2)),
        1,
        0.5,
    ),
    "v1 file pages": (
        dict(
            group=GROUP_V1,
            mounts=V1,
            files=v1(
                f"{MEMORY}/box/inner", 4 * GIB, 3 * GIB, total_active_file=GIB, total_inactive_file=GIB, cache=3 * GIB
            ),
        ),
        4,
        3,
    ),
    "v1 no limit": (
        dict(group=GROUP_V1, mounts=V1, files=v1(f"{MEMORY}/box/inner", NO_LIMIT_V1.strip(), 30 * GIB)),
        32,
        20,
    ),
    "v1 the outer group is smaller": (
        dict(
            group=GROUP_V1,
            mounts=V1,
            files=v1(f"{MEMORY}/box", 2 * GIB, GIB) | v1(f"{MEMORY}/box/inner", NO_LIMIT_V1.strip(), GIB),
        ),
        2,
        1,
    ),
    "v1 a limit above what a container sees": (
        dict(
            group=GROUP_V1,
            mounts=V1,
            files=v1(f"{MEMORY}/box/inner", NO_LIMIT_V1.strip(), GIB, hierarchical_memory_limit=3 * GIB),
        ),
        3,
        2,
    ),
    "v1 without mountinfo": (dict(group=GROUP_V1, files=v1(f"{MEMORY}/box/inner", GIB, GIB // 2)), 1, 0.5),
    "hybrid, memory under version 1": (
        dict(group=GROUP_V1 + "0::/user.slice\n", mounts=HYBRID, files=v1(f"{MEMORY}/box/inner", 2 * GIB, GIB)),
        2,
        1,
    ),
    "hybrid, memory under version 2": (
        dict(group="1:name=systemd:/\n0::/box\n", mounts=HYBRID, files=v2(f"{CG}/unified/box", 2 * GIB, GIB)),
        2,
        1,
    ),
    "a file that cannot be understood": (
        dict(group="0::/box\n", mounts=V2, files={f"{CG}/box/memory.max": "what\n", f"{CG}/box/memory.current": ""}),
        32,
        20,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_tightest_limit_of_the_groups_counts(tmp_path: Path, case: str) -> None:
    tree, total, free = CASES[case]
    memory = host_memory(linux(tmp_path, **tree), system="linux")  # type: ignore[arg-type]
    assert (memory.total / GIB, memory.free / GIB) == (total, free)


def test_a_limit_says_which_file_sets_it(tmp_path: Path) -> None:
    files = v2(f"{CG}/box", 8 * GIB, 2 * GIB, high=7 * GIB) | v2(f"{CG}/box/inner", "max", GIB)
    limits = memory_limits(linux(tmp_path, group="0::/box/inner\n", mounts=V2, files=files))
    assert [(limit.source, limit.limit // GIB, limit.free // GIB) for limit in limits] == [
        ("/sys/fs/cgroup/box/memory.max", 8, 6),
        ("/sys/fs/cgroup/box/memory.high", 7, 5),
    ]


QUOTAS = {
    "none": ({}, None),
    "v2 max": ({f"{CG}/box/cpu.max": "max 100000\n"}, None),
    "v2 two": ({f"{CG}/box/cpu.max": "200000 100000\n"}, 2.0),
    "v2 half": ({f"{CG}/box/cpu.max": "25000 50000\n"}, 0.5),
    "v2 outer smaller": ({f"{CG}/box/cpu.max": "400000 100000\n", f"{CG}/cpu.max": "150000 100000\n"}, 1.5),
    "damaged": ({f"{CG}/box/cpu.max": "\n"}, None),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_a_quota_of_version_2_is_read(tmp_path: Path, case: str) -> None:
    files, expected = QUOTAS[case]
    quota = cpu_quota(linux(tmp_path, group="0::/box\n", mounts=V2, files=files))
    assert (quota and quota.processors) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("150000", 1.5), ("0", None), ("400000", 4.0)])
def test_a_quota_of_version_1_is_read(tmp_path: Path, quota: str, expected: float | None) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct/box"
    files = {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}
    found = cpu_quota(linux(tmp_path, group=GROUP_V1, mounts=V1, files=files))
    assert (found and found.processors) == expected
    assert found is None or found.source == f"/{folder}/cpu.cfs_quota_us"


def test_a_system_without_groups_has_no_limits(tmp_path: Path) -> None:
    assert memory_limits(tmp_path) == []
    assert cpu_quota(tmp_path) is None
    assert cpu_quota(write_tree(tmp_path, {"proc/self/mountinfo": "broken\n", "proc/self/cgroup": "0::/\n"})) is None
