"""Histogram words in a map: bounds, sums, threads, processes, refusals."""

import os
import threading
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cython_ext.buckets import Buckets
from cython_ext.shm import Mapping


def memory(size: int = 4096, *, writable: bool = True) -> Mapping:
    fd = os.memfd_create("buckets-test")
    try:
        os.ftruncate(fd, size)
        return Mapping(fd, size, writable=writable)
    finally:
        os.close(fd)


def words(mapping: Mapping, offset: int, count: int) -> list[int]:
    return [mapping.load(offset + 8 * i) for i in range(count)]


@given(
    st.sets(st.integers(0, 2**50), min_size=1, max_size=64).map(sorted),
    st.lists(st.integers(0, 2**52), max_size=50),
)
def test_counts_and_sum_are_those_of_bisect(
    bounds: list[int], values: list[int]
) -> None:
    mapping = memory()
    buckets = Buckets(mapping, 64, bounds)
    expected = [0] * (len(bounds) + 2)
    for value in [*values, *bounds]:
        buckets.observe(value)
        expected[bisect_left(bounds, value)] += 1
        expected[-1] += value
    assert words(mapping, 64, len(bounds) + 2) == expected
    assert words(mapping, 0, 8) == [0] * 8
    assert mapping.load(64 + 8 * (len(bounds) + 2)) == 0


def test_negative_values_count_as_zero() -> None:
    mapping = memory()
    Buckets(mapping, 0, [0, 10]).observe(-5)
    assert words(mapping, 0, 4) == [1, 0, 0, 0]


def test_no_count_is_lost_between_threads_and_processes() -> None:
    mapping = memory()
    buckets = Buckets(mapping, 0, [1, 2])
    each = 20_000

    def work() -> None:
        for _ in range(each):
            buckets.observe(2)

    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.waitpid(pid, 0)
    assert words(mapping, 0, 4) == [0, 4 * each, 0, 8 * each]


@pytest.mark.parametrize("offset", [-8, 4, 4096 - 24, 4096, 1 << 60])
def test_words_outside_the_map_are_refused(offset: int) -> None:
    with pytest.raises(IndexError):
        Buckets(memory(), offset, [1, 2])


@pytest.mark.parametrize("bounds", [[], [1, 1], [2, 1], list(range(65))])
def test_wrong_bounds_are_refused(bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="bounds"):
        Buckets(memory(), 0, bounds)


def test_a_read_only_map_is_refused() -> None:
    with pytest.raises(BufferError):
        Buckets(memory(writable=False), 0, [1])


def test_the_map_cannot_move_below() -> None:
    mapping = memory()
    buckets = Buckets(mapping, 0, [1])
    with pytest.raises(BufferError):
        mapping.resize(4096)
    del buckets
    mapping.resize(4096)
