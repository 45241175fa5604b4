"""``wire_cells``: alternatives, merging messages and map entries, against upb."""

import time

import pytest

from procserver.wire import torchrec
from tests.reference.wire_cases import agree, rows, user
from tests.reference.wire_noise import length, tag

FIVE, SIX = length(21, b"\x08\x05"), length(21, length(1, b"\x06\x07"))


@pytest.mark.parametrize(
    ("feature", "cell"),
    [
        (FIVE + SIX, [5, 6, 7]),
        (FIVE + tag(100, 0) + b"\x01" + SIX, [5, 6, 7]),
        (FIVE + b"\x08\x01" + SIX, [6, 7]),
        (FIVE + SIX + b"\x08\x01", 1),
        (FIVE + SIX + length(3, b""), ""),
        # The wrong wire type is an unknown field and clears nothing.
        (FIVE + b"\x0d\x00\x00\x00\x00" + SIX, [5, 6, 7]),
        (FIVE + length(22, b"") + SIX, [6, 7]),
        (FIVE + length(22, b"\x08\x09") + length(22, b"\x08\x0a"), [9, 10]),
        (length(26, length(1, b"\x08\x01")) + length(26, length(1, b"")), [[1], []]),
        (length(3, b"abc") + length(3, b"de"), "de"),
        (length(21, b"") * 2, []),
    ],
)
def test_the_last_alternative_wins_and_messages_merge(feature, cell):
    assert agree(user(feature)).user["x"].to_pylist() == [cell]
    assert agree(rows(feature, feature)).context["x"].to_pylist() == [cell, cell]


def test_values_of_a_map_entry_merge():
    entry = b"\x0a\x01x" + length(2, FIVE) + tag(2, 0) + b"\x01" + length(2, SIX)
    # The stray varint makes the entry one with an unknown field: upb drops it.
    assert agree(length(2, entry)).user == {}
    entry = b"\x0a\x01x" + length(2, FIVE) + b"\x0a\x01y" + length(2, SIX)
    assert agree(length(2, entry)).user["y"].to_pylist() == [[5, 6, 7]]
    entry = length(2, length(1, FIVE)) + length(2, length(1, SIX)) + b"\x0a\x01z"
    assert agree(length(4, entry)).context["z"].to_pylist() == [[5], [6, 7]]


def test_entries_without_key_or_value():
    for section in (2, 4, 6, 7):
        agree(length(section, b""))
        agree(length(section, b"\x0a\x01a"))
    empty = length(6, length(1, b""))
    assert agree(user(empty)).user["x"].to_pylist() == [[(0, "")]]


def test_many_parts_merge_in_linear_time():
    def seconds(n):
        body = user(FIVE * n)
        entry = length(2, b"\x0a\x01x" + length(2, FIVE) * n)
        start = time.perf_counter()
        assert len(torchrec.decode(body).user["x"].to_pylist()[0]) == n
        assert len(torchrec.decode(entry).user["x"].to_pylist()[0]) == n
        return time.perf_counter() - start

    few, many = min(seconds(2000) for _ in range(5)), seconds(100_000)
    assert many < 50 * few * 10
