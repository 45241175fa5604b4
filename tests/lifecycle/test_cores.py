"""Cores per worker and the cgroup quota."""

import os
from pathlib import Path

import pytest

from procserver.lifecycle.cores import available_cores, core_set


@pytest.mark.parametrize(
    ("content", "expected"),
    [("max 100000\n", None), ("100000 100000\n", 1), ("50000 100000\n", 1)],
)
def test_quota_limits_the_cores(
    tmp_path: Path, content: str, expected: int | None
) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(content)
    mask = os.sched_getaffinity(0)
    assert len(available_cores(quota)) == (expected or len(mask))


def test_without_a_cgroup_file_the_affinity_mask_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path / "absent") == sorted(os.sched_getaffinity(0))


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
