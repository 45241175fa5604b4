"""Tables of pairs, by way of lookups: growth, clearing, many and long keys."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from one_operator import run


def lookup(maps, keys):
    found = run(
        "lookup", [pa.array(maps), pa.array(keys)], form="numbers", value_dim=1,
        default_numbers=[-1.0], default_text=b"-1", details=("sum", True, False),
    )  # fmt: skip
    return [row[0] for row in found["values"]]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text("ab0é", min_size=1, max_size=4), st.integers(0, 99)),
        min_size=1,
        max_size=5,
    ),
    st.text("ab0é", min_size=1, max_size=4),
)
def test_tables_of_many_rows(tables, key):
    maps = ["\x1d".join(f"{k}:{v}" for k, v in table.items()) for table in tables]
    keys = [key] * len(tables)
    assert lookup(maps, keys) == [table.get(key, -1) for table in tables]


def test_many_keys():
    count = 200_000
    text = "\x1d".join(f"key-{i}:{i}" for i in range(count))
    keys = [f"key-{i}" for i in range(0, count, 997)]
    assert lookup([text], keys) == [float(i) for i in range(0, count, 997)]


def test_long_keys_and_bytes_of_every_kind():
    keys = ["k" * 100_000, "\0", "\0\0", "é", "e\u0301", " a", "a"]
    text = "\x1d".join(f"{key}:{i}" for i, key in enumerate(keys))
    assert lookup([text], [*keys, "k" * 99_999, "\0\0\0"]) == [*range(7), -1, -1]
