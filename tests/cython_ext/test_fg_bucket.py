"""Bucketizers and normalizers, one value at a time."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cython_ext.fg_bucket import BucketTable, normalize

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

import fg_oracle


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(1, 2**63 - 1))
def test_hash_is_an_unsigned_remainder(text, size):
    std = BucketTable(("std_hash", size, 0, None))
    farm = BucketTable(("farm_hash", size, 0, None))
    assert std.of_text(text) == fg_oracle.std_hash(text) % size
    assert farm.of_text(text) == fg_oracle.farm_hash(text) % size


@pytest.mark.parametrize("size", [1, 2, 3, 2**32 - 1, 2**32, 2**62 + 1, 2**63 - 1])
def test_remainders_of_unusual_sizes(size):
    table = BucketTable(("farm_hash", size, 0, None))
    for number in range(2000):
        text = str(number).encode()
        assert table.of_text(text) == fg_oracle.farm_hash(text) % size


def test_integers_and_floats_hash_as_their_text():
    table = BucketTable(("farm_hash", 1000, 0, None))
    assert table.of_integer(-17) == table.of_text(b"-17")
    assert table.of_number(5.2) == table.of_text(b"5.2")
    assert table.of_number(5.0) == table.of_text(b"5")
    assert table.of_number(float(np.float32(0.1)), single=True) == table.of_text(b"0.1")


@settings(deadline=None)
@given(st.dictionaries(st.binary(max_size=6), st.integers(-(2**63), 2**63 - 1)))
def test_vocabulary(words):
    table = BucketTable(("vocab", 0, -7, words))
    for word, number in words.items():
        assert table.of_text(word) == number
    for word in (b"", b"not there", b"\0" * 5):
        assert table.of_text(word) == words.get(word, -7)


def test_a_large_vocabulary():
    words = {f"word {i}".encode(): i * 3 for i in range(50_000)}
    table = BucketTable(("vocab", 0, -1, words))
    assert all(table.of_text(word) == number for word, number in words.items())
    assert table.of_text(b"word 50000") == -1


@pytest.mark.parametrize(
    ("text", "number"),
    [(b"0", 0), (b"99", 99), (b"100", 0), (b"-1", 0), (b"+01", 1), (b"x", 0), (b"", 0)],
)
def test_plain_numbers(text, number):
    assert BucketTable(("number", 100, 0, None)).of_text(text) == number


@pytest.mark.parametrize(
    ("value", "number"),
    [(1.5, 1), (-0.5, 0), (-1.5, 0), (99.9, 99), (100.0, 0), (math.nan, 0),
     (math.inf, 0), (-math.inf, 0), (1e30, 0)],
)  # fmt: skip
def test_plain_numbers_of_floats_are_truncated(value, number):
    assert BucketTable(("number", 100, 0, None)).of_number(value) == number


@settings(deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40).map(sorted),
    st.floats(width=32, allow_nan=False),
)
def test_boundaries_count_what_is_at_or_below(bounds, value):
    table = BucketTable(("boundaries", 0, 0, bounds))
    assert table.of_number(value) == sum(b <= value for b in bounds)
    for bound in bounds:
        assert table.of_number(bound) == sum(b <= bound for b in bounds)


def test_boundaries_of_nan_go_right_of_all():
    assert BucketTable(("boundaries", 0, 0, [0.0, 1.0])).of_number(math.nan) == 2


@pytest.mark.parametrize("spec", [None, ("hash", 1, 0, None), ("std_hash", 0, 0, None)])
def test_unusable_specs(spec):
    with pytest.raises((ValueError, KeyError)):
        BucketTable(spec)


PARAMETERS = [
    ("log10", 1.0, 0.0),
    ("log10", 0.05, -5.0),
    ("log10", -math.inf, 3.0),
    ("zscore", 0.1, 0.3),
    ("minmax", 0.1, 0.8),
]


@pytest.mark.parametrize("spec", PARAMETERS)
@settings(deadline=None)
@given(value=st.floats())
def test_normalizers_bit_for_bit(spec, value):
    method, first, second = spec
    oracle = (method, np.float32(first), np.float32(second))
    for in_double in (False, True):
        start = value if in_double else float(fg_oracle.f32(value))
        with np.errstate(all="ignore"):
            wanted = np.float32(fg_oracle.normalise(oracle, start, in_double))
        found = np.float32(normalize(spec, start, double_path=in_double))
        assert found.tobytes() == wanted.tobytes() or (
            np.isnan(found) and np.isnan(wanted)
        )


def test_log10_of_singles_is_the_classic_one():
    found = normalize(("log10", 0.0, 0.0), 3.0, double_path=False)
    assert found == 0.4771212339401245
