"""Levels, keys and shapes without a server; the cost of level 0."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cython_ext.column import Column
from procserver.debug import LEVELS, PLAIN, Inspector, Level, level_of
from procserver.errors import BadFeature, BadTensor, DebugRefused
from procserver.fg import FeatureGenerator
from procserver.model.loading import load
from procserver.model.package import open_package
from procserver.model.runner import ModelRunner
from procserver.pipeline import ranking as pipeline
from procserver.wire import torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

sys.path.insert(0, str(Path(__file__).parent / "server"))

import tiny


def feature(name: str, *sides: str, **more: Any) -> dict[str, Any]:
    return {
        "feature_type": "raw_feature",
        "feature_name": name,
        "expression": f"{sides[0]}:{name}",
        "default_value": "0",
        **more,
    }


FG = {
    "features": [
        feature("age", "user"),
        feature("price", "item"),
        feature("hour", "context"),
        {
            "sequence_name": "clicks",
            "sequence_length": 3,
            "sequence_delim": ";",
            "sequence_pk": "user:clicked",
            "features": [feature("price", "item")],
        },
    ],
    "reserves": ["label"],
}


def request(**columns: list[str]) -> torchrec.TorchRecRequest:
    message = PBRequest()
    for name in columns.get("user", []):
        message.user_features[name].int_feature = 1
    for side, target in (
        ("item", message.item_features),
        ("context", message.context_features),
    ):
        for name in columns.get(side, []):
            target[name].features.add().int_feature = 1
    return torchrec.decode(message.SerializeToString())


def test_only_levels_with_a_meaning_are_refused() -> None:
    for number in (0, -1, 4, 101, 1000):
        assert level_of(number, allowed=False) is PLAIN
        assert level_of(number, allowed=True) is PLAIN
    for number, level in LEVELS.items():
        assert level_of(number, allowed=True) is level
        with pytest.raises(DebugRefused, match=f"level {number} .*allow_debug"):
            level_of(number, allowed=False)
    assert Level() == PLAIN


def test_known_keys() -> None:
    inspector = Inspector(FeatureGenerator(FG))
    inspector.check_keys(
        request(
            user=["age", "clicked", "clicks__price", "label"],
            item=["price"],
            context=["hour"],
        )
    )
    for side, name in (("user", "price"), ("item", "age"), ("context", "clicked")):
        with pytest.raises(BadFeature, match=f"{side}_features: '{name}'$"):
            inspector.check_keys(request(**{side: [name]}))
    Inspector(FeatureGenerator(FG), strict=False).check_keys(request(user=["x"]))


def test_shapes_of_generated_tensors() -> None:
    fg = FeatureGenerator(FG)
    inspector = Inspector(fg)
    for tile in (False, True):
        good = fg.generate({}, {}, {}, 3, tile=tile)
        inspector.check_tensors(good, 3, tile=tile)
        with pytest.raises(BadTensor, match=r"\.values: 3 rows for 4 items"):
            inspector.check_tensors(good, 4, tile=tile)
    good["clicks__price.values"] = np.zeros((9, 1), np.float32)
    with pytest.raises(BadTensor, match=r"clicks__price\.lengths: .* sum up to"):
        inspector.check_tensors(good, 3, tile=True)
    one = fg.generate({}, {}, {}, 3, tile=True)
    with pytest.raises(BadTensor, match=r"age\.values: 1 rows for 3 items"):
        inspector.check_tensors(one, 3, tile=False)


def test_a_name_on_two_sides_is_shown_twice() -> None:
    both = [feature("age", "user"), feature("item_age", "item")]
    both[1]["expression"] = "item:age"
    inspector = Inspector(FeatureGenerator({"features": both}))
    gathered = SimpleNamespace(
        user={"age": Column.from_arrow(pa.array([7]))},
        item={"age": Column.from_arrow(pa.array([1, 2]))},
        context={},
        rows=2,
    )
    ids = Column.from_texts(["a", "b"])
    assert inspector.raw(ids, gathered) == {
        "a": "age:7 | item.age:1",
        "b": "age:7 | item.age:2",
    }
    assert inspector.raw(ids, gathered, ("item",)) == {"a": "age:1", "b": "age:2"}


@pytest.mark.parametrize("tile", [False, True])
def test_features_of_the_user_alone_stand_for_every_item(tile: bool) -> None:
    fg = FeatureGenerator({"features": [feature("age", "user")]})
    gathered = SimpleNamespace(rows=2)
    tensors = fg.generate(
        {"age": Column.from_arrow(pa.array([7]))}, {}, {}, 2, tile=tile
    )
    ids, inspector = Column.from_texts(["a", "b"]), Inspector(fg)
    for form, text in (("pairs", "age:7.0"), ("table", "7.0")):
        made = inspector.made(ids, gathered, tensors, form)
        assert made == {"a": text, "b": text}
    assert inspector.made(ids, gathered, tensors, "items") == {}


class Untouchable:
    """Stands for the inspector; any use fails."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is used at level 0")


def test_level_0_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path / "service", "unit")
    export = tmp_path / "service" / "export"
    fg = FeatureGenerator(export / "fg.json")
    served = pipeline.RankingPipeline(
        fg, ModelRunner(load(open_package(export))), None, allow_debug=True
    )
    message = PBRequest(item_ids=["a", "b"])
    message.user_features["age"].int_feature = 3
    plain = served.predict(message.SerializeToString())
    response = PBResponse.FromString(plain.body)
    assert len(response.map_outputs) == 2
    monkeypatch.setattr(served, "_inspector", Untouchable())
    for name in ("log_tensors", "log_times"):
        monkeypatch.setattr(pipeline, name, Untouchable())
    for level in (0, 4):
        message.debug_level = level
        assert served.predict(message.SerializeToString()).body == plain.body
    message.debug_level = 1
    with pytest.raises(AssertionError, match="check_keys is used"):
        served.predict(message.SerializeToString())
