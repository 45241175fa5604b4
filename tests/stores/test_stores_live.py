"""A service whose items come from PostgreSQL, and from Redis: the same scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
import servers
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server"))

import tiny
from live import LiveServer

from procserver.fg import FeatureGenerator
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

NAMES = ["item_0000", "item_0001", "item_0034", "item_0199"]


def fill_postgres(shop: servers.Postgres) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id text, category text, vector float8[])",
        "CREATE TABLE shop.prices (sku text, price float8)",
    )
    with psycopg.connect(shop.url) as connection, connection.cursor() as cursor:
        rows = [tiny.item(index) for index in range(tiny.ITEMS)]
        cursor.executemany(
            "INSERT INTO shop.items VALUES (%s, %s, %s)",
            [(row["item_id"], row["category"], row["vector"]) for row in rows],
        )
        cursor.executemany(
            "INSERT INTO shop.prices VALUES (%s, %s)",
            [(row["item_id"], row["price"]) for row in rows],
        )


def fill_redis(client: Any) -> None:
    pipe = client.pipeline(transaction=False)
    for row in map(tiny.item, range(tiny.ITEMS)):
        fields = {"price": repr(row["price"])}
        fields["vector"] = "\x1d".join(map(repr, row["vector"]))
        if row["category"] is not None:
            fields["category"] = row["category"]
        pipe.hset(f"item:{row['item_id']}", mapping=fields)
    pipe.execute()


def ask(server: LiveServer, name: str) -> dict[str, np.ndarray]:
    request = PBRequest()
    request.user_features["user_id"].string_feature = "u001d"
    request.item_ids.extend([*NAMES, "nobody"])
    answer = server.request(
        "POST",
        f"/api/predict/{name}",
        request.SerializeToString(),
        {"Authorization": tiny.TOKEN},
    )
    assert answer.status == 200, answer.body
    response = PBResponse.FromString(answer.body)
    return {
        output: np.array(array.float_val, np.float32)
        for output, array in response.map_outputs.items()
    }


def expected(folder: Path) -> dict[str, np.ndarray]:
    """The model in this process, with the items joined by hand."""
    rows = [tiny.item(int(name[-4:])) for name in NAMES]
    columns = {
        "user_id": pa.array(["u001d"]),
        "category": pa.array([row["category"] for row in rows]),
        "price": pa.array([row["price"] for row in rows]),
        "vector": pa.array([row["vector"] for row in rows]),
    }
    columns |= {name: pa.nulls(1, pa.string()) for name in ("age", "city")}
    columns["position"] = pa.nulls(len(rows), pa.string())
    for name in ("category", "price"):
        columns[f"clicks__{name}"] = pa.array([None] * len(rows), pa.string())
    tensors = FeatureGenerator(folder / "export" / "fg.json").transform(columns)
    batch = {name: torch.from_numpy(array) for name, array in tensors.items()}
    for name, tensor in batch.items():
        if tensor.shape[0] == 1:
            batch[name] = tensor.repeat(len(rows), *[1] * (tensor.dim() - 1))
    model = torch.jit.load(str(folder / "export" / "scripted_model.pt"))
    with torch.inference_mode():
        return {name: tensor.numpy() for name, tensor in model(batch).items()}


@pytest.mark.parametrize("kind", ["hologres", "redis"])
def test_scores(
    kind: str,
    tmp_path: Path,
    shop: servers.Postgres,
    redis_server: servers.Redis,
    client: Any,
) -> None:
    fill_postgres(shop)
    fill_redis(client)
    source: dict[str, Any] = {
        "remote_type": "hologres",
        "url": shop.url,
        "tables": [
            {"name": "shop.items", "key": "item_id"},
            {"name": "shop.prices", "key": "sku", "value": "price"},
        ],
        "stream": {"url": redis_server.url, "key": "changes"},
    }
    if kind == "redis":
        types = {"category": "string", "price": "float64", "vector": "list<float64>"}
        source = {
            "remote_type": "redis",
            "url": redis_server.unix_url,
            "tables": {"name": "item:*", "key": "item_id", "types": types},
        }
    config = tiny.write(tmp_path, "stores", model_config=source)
    server = LiveServer(config, tmp_path / "server.log", workers=1)
    try:
        server.start()
        ours = ask(server, "stores")
    except BaseException:
        server.stop(expect_clean=False)
        raise
    server.stop()
    for name, theirs in expected(tmp_path).items():
        assert np.array_equal(ours[name][:-1], theirs), name
        assert ours[name][-1] == -1
    assert servers.PASSWORD not in server.text()
    assert servers.QUOTED not in server.text()
