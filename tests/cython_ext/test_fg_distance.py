"""Edit distance against the textbook's matrix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cython_ext.fg_distance import edit_distance


def matrix_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, above + (x != y)),
            )
    return row[-1]


few_letters = st.text(alphabet="abc裙子😀", max_size=40)
# Two blocks of rows and more, over an alphabet that makes near misses likely.
long_texts = st.text(alphabet="ab连", min_size=60, max_size=200)


@given(few_letters, few_letters)
def test_code_points(a, b):
    found = edit_distance(a.encode(), b.encode(), utf8=True)
    assert found == matrix_distance(a, b)


@given(st.text(max_size=90), st.text(max_size=90))
def test_any_characters(a, b):
    found = edit_distance(a.encode(), b.encode(), utf8=True)
    assert found == matrix_distance(a, b)


@given(long_texts, long_texts)
def test_long_texts(a, b):
    found = edit_distance(a.encode(), b.encode(), utf8=True)
    assert found == matrix_distance(a, b)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_bytes(a, b):
    assert edit_distance(a, b, utf8=False) == matrix_distance(a, b)


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_bytes_that_are_no_utf8_are_taken_all_the_same(a, b):
    found = edit_distance(a, b, utf8=True)
    assert found == edit_distance(b, a, utf8=True) <= max(len(a), len(b))
    assert edit_distance(a, a, utf8=True) == 0


@pytest.mark.parametrize("size", [63, 64, 65, 127, 128, 129, 256, 257])
def test_block_borders(size):
    a, b = "ab" * size, "ba" * size
    assert edit_distance(a.encode(), b.encode(), utf8=True) == 2
    a, b = "a" * size, "b" * (size + 1)
    assert edit_distance(a.encode(), b.encode(), utf8=False) == size + 1


def test_known_values():
    assert edit_distance("裙子".encode(), "连衣裙".encode(), utf8=True) == 3
    assert edit_distance("裙子".encode(), "连衣裙".encode(), utf8=False) > 3
    assert edit_distance(b"", b"", utf8=True) == 0
    assert edit_distance(b"", b"abc", utf8=True) == 3
    assert edit_distance(b"kitten", b"sitting", utf8=True) == 3


def test_texts_too_long_to_compare():
    most = 1 << 14
    assert edit_distance(b"a" * most, b"b" * most, utf8=False) == most
    with pytest.raises(ValueError, match="too long"):
        edit_distance(b"a" * (most + 1), b"b" * (most + 1), utf8=False)
    # What they have in common at their ends does not count.
    long = b"x" * 400_000
    assert edit_distance(long + b"a" + long, long + b"b" + long, utf8=False) == 1
