"""Distributed-embedding exports through a real gunicorn, with and without FG."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from live import LiveServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

import sparse_export as made

from procserver.fg import FeatureGenerator
from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

AUTH = {"Authorization": tiny.TOKEN}
CLICKS = [3, 4, 17, 29]
ITEMS = 60
DTYPES = {
    "float32": (1, "float_val"),
    "int32": (3, "int_val"),
    "int64": (9, "int64_val"),
}


def item(index: int) -> dict[str, Any]:
    """Some without category, several with tags, some of unknown shops."""
    return {
        "item_id": f"item_{index}",
        "category": None if index % 7 == 0 else f"c{index % 11}",
        "tags": "\x1d".join(f"t{index % (k + 5)}" for k in range(index % 4)),
        "shop": made.SHOPS[index % 9] if index % 3 else index,
        "price": index / 7,
    }


def write(folder: Path, name: str, form: str, mode: str) -> Path:
    made.write_export(folder / "export", form)
    pq.write_table(
        pa.Table.from_pylist([item(i) for i in range(ITEMS)]), folder / "i.pq"
    )
    config = tiny.write_bypass(folder, name, model_path="export")
    content = {"fg_mode": mode}
    if mode == "normal":
        content |= {
            "remote_type": "parquet",
            "url": "i.pq",
            "tables": [{"key": "item_id"}],
        }
    text = config.read_text().replace('{"fg_mode": "bypass"}', tiny.json.dumps(content))
    config.write_text(text)
    return config


@pytest.fixture(scope="module", params=["float32", "int8"])
def normal(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveServer, str]]:
    folder = tmp_path_factory.mktemp("sparse")
    config = write(folder, "sparse", request.param, "normal")
    server = LiveServer(config, folder / "server.log", workers=2).start()
    yield server, request.param
    server.stop()


@pytest.fixture(scope="module")
def bypass(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("sparse_bypass")
    config = write(folder, "sparsebare", "float16", "bypass")
    server = LiveServer(config, folder / "server.log", workers=1).start()
    yield server
    server.stop()


def generated(export: Path, items: list[int], clicks: list[int]) -> dict[str, Any]:
    """Tensors of the offline generator, user features with one row."""
    rows, clicked = [item(i) for i in items], [item(i) for i in clicks]
    columns = {
        "user_id": pa.array(["u7"]),
        "category": pa.array([r["category"] for r in rows], pa.string()),
        "tags": pa.array([r["tags"] for r in rows]),
        "shop": pa.array([r["shop"] for r in rows], pa.int64()),
        "price": pa.array([r["price"] for r in rows]),
        "clicks__category": pa.array([[r["category"] for r in clicked]]),
        "clicks__tags": pa.array([[r["tags"] for r in clicked]]),
        "clicks__price": pa.array([[r["price"] for r in clicked]]),
    }
    generator = FeatureGenerator(export / "fg.json")
    tensors = generator.transform(columns)
    one_row = generator.transform({name: c.slice(0, 1) for name, c in columns.items()})
    for name, array in one_row.items():
        if name.startswith(("user_id.", "clicks__")):
            tensors[name] = array
    return {**tensors, "batch_size": np.array(len(items), np.int64)}


def test_every_worker_maps_the_same_tables(
    normal: tuple[LiveServer, str], bypass: LiveServer
) -> None:
    for server in (normal[0], bypass):
        assert server.text().count("attached to shared weights") >= server.workers


@pytest.mark.parametrize("count", [1, 2, 50])
def test_scores_from_features(normal: tuple[LiveServer, str], count: int) -> None:
    server, form = normal
    items = [(7 * i + 1) % ITEMS for i in range(count)]
    request = PBRequest()
    request.user_features["user_id"].string_feature = "u7"
    request.user_features["clicks"].string_list.features.extend(
        f"item_{i}" for i in CLICKS
    )
    request.item_ids.extend(f"item_{i}" for i in items)
    answer = server.request(
        "POST", "/api/predict/sparse", request.SerializeToString(), AUTH
    )
    assert answer.status == 200, answer.body
    outputs = PBResponse.FromString(answer.body).map_outputs
    tensors = generated(server.config.parent / "export", items, CLICKS)
    expected = made.full_forward(tensors, form)
    assert sorted(outputs) == ["probs_ctr", "probs_cvr"]
    for name, array in expected.items():
        assert list(outputs[name].array_shape.dim) == [count]
        ours = np.array(outputs[name].float_val, np.float32)
        assert np.allclose(ours, array, rtol=0, atol=1e-6)
    # Scores that do not differ would show nothing.
    assert count == 1 or len(set(expected["probs_ctr"].tolist())) > 1


def message(tensors: dict[str, np.ndarray]) -> PredictRequest:
    request = PredictRequest()
    for name, array in tensors.items():
        dtype, field = DTYPES[array.dtype.name]
        proto = request.map_inputs[name]
        proto.dtype = dtype
        proto.array_shape.dim.extend(array.shape)
        getattr(proto, field).extend(array.ravel().tolist())
    return request


def test_scores_from_tensors(bypass: LiveServer) -> None:
    for items in (1, 30):
        tensors = made.request_tensors(items, seed=items)
        body = message(tensors).SerializeToString()
        answer = bypass.request("POST", "/api/predict/sparsebare", body, AUTH)
        assert answer.status == 200, answer.body
        outputs = PredictResponse.FromString(answer.body).map_outputs
        for name, array in made.full_forward(tensors, "float16").items():
            ours = np.array(outputs[name].float_val, np.float32)
            assert np.allclose(ours, array, rtol=0, atol=1e-6)


def test_refusals_name_feature_id_and_bound(bypass: LiveServer) -> None:
    def refused(tensors: dict[str, np.ndarray]) -> bytes:
        body = message(tensors).SerializeToString()
        answer = bypass.request("POST", "/api/predict/sparsebare", body, AUTH)
        assert answer.status == 400
        return answer.body

    tensors = made.request_tensors(5)
    tensors["user_id.values"] = np.array([3, 50])
    said = refused(tensors)
    assert b"user_id.values[1]: id 50 " in said
    assert b"of 50 rows" in said
    tensors = made.request_tensors(5)
    tensors["tags.lengths"] = tensors["tags.lengths"] + 1
    assert b"tags.lengths" in refused(tensors)
    tensors = made.request_tensors(5)
    del tensors["shop.values"]
    assert b"'shop.values'" in refused(tensors)
    # The service goes on.
    test_scores_from_tensors(bypass)
