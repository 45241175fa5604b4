"""The model's calling contract, on tensors made by hand."""

import pytest
import torch

from procserver.demo.features import fg_document
from procserver.demo.network import Ranker, bucket_count, script, table_sizes


def batch(rows: int, steps: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tensors of the contract; ``steps`` clicks per row."""
    torch.manual_seed(seed)
    data = {}
    for name, size in table_sizes(fg_document()).items():
        lengths = torch.ones(rows, dtype=torch.int32)
        if name.startswith("click_seq__"):
            lengths = torch.tensor(steps, dtype=torch.int32)
        data[f"{name}.lengths"] = lengths
        data[f"{name}.values"] = torch.randint(0, size, (int(lengths.sum()),))
    data["price.values"] = torch.rand(rows, 1)
    data["rating.values"] = torch.rand(rows, 1)
    data["stats.values"] = torch.rand(rows, 3)
    data["click_seq__price.lengths"] = torch.tensor(steps, dtype=torch.int32)
    data["click_seq__price.values"] = torch.rand(sum(steps), 1)
    return data


def row_of(data: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One row of a batch, cut out by counting."""
    cut = {}
    for key, tensor in data.items():
        lengths = data.get(key.replace(".values", ".lengths"))
        if key.endswith(".values") and lengths is not None:
            start = int(lengths[:row].sum())
            cut[key] = tensor[start : start + int(lengths[row])]
        else:
            cut[key] = tensor[row : row + 1]
    return cut


@pytest.fixture(scope="module")
def model() -> torch.jit.ScriptModule:
    torch.manual_seed(5)
    return script(Ranker(fg_document()))


def test_signature_is_that_of_real_exports(model):
    assert (
        str(model.forward.schema).split("self, ")[1]
        == "Dict(str, Tensor) data, Device device=cpu) -> Dict(str, Tensor)"
    )


def test_scores_of_a_row_do_not_depend_on_its_neighbours(model):
    data = batch(5, [3, 1, 20, 7, 1])
    with torch.inference_mode():
        together = model(data, torch.device("cpu"))
        for row in range(5):
            alone = model(row_of(data, row))
            for name, scores in together.items():
                assert scores.shape == (5,)
                torch.testing.assert_close(alone[name][0], scores[row])


def test_probabilities_belong_to_the_logits(model):
    with torch.inference_mode():
        scores = model(batch(4, [1, 2, 3, 4]))
    for task in ("ctr", "cvr"):
        expected = torch.sigmoid(scores[f"logits_{task}"])
        torch.testing.assert_close(scores[f"probs_{task}"], expected)


def test_every_tensor_matters(model):
    data = batch(4, [3, 4, 2, 5])
    with torch.inference_mode():
        before = model(data)["logits_ctr"]
        for key in data:
            if key.endswith(".values"):
                changed = dict(data)
                changed[key] = batch(4, [3, 4, 2, 5], seed=1)[key]
                assert not torch.equal(model(changed)["logits_ctr"], before), key


def test_the_order_of_clicks_does_not_matter_but_the_clicks_do(model):
    data = batch(1, [6])
    turned = dict(data)
    for key in data:
        if key.startswith("click_seq__") and key.endswith(".values"):
            turned[key] = data[key].flip(0)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(turned)["logits_ctr"], model(data)["logits_ctr"]
        )


def test_rows_without_ids_and_unequal_sequences_are_scored(model):
    data = batch(3, [4, 1, 2])
    data["tags.lengths"] = torch.zeros(3, dtype=torch.int32)
    data["tags.values"] = torch.zeros(0, dtype=torch.int64)
    # A client that sent the clicks but not when they were: one default element.
    data["click_seq__hours_ago.lengths"] = torch.ones(3, dtype=torch.int32)
    data["click_seq__hours_ago.values"] = torch.zeros(3, dtype=torch.int64)
    with torch.inference_mode():
        scores = model(data)
    assert all(torch.isfinite(score).all() for score in scores.values())


@pytest.mark.parametrize(
    ("feature", "size"),
    [
        ({"hash_bucket_size": 10}, 10),
        ({"num_buckets": 24}, 24),
        ({"vocab_list": ["a", "b"]}, 2),
        ({"boundaries": [1, 2, 3]}, 4),
        ({}, 0),
    ],
)
def test_bucket_count(feature, size):
    assert bucket_count(feature) == size
