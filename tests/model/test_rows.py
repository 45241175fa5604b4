"""Outputs by items: what is repeated, left out, and overwritten."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from procserver.errors import PredictFailed
from procserver.model.rows import RowRule


def test_outputs_that_fit_are_the_same_objects() -> None:
    outputs = {"a": np.zeros(3, np.float32), "b": np.zeros((3, 2)), "n": np.arange(9)}
    assert RowRule(0).by_item(outputs, 3) is outputs


def test_what_is_given_once_is_repeated() -> None:
    kept = RowRule(0).by_item(
        {
            "zero": np.array(0.5, np.float32),
            "one": np.array([2.0]),
            "row": np.array([[1, 2]], np.float16),
        },
        3,
    )
    assert kept["zero"].tolist() == [0.5] * 3
    assert kept["one"].tolist() == [2.0] * 3
    assert kept["row"].tolist() == [[1, 2]] * 3
    dtypes = [array.dtype for array in kept.values()]
    assert dtypes == [np.float32, np.float64, np.float16]


def test_what_belongs_to_no_item_is_left_out_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rule = RowRule(0)
    outputs = {"a": np.zeros(3), "gates": np.zeros((7, 2)), "ids": np.arange(7)}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert list(rule.by_item(outputs, 3)) == ["a", "ids"]
    (record,) = caplog.records
    assert "'gates' has shape [7, 2] for 3 items" in record.getMessage()
    # One float more than there are items is a wrong value, not a spare one.
    assert list(rule.by_item({"b": np.zeros(4), "a": np.zeros(3)}, 3)) == ["a"]


def test_nothing_left_is_a_failure() -> None:
    with pytest.raises(PredictFailed, match="no output with a row"):
        RowRule(0).by_item({"gates": np.zeros(7)}, 3)


@pytest.mark.parametrize(
    ("dtype", "score", "found"),
    [
        (np.float32, 0.5, 0.5),
        (np.float64, -1, -1),
        (np.int64, -1, -1),
        (np.int8, -128, -128),
        (np.int8, 128, 7),
        (np.uint8, -1, 7),
        (np.int32, 0.5, 7),
        (np.int32, 0, 0),
        (np.bool_, 0, True),
    ],
)
def test_scores_of_items_that_do_not_exist(
    dtype: type, score: float, found: float
) -> None:
    given = np.full((3, 2), 7).astype(dtype)
    other = np.full(2, 7.0)
    outputs = RowRule(float(score)).with_empty_scores(
        {"a": given, "other": other}, np.array([False, True, False])
    )
    assert outputs["a"].tolist() == [given[0].tolist(), [found] * 2, given[2].tolist()]
    assert outputs["a"].dtype == dtype
    # What the model gave is its own.
    assert (given == given[0, 0]).all()
    assert outputs["other"] is other
