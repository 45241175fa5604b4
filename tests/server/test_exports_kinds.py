"""Softmax, multi-task, towers: no item cache, requests bring the items' features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import exported
import numpy as np
import pytest
import torch
from export_features import (
    ITEM_TOWER,
    ITEM_TYPES,
    SHALLOW,
    USER_TOWER,
    index_of,
    item,
    model_tensors,
    user,
)
from export_folders import write_export
from export_networks import ItemTower, MultiTask, UserTower, WideAndDeep
from exported import assert_same, item_ids, post, ranking_request, scores
from live import LiveServer, segments

from procserver.wire.pb.torchrec_predict_pb2 import PBResponse

# Item columns of a sequence, and what a request sends for a null.
NOTHING = {"item_id": "x", "category": "", "tags": [], "price": 0.5, "vector": []}
SHALLOW_USER = {"clicks", "clicks__dwell", "recent_cities", "recent_amounts"}


def write_all(folder: Path) -> dict[str, Path]:
    """Export folders by service, each where such a model lies in real life."""
    torch.manual_seed(31)
    match, mind = folder / "match", folder / "mind"
    version = folder / "tasks" / "export" / "20261101120000"
    return {
        "softmax": write_export(
            folder / "softmax", WideAndDeep(SHALLOW), SHALLOW, QUANT_EMB="INT8"
        ),
        "tasks": write_export(version, MultiTask(SHALLOW), SHALLOW, QUANT_EMB="FP16"),
        "user": write_export(match / "user", UserTower(USER_TOWER), USER_TOWER),
        "item": write_export(match / "item", ItemTower(ITEM_TOWER), ITEM_TOWER),
        "mind": write_export(
            mind / "user", UserTower(USER_TOWER, interests=3), USER_TOWER
        ),
    }


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("kinds")
    exports = write_all(folder)
    places = {
        "softmax": (exports["softmax"], {}),
        # A versions root.
        "tasks": (exports["tasks"].parent, {}),
        "user": (exports["user"].parent, {"model_entry": "user"}),
        "item": (exports["item"].parent, {"model_entry": "item"}),
        "mind": (exports["mind"], {}),
    }
    servers = []
    for name, (place, more) in places.items():
        config = exported.service_json(folder / f"{name}.d", name, place, **more)
        workers = 2 if name == "tasks" else 1
        servers.append(LiveServer(config, folder / f"{name}.log", workers=workers))
    with exported.running(*servers) as running:
        yield SimpleNamespace(exports=exports, servers=running)


@pytest.mark.parametrize("name", ["softmax", "tasks"])
@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("number", [0, 2])
def test_rankers(kinds: SimpleNamespace, name: str, count: int, number: int) -> None:
    fields = {k: v for k, v in user(number).items() if k not in SHALLOW_USER}
    ids = item_ids(count, number)
    answer = post(kinds.servers[name], ranking_request(fields, ids, columns=ITEM_TYPES))
    theirs = exported.expected(kinds.exports[name], SHALLOW, fields, ids)
    assert_same(exported.outputs(answer), theirs)
    assert list(PBResponse.FromString(answer.body).item_ids) == ids
    shapes = {output: values.shape for output, values in theirs.items()}
    if name == "softmax":
        assert shapes == {
            "logits": (count, 2),
            "probs": (count, 2),
            "probs1": (count,),
        }
        assert np.allclose(theirs["probs"].sum(1), 1)
    else:
        assert set(shapes.values()) == {(count,)}
        assert len(shapes) == 5


@pytest.mark.parametrize("name", ["softmax", "tasks", "item"])
def test_no_items_keep_the_shape_of_an_item(kinds: SimpleNamespace, name: str) -> None:
    ours = scores(kinds.servers[name], ranking_request(user(1), []))
    one = {"logits": (0, 2), "probs": (0, 2), "item_tower_emb": (0, 16)}
    assert ours
    for output, values in ours.items():
        assert values.shape == one.get(output, (0,)) or name == "tasks"
        assert values.size == 0


def test_tables_are_kept_in_their_own_types(kinds: SimpleNamespace) -> None:
    for name, dtype in (("softmax", torch.uint8), ("tasks", torch.float16)):
        model = torch.jit.load(str(kinds.exports[name] / "scripted_model.pt"))
        found = [t for n, t in model.named_buffers() if n.endswith(("codes", "weight"))]
        assert len(found) > 10
        assert all(tensor.dtype == dtype for tensor in found)


def test_workers_share_the_weights_and_score_alike(kinds: SimpleNamespace) -> None:
    fields = {k: v for k, v in user(1).items() if k not in SHALLOW_USER}
    for name in ("softmax", "tasks"):
        owned = f".{kinds.servers[name].pid}.weights-"
        assert [segment for segment in segments(name) if owned in segment]
        request = ranking_request(fields, item_ids(7), columns=ITEM_TYPES)
        answers = {post(kinds.servers[name], request).body for _ in range(20)}
        assert len(answers) == 1


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("name", ["user", "mind"])
def test_a_user_tower_has_one_row(
    kinds: SimpleNamespace, name: str, number: int
) -> None:
    """No item ids, no context: the user's features alone."""
    fields = user(number) or {"user_id": ("string", "")}
    rows = [item(index_of(i)) for i in fields.get("clicks", ("", []))[1]]
    # Without a cache the request brings the clicked items; a list has no nulls.
    clicked: dict[str, exported.Raw] = {
        f"clicks__{column}": (
            f"list<{ITEM_TYPES[column]}>",
            [row[column] or fallback for row in rows],
        )
        for column, fallback in NOTHING.items()
    }
    sent = {**fields, **(clicked if number else {})}
    ours = scores(kinds.servers[name], ranking_request(sent, [], context=False))
    columns = {key: (kind, [value]) for key, (kind, value) in sent.items()}
    tensors = model_tensors(USER_TOWER, columns, 1)
    assert_same(ours, exported.forward(kinds.exports[name], tensors))
    (vector,) = ours.values()
    assert vector.shape == ((1, 16) if name == "user" else (1, 3, 16))
    assert np.allclose(np.linalg.norm(vector, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("count", [1, 7, 300])
def test_an_item_tower_with_and_without_ids(kinds: SimpleNamespace, count: int) -> None:
    ids = item_ids(count)
    theirs = exported.expected(kinds.exports["item"], ITEM_TOWER, {}, ids)
    assert theirs["item_tower_emb"].shape == (count, 16)
    for with_ids in (True, False):
        request = ranking_request(
            {"user_id": ("string", "ignored")},
            ids,
            context=False,
            columns=ITEM_TYPES,
            with_ids=with_ids,
        )
        assert_same(scores(kinds.servers["item"], request), theirs)


def test_what_is_served_is_told(kinds: SimpleNamespace) -> None:
    told = {}
    for name, server in kinds.servers.items():
        path = f"/api/predict/{name}"
        answer = server.request("GET", path, None, exported.AUTH)
        assert answer.status == 200
        told[name] = json.loads(answer.body)
    assert told["tasks"]["model_version"] == "20261101120000"
    assert [o["name"] for o in told["item"]["outputs"]] == ["item_tower_emb"]
    assert told["item"]["user_features"] == []
    assert told["user"]["item_features"] == []
    assert sorted(o["name"] for o in told["softmax"]["outputs"]) == [
        "logits",
        "probs",
        "probs1",
    ]
