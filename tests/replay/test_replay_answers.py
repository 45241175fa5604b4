"""Answers of both protocols, read and compared."""

from __future__ import annotations

import math

import numpy as np
import pytest

from procserver.replay.answers import differences, outputs_of
from procserver.wire import torch, torchrec

INF = math.inf
NAN = math.nan


def scores(*values: float, dtype: str = "float32") -> dict[str, np.ndarray]:
    return {"probs": np.array(values, dtype)}


def greatest(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> float:
    ((name, difference),) = differences(one, two)
    assert name == "probs"
    return difference


def test_answers_of_both_protocols_are_read() -> None:
    outputs = {
        "probs": np.array([0.25, 0.5], np.float32),
        "ids": np.array([[1, 2**60]], np.int64),
        "none": np.zeros((0,), np.float32),
    }
    for answer in (torchrec.encode(outputs, None), torch.encode(outputs)):
        found = outputs_of(answer)
        assert found is not None
        assert set(found) == set(outputs)
        for name, expected in outputs.items():
            assert found[name].shape == expected.shape
            assert np.array_equal(found[name], expected)
    found = outputs_of(torch.encode(list(outputs.values())))
    assert found is not None
    assert list(found) == ["0", "1", "2"]


def test_what_is_no_answer_is_told() -> None:
    assert outputs_of(b"") == {}
    for content in (b"[bad_request] no", b"\xff\xff", b"<html></html>", b"\x08\x01"):
        assert outputs_of(content) is None


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ((1.0, 2.0), (1.0, 2.0), 0.0),
        ((1.0, 2.0), (1.0, 2.5), 0.5),
        ((1.0, NAN), (1.0, NAN), 0.0),
        ((1.0, NAN), (1.0, 2.0), INF),
        ((INF,), (INF,), 0.0),
        ((INF,), (-INF,), INF),
        ((INF,), (1.0,), INF),
        ((NAN, 1.0), (NAN, 1.25), 0.25),
        ((1.0,), (1.0, 1.0), INF),
        ((), (), 0.0),
    ],
)
def test_greatest_difference(
    one: tuple[float, ...], two: tuple[float, ...], expected: float
) -> None:
    assert greatest(scores(*one), scores(*two)) == expected
    assert greatest(scores(*two), scores(*one)) == expected


def test_integers_are_compared_exactly() -> None:
    big = 2**62
    one = {"probs": np.array([-big, big], np.int64)}
    two = {"probs": np.array([big, big + 1], np.int64)}
    assert greatest(one, two) == 2.0**63
    assert greatest({"probs": one["probs"][1:]}, {"probs": two["probs"][1:]}) == 1


def test_missing_outputs_and_other_texts_differ() -> None:
    text = {"item_ids": np.array(["a", "b"], dtype=object)}
    other = {"item_ids": np.array(["a", "c"], dtype=object)}
    assert dict(differences(text, text)) == {"item_ids": 0.0}
    assert dict(differences(text, other)) == {"item_ids": INF}
    assert dict(differences(text, {})) == {"item_ids": INF}
    assert dict(differences({}, text)) == {"item_ids": INF}
