"""Lookups against numpy, bit for bit; nothing is read that was not checked."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

import sparse_oracle as oracle

from cython_ext.model_embedding import Lookups, Table, index_keys, row_lengths
from procserver.errors import BadTensor

INT64 = st.integers(-(2**63), 2**63 - 1)


def table(rows: int, dim: int, form: str, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    if form == "int8":
        return oracle.int8_rows(values)
    return values.astype(form)


def split(total: int, bags: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of so many bags that add up to ``total``, empty ones among them."""
    if bags == 0:
        return np.zeros(0, np.int64)
    cuts = np.sort(rng.integers(0, total + 1, bags - 1))
    return np.diff(np.concatenate([[0], cuts, [total]]))


def look_up(
    stored: np.ndarray,
    ids: np.ndarray,
    lengths: np.ndarray,
    pooling: str,
    slots: np.ndarray | None = None,
) -> np.ndarray:
    one = Table(stored, slots)
    out = np.full(
        (len(ids) if pooling == "NONE" else lengths.size, one.dim), np.nan, np.float32
    )
    Lookups(["f"], [one], [pooling], [0]).run([ids], [lengths], [out])
    return out


@settings(deadline=None, max_examples=150)
@given(
    form=st.sampled_from(["float32", "float16", "int8"]),
    dim=st.integers(1, 40),
    count=st.integers(0, 60),
    bags=st.integers(0, 12),
    pooling=st.sampled_from(["SUM", "MEAN", "NONE"]),
    width=st.sampled_from([np.int32, np.int64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_as_numpy_has_it(form, dim, count, bags, pooling, width, seed) -> None:
    rng = np.random.default_rng(seed)
    if bags == 0:
        count = 0
    stored = table(50, dim, form, seed)
    ids = rng.integers(0, 50, count)
    lengths = split(count, bags, rng).astype(width)
    rows = oracle.plain_rows(stored)
    ours = look_up(stored, ids, lengths, pooling)
    expected = (
        rows[ids] if pooling == "NONE" else oracle.pooled(rows, ids, lengths, pooling)
    )
    assert np.array_equal(ours, expected)


def test_every_float16(tmp_path: Path) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    ours = look_up(
        halves.reshape(-1, 16), np.arange(1 << 12), np.array([1 << 12]), "NONE"
    )
    with np.errstate(invalid="ignore"):
        expected = halves.astype(np.float32).reshape(-1, 16)
    assert np.array_equal(ours, expected, equal_nan=True)


@settings(deadline=None, max_examples=150)
@given(
    keys=st.lists(INT64 | st.integers(-5, 5), max_size=60, unique=True),
    others=st.lists(INT64 | st.integers(-9, 9), max_size=20),
    pooling=st.sampled_from(["SUM", "MEAN", "NONE"]),
    form=st.sampled_from(["float32", "int8"]),
)
def test_keys_as_a_dict_has_them(keys, others, pooling, form) -> None:
    stored = table(len(keys) + 1, 6, form)
    slots, replaced = index_keys(np.array(keys, dtype=np.int64))
    assert replaced == 0
    ids = np.array(keys + others, dtype=np.int64)
    lengths = np.array([len(keys), 0, len(others)])
    rows = oracle.plain_rows(stored)
    found = oracle.keyed(np.array(keys, dtype=np.int64), rows[:-1], rows[-1], ids)
    ours = look_up(stored, ids, lengths, pooling, slots)
    if pooling != "NONE":
        found = oracle.pooled(found, np.arange(len(ids)), lengths, pooling)
    assert np.array_equal(ours, found)


def test_the_later_of_equal_keys_wins() -> None:
    slots, replaced = index_keys(np.array([7, 8, 7]))
    assert replaced == 1
    stored = np.array([[1.0], [2.0], [3.0], [-1.0]], np.float32)
    ours = look_up(stored, np.array([7, 8, 9]), np.array([3]), "NONE", slots)
    assert ours.ravel().tolist() == [3.0, 2.0, -1.0]


def test_a_damaged_index_ends_and_stays_inside_the_table() -> None:
    stored = np.arange(4, dtype=np.float32).reshape(4, 1)
    full = np.full((5, 2), 1, np.int64)
    assert look_up(stored, np.array([9]), np.array([1]), "SUM", full)[0, 0] == 3
    for row in (2**40, -(2**40), 4):
        slots, _ = index_keys(np.array([9, 10, 11]))
        slots[slots[:, 0] == 9, 1] = row
        assert look_up(stored, np.array([9]), np.array([1]), "SUM", slots)[0, 0] == 3


def test_only_pooled_int8_tables_take_minus_one_as_absent() -> None:
    stored = table(5, 4, "int8")
    rows = oracle.plain_rows(stored)
    ids, lengths = np.array([-1, 2, -1]), np.array([2, 1])
    assert np.array_equal(
        look_up(stored, ids, lengths, "SUM"), np.stack([rows[2], np.zeros(4)])
    )
    assert np.array_equal(
        look_up(stored, ids, lengths, "MEAN"), np.stack([rows[2] / 2, np.zeros(4)])
    )
    with pytest.raises(BadTensor, match=r"f\.values\[0\]: id -1 .* of 5 rows"):
        look_up(stored, ids, lengths, "NONE")
    for form in ("float32", "float16"):
        with pytest.raises(BadTensor, match=r"id -1"):
            look_up(table(5, 4, form), ids, lengths, "SUM")


@pytest.mark.parametrize("form", ["float32", "int8"])
@pytest.mark.parametrize("pooling", ["SUM", "NONE"])
@pytest.mark.parametrize("bad", [5, 6, -2, 2**63 - 1, -(2**63)])
def test_an_id_without_a_row_is_named(form, pooling, bad) -> None:
    ids = np.array([0, 4, bad, 1])
    with pytest.raises(BadTensor, match=rf"f\.values\[2\]: id {bad} is .* 5 rows"):
        look_up(table(5, 4, form), ids, np.array([4]), pooling)


@pytest.mark.parametrize(
    "lengths",
    [
        [2],
        [4],
        [],
        [-1, 4],
        [4, -1],
        [2**62, 2**62, 2**62, 2**62, 3],
        [2**63 - 1, 2**63 - 1, 5],
    ],
)
@pytest.mark.parametrize("pooling", ["SUM", "NONE"])
def test_lengths_that_do_not_add_up(lengths, pooling) -> None:
    ids = np.array([0, 1, 2])
    with pytest.raises(BadTensor, match=r"f\.lengths: .* 3 values"):
        look_up(table(5, 4, "float32"), ids, np.array(lengths, np.int64), pooling)


def test_several_features_side_by_side() -> None:
    left, right = table(9, 3, "float32"), table(9, 5, "float16", 1)
    out = np.full((2, 8), np.nan, np.float32)
    ids, lengths = np.array([1, 8, 8]), np.array([1, 2], np.int32)
    Lookups(["a", "b"], [Table(left), Table(right)], ["SUM", "MEAN"], [0, 3]).run(
        [ids, ids], [lengths, lengths], [out, out]
    )
    expected = [
        oracle.pooled(oracle.plain_rows(left), ids, lengths, "SUM"),
        oracle.pooled(oracle.plain_rows(right), ids, lengths, "MEAN"),
    ]
    assert np.array_equal(out, np.concatenate(expected, 1))


@pytest.mark.parametrize(
    "change",
    [
        {"ids": np.array([0], np.int32)},
        {"ids": np.array([[0]])},
        {"ids": np.arange(8)[::4], "lengths": np.array([2])},
        {"ids": np.array([0.0])},
        {"lengths": np.array([1], np.int16)},
        {"lengths": np.array(1)},
    ],
)
def test_request_tensors_of_another_kind(change) -> None:
    given = {"ids": np.array([0]), "lengths": np.array([1]), **change}
    with pytest.raises(BadTensor, match=r"f\.(values|lengths): not a vector"):
        look_up(table(5, 4, "float32"), given["ids"], given["lengths"], "SUM")


def test_outputs_of_another_shape_are_not_written() -> None:
    lookups = Lookups(["f"], [Table(table(5, 4, "float32"))], ["SUM"], [1])
    ids, lengths = np.array([0]), np.array([1])
    for out in (
        np.zeros((1, 4), np.float32),
        np.zeros((2, 5), np.float32),
        np.zeros((1, 5), np.float64),
        np.zeros((5, 1), np.float32).T,
        np.zeros(5, np.float32),
    ):
        if out.flags.c_contiguous and out.shape == (1, 5) and out.dtype == np.float32:
            continue
        with pytest.raises(ValueError, match="wrong shape"):
            lookups.run([ids], [lengths], [out])
    read_only = np.zeros((1, 5), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="wrong shape"):
        lookups.run([ids], [lengths], [read_only])
    with pytest.raises(ValueError, match="other numbers"):
        lookups.run([ids, ids], [lengths], [read_only])
    with pytest.raises(TypeError):
        lookups.run([None], [lengths], [np.zeros((1, 5), np.float32)])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 2), np.float64),
        np.zeros((3, 4), np.uint8),
        np.zeros((3, 0), np.float32),
        np.zeros(3, np.float32),
        np.zeros((4, 3), np.float32).T,
    ],
)
def test_what_is_no_table(array) -> None:
    with pytest.raises(ValueError, match="table"):
        Table(array)


@pytest.mark.parametrize(
    "slots",
    [
        np.zeros((2, 2), np.int64),
        np.zeros((9, 2), np.int32),
        np.zeros((9, 3), np.int64),
        np.zeros(18, np.int64),
    ],
)
def test_what_is_no_index(slots) -> None:
    with pytest.raises(ValueError, match="index"):
        Table(np.zeros((3, 2), np.float32), slots)
    with pytest.raises(ValueError, match="index"):
        Table(np.zeros((0, 2), np.float32), np.zeros((9, 2), np.int64))


def test_no_features_and_no_tables() -> None:
    Lookups([], [], [], []).run([], [], [])
    with pytest.raises(ValueError, match="a table, a pooling and a column"):
        Lookups(["f"], [], ["SUM"], [0])
    with pytest.raises(TypeError):
        Lookups(["f"], [None], ["SUM"], [0])


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(0, 4), max_size=8),
    widths=st.tuples(*[st.sampled_from([np.int32, np.int64])] * 2),
    data=st.data(),
)
def test_ids_per_row_of_a_sequence(steps, widths, data) -> None:
    keys = [data.draw(st.integers(0, 5)) for _ in range(sum(steps))]
    ours = row_lengths(
        "s", np.array(steps, widths[0]), np.array(keys, widths[1]), sum(keys)
    )
    ends = np.cumsum([0, *steps])
    assert ours.tolist() == [sum(keys[a:b]) for a, b in itertools.pairwise(ends)]
    assert ours.dtype == widths[1]


def test_sequence_lengths_of_another_kind() -> None:
    good = np.array([1])
    for bad in (np.array(1), np.array([1.0]), np.array([[1]]), np.array([1], np.int8)):
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(BadTensor, match="not a vector"):
                row_lengths("s", *pair, 1)


@pytest.mark.parametrize(
    ("steps", "keys", "count", "named"),
    [
        ([2], [1], 1, "lengths"),
        ([1], [1, 1], 2, "lengths"),
        ([-1, 2], [1], 1, "lengths"),
        ([1], [2], 1, "key_lengths"),
        ([2], [2**62, 2**62], 9, "key_lengths"),
        ([1], [-1], 1, "key_lengths"),
    ],
)
def test_sequences_that_do_not_add_up(steps, keys, count, named) -> None:
    with pytest.raises(BadTensor, match=rf"s\.{named}:"):
        row_lengths("s", np.array(steps, np.int64), np.array(keys, np.int64), count)
