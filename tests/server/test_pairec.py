"""What the PAI-REC engine relies on, read as the engine reads it.

Its response functions index into answers without looking (spec/protocol.md sections
0, 3 and 7): where they find too little, the engine ends. The readers here do the same
and raise ``IndexError`` or ``KeyError`` where the engine panics.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from live import LiveServer
from test_ranking import build

from procserver.wire.pb import torch_predict_pb2 as pb
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

AUTH = {"Authorization": tiny.TOKEN}
ITEMS = ["item_0001", "nobody", "item_0017", "item_0003", "item_0001"]
EMPTY = -1


class Heads(tiny.Ranker):
    """Every shape and dtype of output that a ranking model may have."""

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        price = data["price.values"][:, 0]
        return {
            "score": price * 2,
            "column": price.unsqueeze(1),
            "double": price.double() / 3,
            "half": price.half(),
            "classes": torch.stack([price, price + 1, price + 2], 1),
            "double_classes": torch.stack([price, -price], 1).double(),
            "rank": price.long(),
            "small": price.to(torch.uint8),
            "chosen": price > 1,
            "temperature": price.new_full((1,), 0.5),
            "bias": torch.tensor(0.25),
            "user_emb": data["user_id.values"].new_ones((1, 8)).float(),
            "gates": torch.ones(7),
            "counts": torch.ones(2, dtype=torch.int64),
        }


def wanted(items: list[str]) -> dict[str, np.ndarray]:
    """The outputs of ``Heads``, items that do not exist included."""
    missing = [item == "nobody" for item in items]
    prices = [0 if i == "nobody" else tiny.item(int(i[-4:]))["price"] for i in items]
    price = np.array(prices, np.float32)
    # -1 is none of their numbers, so these are as the model gave them.
    unsigned = {"small": price.astype(np.uint8), "chosen": (price > 1).astype(np.int8)}
    count = len(items)
    outputs = {
        "score": price * 2,
        "column": price[:, None].copy(),
        "double": price.astype(np.float64) / 3,
        "half": price.astype(np.float16).astype(np.float32),
        "classes": np.stack([price, price + 1, price + 2], 1),
        "double_classes": np.stack([price, -price], 1).astype(np.float64),
        "rank": price.astype(np.int64),
        "temperature": np.full(count, 0.5, np.float32),
        "bias": np.full(count, 0.25, np.float32),
        "user_emb": np.ones((count, 8), np.float32),
    }
    for array in outputs.values():
        array[missing] = EMPTY
    return outputs | unsigned | {"counts": np.ones(2, np.int64)}


# ------------------------------------------------- the engine's response functions


def values_of(array: pb.ArrayProto) -> list[float] | None:
    if array.dtype == pb.DT_FLOAT:
        return list(array.float_val)
    if array.dtype == pb.DT_DOUBLE:
        return list(array.double_val)
    return None


def multiple_values(response: PBResponse, items: list[str]) -> list[dict[str, float]]:
    """``torchrecMutValResponseFunc``: the i-th value of every output."""
    found: list[dict[str, float]] = []
    for index in range(len(items)):
        scores = {}
        for name, array in response.map_outputs.items():
            values = values_of(array)
            if values is not None:
                scores[name] = values[index]
        found.append(scores)
    return found


def classifications(
    response: PBResponse, items: list[str], names: list[str]
) -> list[dict[str, list[float]]]:
    """``torchrecMutClassificationResponseFunc``: of 2-D outputs the i-th row."""
    found = []
    for index in range(len(items)):
        scores = {}
        for name in names:
            array = response.map_outputs[name]
            dims = list(array.array_shape.dim)
            if len(dims) == 1:
                scores[name] = [array.float_val[index]]
            elif len(dims) == 2:
                width = dims[1]
                if (index + 1) * width > len(array.float_val):
                    raise IndexError(name)
                scores[name] = list(
                    array.float_val[index * width : (index + 1) * width]
                )
        found.append(scores)
    return found


@dataclass
class Debugged:
    """``torchrecMutValResponseFuncDebug``: scores, and texts by item id."""

    raw: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)


def debug_texts(response: PBResponse, items: list[str]) -> Debugged:
    multiple_values(response, items)
    return Debugged(
        [response.raw_features.get(item, "") for item in items],
        [response.generate_features.get(item, "") for item in items],
    )


# ------------------------------------------------------------------------ services


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("pairec")
    config = tiny.write(folder, "heads")
    module = torch.jit.script(Heads().eval())
    module.save(str(folder / "export" / "scripted_model.pt"))
    server = LiveServer(config, folder / "server.log", workers=1).start()
    yield server
    server.stop()


def ask(server: LiveServer, request: PBRequest) -> PBResponse:
    answer = server.request(
        "POST", f"/api/predict/{server.name}", request.SerializeToString(), AUTH
    )
    assert answer.status == 200, answer.body
    return PBResponse.FromString(answer.body)


def arrays(response: PBResponse) -> dict[str, np.ndarray]:
    """Outputs in their shape, from the one field that has values."""
    fields = {
        pb.DT_FLOAT: ("float_val", np.float32),
        pb.DT_DOUBLE: ("double_val", np.float64),
        pb.DT_INT64: ("int64_val", np.int64),
        pb.DT_INT8: ("int_val", np.int8),
        pb.DT_UINT8: ("int_val", np.uint8),
    }
    found = {}
    for name, array in response.map_outputs.items():
        value_field, dtype = fields[array.dtype]
        filled = [f.name for f, _ in array.ListFields() if f.name.endswith("_val")]
        values = getattr(array, value_field)
        assert filled == ([value_field] if len(values) else [])
        found[name] = np.array(values, dtype).reshape(array.array_shape.dim)
    return found


def check(response: PBResponse, items: list[str]) -> None:
    expected = wanted(items)
    found = arrays(response)
    assert found.keys() == expected.keys() | ({"gates"} if len(items) == 7 else set())
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert np.array_equal(found[name], array), name


# ----------------------------------------------------------------------- invariants


def test_every_float_output_has_a_row_for_each_item_in_their_order(
    heads: LiveServer,
) -> None:
    check(ask(heads, build(ITEMS)), ITEMS)
    check(ask(heads, build(ITEMS[::-1])), ITEMS[::-1])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 100, 300])
def test_any_number_of_items_is_read_without_a_panic(
    heads: LiveServer, count: int
) -> None:
    """Also as many as an output has classes, columns or gates."""
    items = [f"item_{(7 * i) % tiny.ITEMS:04d}" for i in range(count)]
    response = ask(heads, build(items))
    check(response, items)
    expected = wanted(items)
    read = multiple_values(response, items)
    for index in range(count):
        for name in ("score", "column", "double", "half", "temperature", "bias"):
            assert read[index][name] == expected[name].ravel()[index], name
        assert not {"rank", "small", "chosen", "counts"} & read[index].keys()


def test_scalar_heads_have_one_dimension(heads: LiveServer) -> None:
    response = ask(heads, build(ITEMS))
    for name in ("score", "double", "half", "temperature", "bias", "rank"):
        assert list(response.map_outputs[name].array_shape.dim) == [len(ITEMS)]


def test_classes_are_read_by_rows(heads: LiveServer) -> None:
    names = ["score", "column", "classes", "user_emb"]
    read = classifications(ask(heads, build(ITEMS)), ITEMS, names)
    expected = wanted(ITEMS)
    for index, scores in enumerate(read):
        for name in names:
            assert scores[name] == np.atleast_1d(expected[name][index]).tolist()


def test_missing_items_keep_their_row_in_every_output(heads: LiveServer) -> None:
    for items in (["nobody"], ["nobody"] * 3, ["item_0001", "nobody", "item_0002"]):
        check(ask(heads, build(items)), items)


def test_repeated_items_have_a_row_each(heads: LiveServer) -> None:
    items = ["item_0007", "item_0007", "nobody", "nobody", "item_0007"]
    check(ask(heads, build(items)), items)


def test_no_items_are_no_rows(heads: LiveServer) -> None:
    response = ask(heads, build([]))
    assert multiple_values(response, []) == []
    for name in ("score", "double", "classes"):
        array = response.map_outputs[name]
        assert array.array_shape.dim[0] == 0
        assert values_of(array) == []


def test_ids_are_echoed(heads: LiveServer) -> None:
    assert list(ask(heads, build(ITEMS)).item_ids) == ITEMS


def test_an_output_of_no_item_is_left_out_and_named_in_the_log(
    heads: LiveServer,
) -> None:
    assert "gates" not in ask(heads, build(ITEMS)).map_outputs
    assert heads.text().count("output 'gates' has shape [7] for") == 1


@pytest.mark.parametrize("level", [1, 2, 3])
def test_callbacks_are_read_without_a_panic(heads: LiveServer, level: int) -> None:
    request = build(ITEMS)
    request.debug_level = level
    response = ask(heads, request)
    if level == 2:
        check(response, ITEMS)
    else:
        # The engine loops over what is there, whatever its length.
        assert not response.map_outputs
        response.map_outputs.clear()
    read = debug_texts(response, ITEMS)
    assert all(read.made)
    assert all(read.raw) == (level != 3)


def test_debug_requests_have_the_whole_answer(heads: LiveServer) -> None:
    request = build(ITEMS)
    request.debug_level = 100
    request.meta_data["request_id"] = "debugged"
    check(ask(heads, request), ITEMS)


def test_a_recall_debugger_takes_any_entry(
    tmp_path: Path,
) -> None:
    """A user tower is asked without items: one row, one entry under some key."""
    config = write_user_tower(tmp_path)
    server = LiveServer(config, tmp_path / "server.log", workers=1).start()
    request = PBRequest()
    request.user_features["user_id"].string_feature = "u1"
    response = ask(server, request)
    (array,) = response.map_outputs.values()
    assert list(array.array_shape.dim) == [1, 4]
    assert len(array.float_val) == 4
    assert not response.item_ids
    request.debug_level = 1
    response = ask(server, request)
    assert not response.map_outputs
    (raw,) = response.raw_features.values()
    (made,) = response.generate_features.values()
    assert raw == "user_id:u1"
    assert made.startswith("user_id:")
    # With ids, as some recalls send one that stands for nothing.
    request.item_ids.append("mock")
    assert dict(ask(server, request).raw_features) == {"mock": "user_id:u1"}
    request.debug_level = 0
    (array,) = ask(server, request).map_outputs.values()
    assert list(array.array_shape.dim) == [1, 4]
    server.stop()


class UserTower(torch.nn.Module):
    """One embedding for each row of users."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(10, 4))

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        return {"user_tower_emb": self.table[data["user_id.values"]]}


def write_user_tower(folder: Path) -> Path:
    export = folder / "export"
    export.mkdir()
    feature = {
        "feature_type": "id_feature",
        "feature_name": "user_id",
        "expression": "user:user_id",
        "default_value": "0",
        "hash_bucket_size": 10,
    }
    (export / "fg.json").write_text(json.dumps({"features": [feature]}))
    (export / "model_acc.json").write_text('{"SPARSE_INT64": "1"}')
    torch.jit.script(UserTower().eval()).save(str(export / "scripted_model.pt"))
    config = folder / "service.json"
    config.write_text(
        json.dumps(
            {
                "metadata": {"name": "tower"},
                "processor": "easyrec-torch-1.12",
                "token": tiny.TOKEN,
                "model_path": "export",
                "model_config": {"fg_mode": "normal"},
                "procserver": {"state_dir": "state", "drain_seconds": 0},
            }
        )
    )
    return config
