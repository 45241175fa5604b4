"""Cores per worker and the cgroup quota."""

import os
from pathlib import Path

import pytest

from procserver.cgroup import Groups
from procserver.lifecycle.cores import allowance, core_set

MASK = list(range(8))


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(MASK))


def groups(folder: Path, content: str) -> Groups:
    (folder / "cgroup.controllers").write_text("cpu\n")
    (folder / "cpu.max").write_text(content)
    membership = folder / "membership"
    membership.write_text("0::/\n")
    return Groups(membership, folder)


@pytest.mark.parametrize(
    ("content", "cores", "exclusive"),
    [
        ("max 100000\n", 8, True),
        ("100000 100000\n", 1, False),
        ("50000 100000\n", 1, False),
        ("250000 100000\n", 2, False),
        ("299900 100000\n", 3, False),
        ("800000 100000\n", 8, True),
        ("6400000 100000\n", 8, True),
    ],
)
@pytest.mark.usefixtures("eight_cores")
def test_quota_limits_the_cores(
    tmp_path: Path, content: str, cores: int, exclusive: bool
) -> None:
    allowed = allowance(groups(tmp_path, content))
    assert allowed.cores == MASK[:cores]
    assert allowed.exclusive == exclusive


def test_without_a_cgroup_file_the_affinity_mask_counts(tmp_path: Path) -> None:
    allowed = allowance(Groups(tmp_path / "absent", tmp_path / "nowhere"))
    assert allowed.cores == sorted(os.sched_getaffinity(0))
    assert allowed.exclusive


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
def test_core_sets_are_disjoint_while_cores_last(workers: int) -> None:
    cores = [0, 1, 2, 3]
    sets = [core_set(cores, slot, workers) for slot in range(workers)]
    assert all(sets)
    assert set().union(*sets) <= set(cores)
    if workers <= len(cores):
        assert sum(len(s) for s in sets) == len(set().union(*sets))
        assert len({len(s) for s in sets}) == 1


def test_a_slot_beyond_the_workers_still_gets_a_core() -> None:
    # While a worker is being replaced there is one slot more than workers.
    assert core_set([0, 1], 2, 2) == [0]
