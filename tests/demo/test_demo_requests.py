"""The sample requests, scored by hand: joined in plain Python, one row at a time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensors import TensorMaker

from procserver.demo import bypass
from procserver.demo.requests import EMPTY_SEQUENCE, FILES, UNKNOWN_ITEMS
from procserver.fg import FeatureGenerator
from procserver.wire.pb import torch_predict_pb2 as torch_pb
from procserver.wire.pb import torchrec_predict_pb2 as torchrec

RANKING = [*FILES, UNKNOWN_ITEMS, EMPTY_SEQUENCE]
SEQUENCE = ("item_id", "category", "brand", "price")


def read(demo: Path, name: str) -> Any:
    message = torchrec.PBRequest()
    message.ParseFromString((demo / "requests" / name).read_bytes())
    return message


class ByHand:
    """Scores one item of a request with dictionaries, FG and the scripted model."""

    def __init__(self, demo: Path) -> None:
        self.table = pq.read_table(demo / "items.parquet")
        self.items = {row["item_id"]: row for row in self.table.to_pylist()}
        self.fg = FeatureGenerator(demo / "export" / "fg.json")
        self.model = torch.jit.load(str(demo / "export" / "scripted_model.pt"))

    def columns(self, message: Any, at: int) -> dict[str, pa.Array]:
        user = message.user_features
        cells: dict[str, tuple[Any, pa.DataType]] = {
            "user_id": (user["user_id"].string_feature, pa.string()),
            "gender": (user["gender"].string_feature, pa.string()),
            "age": (user["age"].int_feature, pa.int32()),
            "city": (user["city"].string_feature, pa.string()),
            "spend_level": (user["spend_level"].int_feature, pa.int32()),
            "search_words": (user["search_words"].string_feature, pa.string()),
            "click_seq__hours_ago": (
                list(user["click_seq__hours_ago"].float_list.features),
                pa.list_(pa.float32()),
            ),
        }
        clicks = list(user["click_seq"].string_list.features)
        schema = self.table.schema
        for name in SEQUENCE:
            values = [self.items[click][name] for click in clicks]
            cells[f"click_seq__{name}"] = (values, pa.list_(schema.field(name).type))
        item = self.items.get(message.item_ids[at], {})
        for field in schema:
            cells[field.name] = (item.get(field.name), field.type)
        context = message.context_features
        hour, sources = context["hour"].features, context["recall_source"].features
        cells["hour"] = (hour[at if len(hour) > 1 else 0].int_feature, pa.int32())
        cells["recall_source"] = (sources[at].string_feature, pa.string())
        return {name: pa.array([cell], type_) for name, (cell, type_) in cells.items()}

    def scores(self, message: Any, at: int) -> dict[str, float]:
        tensors = self.fg.transform(self.columns(message, at))
        with torch.inference_mode():
            outputs = self.model({n: torch.from_numpy(a) for n, a in tensors.items()})
        return {name: float(scores[0]) for name, scores in outputs.items()}


@pytest.fixture(scope="module")
def by_hand(demo: Path) -> ByHand:
    return ByHand(demo)


@pytest.fixture(scope="module")
def maker(demo: Path) -> TensorMaker:
    return TensorMaker(demo / "service.json")


@pytest.mark.parametrize("name", RANKING)
def test_every_sample_is_scored_with_finite_and_differing_numbers(demo, maker, name):
    model = torch.jit.load(str(demo / "export" / "scripted_model.pt"))
    message = read(demo, name)
    tensors = maker.tensors(message.SerializeToString())
    with torch.inference_mode():
        outputs = model({n: torch.from_numpy(a) for n, a in tensors.items()})
    for name_, scores in outputs.items():
        assert scores.shape == (len(message.item_ids),)
        assert torch.isfinite(scores).all(), name_
    if len(message.item_ids) > 1:
        assert len(outputs["probs_ctr"].unique()) > 1
    for task in ("ctr", "cvr"):
        assert ((outputs[f"probs_{task}"] > 0) & (outputs[f"probs_{task}"] < 1)).all()


@pytest.mark.parametrize("name", RANKING)
def test_a_request_scores_as_its_items_by_hand(demo, maker, by_hand, name):
    message = read(demo, name)
    tensors = maker.tensors(message.SerializeToString())
    with torch.inference_mode():
        together = by_hand.model({n: torch.from_numpy(a) for n, a in tensors.items()})
    step = max(1, len(message.item_ids) // 8)
    for at in range(0, len(message.item_ids), step):
        alone = by_hand.scores(message, at)
        for output, scores in together.items():
            assert float(scores[at]) == pytest.approx(alone[output], abs=1e-5)


def test_samples_have_the_promised_sizes(demo):
    sizes = {name: len(read(demo, name).item_ids) for name in RANKING}
    assert sizes == {**FILES, UNKNOWN_ITEMS: 5, EMPTY_SEQUENCE: 20}
    for name in FILES:
        ids = list(read(demo, name).item_ids)
        assert len(set(ids)) == len(ids)


def test_unknown_items_are_unknown(demo, by_hand):
    ids = list(read(demo, UNKNOWN_ITEMS).item_ids)
    assert [name in by_hand.items for name in ids] == [True, False, True, False, True]


def test_the_newcomer_has_an_empty_list_of_clicks(demo):
    user = read(demo, EMPTY_SEQUENCE).user_features
    assert user["click_seq"].WhichOneof("value") == "string_list"
    assert list(user["click_seq"].string_list.features) == []


def test_clicks_change_the_order_of_items(demo, maker, by_hand):
    """Attention: a user who now clicks one category sees it rise."""
    message = read(demo, "rank_100.pb")
    categories = [by_hand.items[name]["category"] for name in message.item_ids]
    wanted = max(set(categories), key=categories.count)
    other = next(c for c in categories if c.split("/")[0] != wanted.split("/")[0])

    def mean_logit(category: str) -> float:
        clicked = [k for k, row in by_hand.items.items() if row["category"] == category]
        del message.user_features["click_seq"].string_list.features[:]
        message.user_features["click_seq"].string_list.features.extend(clicked[:10])
        hours = np.linspace(0.1, 2, 10).tolist()
        del message.user_features["click_seq__hours_ago"].float_list.features[:]
        message.user_features["click_seq__hours_ago"].float_list.features.extend(hours)
        tensors = maker.tensors(message.SerializeToString())
        with torch.inference_mode():
            outputs = by_hand.model(
                {n: torch.from_numpy(a) for n, a in tensors.items()}
            )
        rows = [at for at, category in enumerate(categories) if category == wanted]
        return float(outputs["logits_ctr"][rows].mean())

    assert mean_logit(wanted) > mean_logit(other) + 0.5


def bypass_inputs(demo: Path) -> list[torch.Tensor]:
    message = torch_pb.PredictRequest()
    message.ParseFromString((demo / "requests" / bypass.SAMPLE).read_bytes())
    tensors = []
    for array in message.inputs:
        if array.dtype == torch_pb.DT_FLOAT:
            values = np.array(array.float_val, np.float32)
        else:
            values = np.array(array.int64_val, np.int64)
        tensor = torch.from_numpy(values)
        tensors.append(tensor.view(list(array.array_shape.dim)))
    return tensors


def test_the_twin_takes_the_vendor_pages_shapes(demo):
    inputs = bypass_inputs(demo)
    assert [(tuple(t.shape), t.dtype) for t in inputs] == [
        ((300, 3), torch.int64),
        ((300, 10, 768), torch.float32),
        ((300, 768), torch.float32),
        ((300,), torch.int64),
    ]
    size = (demo / "requests" / bypass.SAMPLE).stat().st_size
    assert 10_000_000 < size < 10_200_000


def test_the_twin_uses_every_input_and_takes_any_id(demo):
    twin = torch.jit.load(str(demo / "bypass" / "scripted_model.pt"))
    inputs = bypass_inputs(demo)
    with torch.inference_mode():
        scores = twin(*inputs)
        assert scores.shape == (300,)
        assert scores.dtype == torch.float32
        assert ((scores > 0) & (scores < 1)).all()
        for at in range(4):
            changed = [t.clone() for t in inputs]
            changed[at][7] += 1
            differs = (twin(*changed) != scores).nonzero().flatten().tolist()
            assert differs == [7]
        inputs[0][0] = torch.tensor([-1, -(2**62), 2**62])
        assert torch.isfinite(twin(*inputs)).all()
        # The constants of the vendor page's sample calls.
        for fill in (0, 1):
            assert torch.isfinite(
                twin(*[torch.full_like(t, fill) for t in inputs])
            ).all()


def test_fg_uses_all_the_forms_that_the_demo_promises(demo):
    fg = json.loads((demo / "export" / "fg.json").read_text())
    types = {f["feature_type"] for f in fg["features"] if "feature_type" in f}
    assert types == {
        "id_feature",
        "raw_feature",
        "combo_feature",
        "sequence_id_feature",
    }
    groups = [f for f in fg["features"] if "sequence_name" in f]
    assert [g["sequence_pk"] for g in groups] == ["user:click_seq"]
