"""The tensors that a request becomes, without the server.

Item features are joined here by plain Python dictionaries, and FG turns the result
into tensors: the slow road to the same numbers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cython_ext.column import Column
from procserver.fg import FeatureGenerator
from procserver.wire.pb import torchrec_predict_pb2 as torchrec

SCALARS = {
    "int_feature": pa.int32(),
    "long_feature": pa.int64(),
    "string_feature": pa.string(),
    "float_feature": pa.float32(),
    "double_feature": pa.float64(),
}
LISTS = {
    "int_list": pa.list_(pa.int32()),
    "long_list": pa.list_(pa.int64()),
    "string_list": pa.list_(pa.string()),
    "float_list": pa.list_(pa.float32()),
    "double_list": pa.list_(pa.float64()),
}

Columns = dict[str, pa.Array]


class TensorMaker:
    """FG of one service and its items, read as the service JSON says."""

    def __init__(self, service_json: Path) -> None:
        document = json.loads(service_json.read_text())
        base = service_json.parent
        self.export = base / document["storage"][0]["local"]["path"]
        self.fg = json.loads((self.export / "fg.json").read_text())
        acc = json.loads((self.export / "model_acc.json").read_text())
        self.tile = acc.get("INPUT_TILE", "")[:1] in ("2", "3")
        config = document["model_config"]
        self.items = pq.read_table(base / config["url"])
        key = config["tables"][0]["key"]
        self.row_of = {
            name: row for row, name in enumerate(self.items[key].to_pylist())
        }
        self.generator = FeatureGenerator(self.fg)

    def tensors(self, body: bytes) -> dict[str, np.ndarray]:
        """What the model gets for one request body."""
        request = torchrec.PBRequest()
        request.ParseFromString(body)
        user, item, context = self.join(request)
        rows = len(request.item_ids)
        if not self.tile:
            whole = {
                name: repeated(column, rows)
                for name, column in (user | context | item).items()
            }
            return self.generator.transform(whole)
        return self.generator.generate(
            as_columns(user), as_columns(item), as_columns(context), rows, tile=True
        )

    def join(self, request: Any) -> tuple[Columns, Columns, Columns]:
        """User columns (1 row), item columns (a row each), context columns."""
        user = {
            name: one_array([feature])
            for name, feature in request.user_features.items()
        }
        context = {
            name: one_array(list(entry.features))
            for name, entry in request.context_features.items()
        }
        item = {
            name: self.look_up(list(request.item_ids), name)
            for name in self.items.column_names
        }
        for group in self.fg["features"]:
            pk = group.get("sequence_pk", "").removeprefix("user:")
            if pk not in user:
                continue
            ids = user[pk][0].as_py()
            for feature in group["features"]:
                side, _, name = feature["expression"].partition(":")
                if side == "item":
                    values = self.look_up(ids[: group["sequence_length"] or None], name)
                    user[f"{group['sequence_name']}__{name}"] = (
                        pa.ListArray.from_arrays([0, len(values)], values)
                    )
        return user, item, context

    def look_up(self, ids: list[str], name: str) -> pa.Array:
        """One column of these items, null for an item that does not exist."""
        rows = pa.array([self.row_of.get(one) for one in ids], pa.int64())
        return self.items[name].take(rows).combine_chunks()


def one_array(features: list[Any]) -> pa.Array:
    """Feature values of one type as an Arrow array."""
    kinds = {feature.WhichOneof("value") for feature in features}
    if len(kinds) != 1:
        raise ValueError(f"values of several types: {sorted(map(str, kinds))}")
    kind = kinds.pop()
    if kind in SCALARS:
        return pa.array([getattr(f, kind) for f in features], SCALARS[kind])
    if kind in LISTS:
        return pa.array(
            [list(getattr(f, kind).features) for f in features], LISTS[kind]
        )
    raise ValueError(f"no sample request sends {kind}")


def repeated(column: pa.Array, rows: int) -> pa.Array:
    return column.take(pa.array([0] * rows)) if len(column) == 1 else column


def as_columns(arrays: Columns) -> dict[str, Column]:
    return {name: Column.from_arrow(array) for name, array in arrays.items()}
