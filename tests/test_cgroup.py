"""Control groups, versions 1 and 2, as trees of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from procserver.cgroup import Groups

# What version 1 says for "no limit".
UNLIMITED = "9223372036854771712\n"


def make(folder: Path, membership: str, files: dict[str, str]) -> Groups:
    mount = folder / "mount"
    mount.mkdir()
    for name, content in files.items():
        file = mount / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    told = folder / "membership"
    told.write_text(membership)
    return Groups(told, mount)


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, None, id="no limit"),
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5, id="v2"),
        pytest.param(
            "0::/a/b\n",
            {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"},
            2.0,
            id="v2, limit of the parent",
        ),
        pytest.param(
            "0::/a/b\n",
            {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "50000 100000\n"},
            0.5,
            id="v2, the tightest counts",
        ),
        pytest.param(
            "0::/docker/1234\n",
            {"cpu.max": "300000 100000\n"},
            3.0,
            id="v2, only the own group is mounted",
        ),
        pytest.param(
            "0::/docker/1234/inner\n",
            {"cpu.max": "300000 100000\n", "inner/cpu.max": "100000 100000\n"},
            1.0,
            id="v2, a group below the one that is mounted",
        ),
        pytest.param(
            "0::/../other\n", {"cpu.max": "100000 100000\n"}, 1.0, id="v2, outside"
        ),
        pytest.param(
            "0::/a\n", {"a/cpu.max": "rubbish\n", "cpu.max": "1\n"}, None, id="rubbish"
        ),
        pytest.param(
            "3:cpu,cpuacct:/pod/c\n2:memory:/x\n0::/\n",
            {
                "cpu,cpuacct/pod/c/cpu.cfs_quota_us": "250000\n",
                "cpu,cpuacct/pod/c/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/pod/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/pod/cpu.cfs_period_us": "100000\n",
            },
            2.5,
            id="v1, controllers together",
        ),
        pytest.param(
            "1:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
            id="v1, no limit",
        ),
        pytest.param(
            "1:cpu:/a\n0::/a\n",
            {
                "cpu/a/cpu.cfs_quota_us": "100000\n",
                "cpu/a/cpu.cfs_period_us": "100000\n",
                "unified/a/cgroup.procs": "",
            },
            1.0,
            id="both versions",
        ),
        pytest.param("", {}, None, id="nothing"),
    ],
)
def test_the_cpus_that_quotas_pay_for(
    tmp_path: Path, membership: str, files: dict[str, str], cpus: float | None
) -> None:
    assert make(tmp_path, membership, files).cpus() == cpus


def test_the_memory_that_is_left(tmp_path: Path) -> None:
    groups = make(
        tmp_path,
        "0::/a/b\n",
        {
            "a/memory.max": "1000\n",
            "a/memory.current": "700\n",
            "a/memory.stat": "anon 1\ninactive_file 50\n",
            "a/b/memory.max": "max\n",
            "a/b/memory.current": "600\n",
        },
    )
    assert groups.memory() == 350
    (groups.mount / "a/b/memory.max").write_text("650\n")
    assert groups.memory() == 50
    (groups.mount / "a/b/memory.max").write_text("max\n")
    (groups.mount / "a/memory.max").write_text("max\n")
    assert groups.memory() is None


def test_the_memory_that_version_1_leaves(tmp_path: Path) -> None:
    groups = make(
        tmp_path,
        "4:memory:/pod\n0::/\n",
        {
            "memory/pod/memory.limit_in_bytes": "5000\n",
            "memory/pod/memory.usage_in_bytes": "4000\n",
            "memory/pod/memory.stat": "inactive_file 1\ntotal_inactive_file 100\n",
            "memory/memory.limit_in_bytes": UNLIMITED,
            "memory/memory.usage_in_bytes": "4500\n",
        },
    )
    assert groups.memory() == 1100
    (groups.mount / "memory/pod/memory.limit_in_bytes").write_text(UNLIMITED)
    assert groups.memory() is None


@pytest.mark.parametrize(
    ("membership", "file"),
    [
        ("0::/a\n", "a/memory.events"),
        ("4:memory:/a\n0::/\n", "memory/a/memory.oom_control"),
    ],
)
def test_how_often_the_kernel_killed(
    tmp_path: Path, membership: str, file: str
) -> None:
    groups = make(tmp_path, membership, {file: "under_oom 0\noom 9\noom_kill 3\n"})
    assert groups.oom_kills() == 3
    (groups.mount / file).unlink()
    assert groups.oom_kills() == 0
