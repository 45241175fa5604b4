"""Tensors that a model refused, told by their forms."""

from __future__ import annotations

import pytest
import torch

from procserver.model.suspects import Answered, suspects, wrong_batch_size

GOOD = {
    "id.values": torch.tensor([1, 2, 3]),
    "id.lengths": torch.tensor([1, 2], dtype=torch.int32),
    "price.values": torch.ones(2, 1),
    "vector.values": torch.ones(2, 4),
    "seq.values": torch.ones(3, 2),
    "seq.lengths": torch.tensor([1, 2]),
    "w.values": torch.tensor([1, 2]),
    "w.lengths": torch.tensor([1, 1]),
    "w.weights": torch.ones(2),
}


def test_tensors_that_look_alike() -> None:
    assert suspects(GOOD, Answered()) is None
    answered = Answered()
    answered.learn(GOOD)
    assert suspects(GOOD, answered) is None
    other = {**GOOD, "id.lengths": torch.tensor([1, 2])}
    assert suspects(other, answered) is None
    assert suspects({}, answered) is None


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("price.values", torch.ones(2), "expected floats of two dimensions"),
        ("price.values", torch.ones(2, 1).double(), "float64[2, 1], expected float32"),
        ("price.values", torch.ones(3, 1), "most features have 2 rows"),
        ("id.values", torch.ones(3), "float32[3], expected integers of one"),
        ("id.values", torch.ones(3, 1).long(), "int64[3, 1], expected integers"),
        ("id.lengths", torch.ones(2), "expected integers of one dimension"),
        ("w.weights", torch.ones(2, 1), "expected floats of one dimension"),
        ("seq.lengths", torch.tensor([3]), "most features have 2 rows"),
    ],
)
def test_what_the_contract_tells(name: str, tensor: torch.Tensor, told: str) -> None:
    found = suspects({**GOOD, name: tensor}, Answered())
    assert found is not None
    assert found.startswith(f"{name}: ")
    assert told in found
    assert ";" not in found


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("vector.values", torch.ones(2, 3), "expected float32[n, 4]"),
        ("seq.values", torch.ones(3, 4), "expected float32[n, 2]"),
        ("id.values", torch.ones(3), "expected integers[n]"),
        ("price.values", torch.ones(2, 1).double(), "expected float32[n, 1]"),
    ],
)
def test_what_an_answered_request_tells(
    name: str, tensor: torch.Tensor, told: str
) -> None:
    answered = Answered()
    answered.learn(GOOD)
    answered.learn({name: tensor})
    found = suspects({**GOOD, name: tensor}, answered)
    assert found is not None
    assert found.startswith(f"{name}: ")
    assert told in found
    assert ";" not in found


def test_one_row_is_no_outlier_of_a_tiled_export() -> None:
    tiled = {**GOOD, "batch_size": torch.tensor(2), "id.lengths": torch.tensor([3])}
    assert suspects(tiled, Answered()) is None
    more = {**tiled, "w.lengths": torch.tensor([1, 1, 0])}
    found = suspects(more, Answered())
    assert found is not None
    assert found.startswith("w.lengths: ")


@pytest.mark.parametrize("size", [torch.tensor([3]), torch.tensor(3)])
def test_a_batch_size_that_is_not_the_number_of_items(size: torch.Tensor) -> None:
    told = "batch_size: 3, but most features have 2 rows"
    assert wrong_batch_size({**GOOD, "batch_size": size}) == told
    assert wrong_batch_size(GOOD) is None
    assert wrong_batch_size({**GOOD, "batch_size": torch.tensor([2])}) is None
    assert wrong_batch_size({**GOOD, "batch_size": torch.tensor([2, 2])}) is None
    assert wrong_batch_size({"batch_size": size}) is None


def test_many_are_counted() -> None:
    odd = {f"f{i}.values": torch.ones(1) for i in range(9)}
    assert suspects(odd, Answered()) is None  # not the contract's names
    odd["id.lengths"] = torch.tensor([1])
    found = suspects(odd, Answered())
    assert found is not None
    assert found.endswith("; and 5 more")
