"""Exports behind a real gunicorn: services, requests, and the scores to expect."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from live import Answer, LiveServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "exports"))

import export_features as features
from export_features import Raw

from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse
from procserver.wire.pb.torchrec_predict_pb2 import PBFeature, PBRequest, PBResponse

TOKEN = "ZXhwb3J0cw=="
AUTH = {"Authorization": TOKEN}
EMPTY_SCORE = -7.5
FIELDS = {
    "string": "string_feature",
    "int32": "int_feature",
    "int64": "long_feature",
    "float": "float_feature",
    "double": "double_feature",
    "list<string>": "string_list",
    "list<int64>": "long_list",
    "list<float>": "float_list",
    "list<double>": "double_list",
    "list<list<string>>": "string_lists",
    "list<list<float>>": "float_lists",
    "map<string, float>": "string_float_map",
}
ARROW = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
}
# Wire number of a dtype, and the field that holds its values.
ARRAYS = {
    np.dtype(np.float32): (1, "float_val"),
    np.dtype(np.float64): (2, "double_val"),
    np.dtype(np.int32): (3, "int_val"),
    np.dtype(np.int64): (9, "int64_val"),
}


# ------------------------------------------------------------------ services


def service_json(
    folder: Path, name: str, export: Path | str, *, items: bool = False, **more: Any
) -> Path:
    """The service's JSON; with ``items`` it reads the item table beside it.

    :param more: further keys, ``model_config`` on top of what is there
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "fg_mode": "normal",
        "item_empty_score": EMPTY_SCORE,
        # Bits are compared, which depend on it.
        "intra_op_parallelism_threads": 1,
    }
    if items:
        write_items(folder / "items.parquet")
        config |= {
            "remote_type": "parquet",
            "url": "items.parquet",
            "tables": [{"key": "item_id"}],
        }
    content = {
        "metadata": {"name": name, "instance": 1},
        "processor": "easyrec-torch-1.12",
        "token": TOKEN,
        "model_path": str(export),
        "procserver": {"state_dir": "state", "drain_seconds": 0},
        **more,
        "model_config": config | more.get("model_config", {}),
    }
    path = folder / "service.json"
    path.write_text(json.dumps(content))
    return path


def write_items(path: Path) -> None:
    rows = [features.item(i) for i in range(features.ITEMS)]
    columns = {
        name: pa.array([row[name] for row in rows], arrow_type(kind))
        for name, kind in features.ITEM_TYPES.items()
    }
    pq.write_table(pa.table(columns), path)


def arrow_type(kind: str) -> pa.DataType:
    if kind.startswith("list<"):
        return pa.list_(arrow_type(kind[5:-1]))
    if kind.startswith("map<"):
        return pa.map_(*map(arrow_type, kind[4:-1].split(", ")))
    return ARROW[kind]


@contextmanager
def running(*servers: LiveServer) -> Iterator[dict[str, LiveServer]]:
    """Started together, stopped together; each must stop cleanly.

    One core for each server: a forward on one thread has the same bits.
    """
    cores = itertools.cycle(sorted(os.sched_getaffinity(0)))
    with ExitStack() as stack:
        for server in servers:
            server.core = next(cores)
            stack.push(partial(_stop, server.launch()))
        for server in servers:
            server.wait_ready()
        yield {server.name: server for server in servers}
        for server in servers:
            server.ask_to_stop()


def _stop(server: LiveServer, failure: type[BaseException] | None, *_: object) -> None:
    server.stop(expect_clean=failure is None)


# ------------------------------------------------------------------ requests


def fill(feature: PBFeature, kind: str, value: Any) -> None:
    """Sets what a raw value is on the wire; a null leaves the message empty."""
    if value is None:
        return
    name = FIELDS[kind]
    if kind.startswith("map<"):
        getattr(feature, name).map_field.update(dict(value))
    elif kind.startswith("list<list<"):
        getattr(feature, name).SetInParent()
        for cell in value:
            getattr(feature, name).lists.add().features.extend(cell)
    elif kind.startswith("list<"):
        getattr(feature, name).SetInParent()
        getattr(feature, name).features.extend(value)
    else:
        setattr(feature, name, value)


def ranking_request(
    fields: Mapping[str, Raw],
    items: Sequence[str],
    *,
    context: bool = True,
    columns: Iterable[str] = (),
    with_ids: bool = True,
) -> PBRequest:
    """A request for these items.

    :param columns: item columns that the request brings itself
    """
    request = PBRequest()
    for name, (kind, value) in fields.items():
        fill(request.user_features[name], kind, value)
    if with_ids:
        request.item_ids.extend(items)
    if context:
        for name, (kind, values) in features.context(len(items)).items():
            for value in values:
                fill(request.context_features[name].features.add(), kind, value)
    rows = [features.item(features.index_of(i)) for i in items]
    for name in columns:
        for row in rows:
            cell = request.item_features[name].features.add()
            fill(cell, features.ITEM_TYPES[name], row[name])
    return request


def map_request(tensors: Mapping[str, np.ndarray]) -> PredictRequest:
    request = PredictRequest()
    for name, array in tensors.items():
        dtype, field = ARRAYS[array.dtype]
        message = request.map_inputs[name]
        message.dtype = dtype
        message.array_shape.dim.extend(array.shape)
        getattr(message, field).extend(array.ravel().tolist())
    return request


def post(server: LiveServer, request: PBRequest | PredictRequest) -> Answer:
    path = f"/api/predict/{server.name}"
    return server.request("POST", path, request.SerializeToString(), AUTH)


def outputs(
    answer: Answer, message: type[PBResponse] | type[PredictResponse] = PBResponse
) -> dict[str, np.ndarray]:
    assert answer.status == 200, answer.body
    found = message.FromString(answer.body).map_outputs
    assert all(array.dtype == 1 for array in found.values())
    return {
        name: np.array(array.float_val, np.float32).reshape(array.array_shape.dim)
        for name, array in found.items()
    }


def scores(
    server: LiveServer, request: PBRequest | PredictRequest
) -> dict[str, np.ndarray]:
    kind = PBResponse if isinstance(request, PBRequest) else PredictResponse
    return outputs(post(server, request), kind)


# --------------------------------------------------------------- expectation


def forward(export: Path, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The export's script in this process, on one thread as the servers."""
    model = torch.jit.load(str(export / "scripted_model.pt"))
    batch = {name: torch.from_numpy(array) for name, array in tensors.items()}
    with torch.inference_mode():
        found = model(batch, torch.device("cpu"))
    return {name: tensor.numpy() for name, tensor in found.items()}


def expected(
    export: Path,
    fg_json: Mapping[str, Any],
    fields: Mapping[str, Raw],
    items: Sequence[str],
    *,
    tile: bool = False,
) -> dict[str, np.ndarray]:
    """Scores of a request: the oracle's features through the export's script."""
    return forward(export, tensors_of(fg_json, fields, items, tile=tile))


def tensors_of(
    fg_json: Mapping[str, Any],
    fields: Mapping[str, Raw],
    items: Sequence[str],
    *,
    tile: bool = False,
) -> dict[str, np.ndarray]:
    rows = [features.item(features.index_of(i)) for i in items]
    columns = features.columns_of(fields, rows)
    return features.model_tensors(fg_json, columns, len(items), tile=tile)


def item_ids(count: int, start: int = 0) -> list[str]:
    """Ids of items that exist, repeating after the table's end."""
    return [f"item_{(start + 7 * i) % features.ITEMS:04d}" for i in range(count)]


def assert_same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]):
    """Bit for bit, shapes and names too; NaN equals NaN."""
    assert sorted(ours) == sorted(theirs)
    for name, values in theirs.items():
        assert ours[name].shape == values.shape, name
        assert np.array_equal(ours[name], values, equal_nan=True), name
