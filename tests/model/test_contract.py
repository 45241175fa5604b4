"""Lengths against what they count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from procserver.errors import BadTensor
from procserver.model.contract import check_batch_size, check_ragged, kind_of


def array(*values: float, dtype: str = "int64") -> np.ndarray:
    return np.array(values, dtype=dtype)


RIGHT = {
    "id.values": array(4, 5, 6),
    "id.lengths": array(1, 0, 2),
    "id.weights": array(1, 2, 3, dtype="float32"),
    "s__c.values": array(1, 2, 3, 4),
    "s__c.key_lengths": array(2, 2, 0),
    "s__c.lengths": array(3, 0, 0, dtype="int32"),
    "price.values": np.ones((3, 1), np.float32),
    "other": array(1),
}


def test_what_is_right_passes() -> None:
    check_ragged(RIGHT)
    check_ragged({"x.lengths": array(1, 2)})
    check_ragged({"x.values": array(), "x.lengths": array(0, 0)})


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (
            "id.values",
            array(4, 5),
            r"id\.lengths: .* sum up to 3, but id\.values has 2",
        ),
        ("id.lengths", array(1, 0, 3), r"id\.lengths: .* sum up to 4"),
        ("id.lengths", array(4, 0, -1), r"id\.lengths\[2\]: length -1"),
        ("id.lengths", array(2**62, 2**62, 2**62, 2**62, 3), r"id\.lengths: .* sum"),
        (
            "id.lengths",
            array(1, 0, 2, dtype="float32"),
            r"id\.lengths: .* float32\[3\]",
        ),
        ("id.lengths", array(1, 0, 2).reshape(3, 1), r"expected integers .*\[3, 1\]"),
        ("id.weights", array(1, dtype="float32"), r"id\.weights: 1 entries"),
        ("s__c.values", array(1), r"s__c\.key_lengths: .* s__c\.values has 1"),
        ("s__c.key_lengths", array(4), r"s__c\.lengths: .* s__c\.key_lengths has 1"),
        ("id.values", np.array(3), "no dimension"),
    ],
)
def test_what_is_wrong_is_named(name: str, wrong: np.ndarray, message: str) -> None:
    with pytest.raises(BadTensor, match=message):
        check_ragged({**RIGHT, name: wrong})


def rows_of(tensors: dict[str, torch.Tensor]) -> int:
    rows, kind = kind_of(tensors)
    assert (kind is None) == (rows == 0)
    return rows


def test_rows_are_those_that_all_agree_on() -> None:
    right = {name: torch.from_numpy(array) for name, array in RIGHT.items()}
    del right["other"]
    assert rows_of(right) == 3
    assert rows_of({**right, "batch_size": torch.tensor(3)}) == 0
    assert rows_of({**right, "other": torch.ones(2)}) == 0
    assert rows_of({**right, "f": torch.ones(9, 2), "f__lengths": torch.ones(3)}) == 3
    assert rows_of({"x": torch.ones(0, 2)}) == 0
    assert rows_of({}) == 0


def test_requests_of_one_kind_differ_in_rows_only() -> None:
    right = {name: torch.from_numpy(array) for name, array in RIGHT.items()}
    del right["other"]
    turned = dict(reversed(right.items()))
    turned["price.values"] = torch.zeros(3, 1)
    _, kind = kind_of(right)
    assert kind_of(turned) == (3, kind)
    for other in (torch.ones(3, 2), torch.ones(3), torch.ones(3, 1).double()):
        assert kind_of({**right, "price.values": other}) not in ((3, kind), (0, None))


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (np.array(5), "batch_size: 5, but no tensor has so many rows"),
        (np.array([10**12]), "batch_size: 1000000000000, but no"),
        (np.array(-1), "batch_size: -1, but no"),
        (np.array([2, 2]), r"batch_size: expected one integer, got int64\[2\]"),
        (np.array(2.0), "batch_size: expected one integer, got float64"),
    ],
)
def test_a_number_of_items_that_cannot_be(size: np.ndarray, told: str) -> None:
    rows = {"price.values": np.ones((4, 1), np.float32)}
    with pytest.raises(BadTensor, match=told):
        check_batch_size({**rows, "batch_size": size})
    for good in (np.array(4), np.array([2]), np.array(4, np.int32)):
        check_batch_size({**rows, "batch_size": good})
    check_batch_size(rows)
    check_batch_size({"batch_size": np.array(1)})
