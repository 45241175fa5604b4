"""A ranking service of ordinary weight, to measure with: about 10 ms per 300 items.

Twenty user features, twenty item features, five per-item context features and a click
sequence of 50 with attention, over two large and many small embedding tables. User
features are sent once (``INPUT_TILE``). Nothing is trained: weights and data are drawn
from one seed.
"""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from procserver.wire.pb import torchrec_predict_pb2 as torchrec

FORMAT = 1
SEED = 11
ITEMS = 200_000
SIZES = (100, 300, 500)
REQUESTS = 16  # different ones per size
STEPS = 50
DIM = 16
LARGE, SMALL = 1_000_000, 10_000
USER_IDS = [f"user_id_{n}" for n in range(12)]
USER_NUMBERS = [f"user_num_{n}" for n in range(8)]
ITEM_IDS = [f"item_id_{n}" for n in range(12)]
ITEM_NUMBERS = [f"item_num_{n}" for n in range(8)]
CONTEXT_IDS = [f"ctx_id_{n}" for n in range(3)]
CONTEXT_NUMBERS = [f"ctx_num_{n}" for n in range(2)]
# The click sequence and the target item are compared by these two.
TARGET = ("item_id_0", "item_id_1")
CLICKS = ("clicks__item", "clicks__category")


def buckets(name: str) -> int:
    return LARGE if name in ("user_id_0", "item_id_0") else SMALL


class Workload(nn.Module):
    """Embeddings, attention 128-64-16-1, layers 482-256-128-64, two heads."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.users = tables(USER_IDS)
        self.first = nn.Embedding(buckets(TARGET[0]), DIM)
        self.second = nn.Embedding(buckets(TARGET[1]), DIM)
        self.items = tables([*ITEM_IDS[2:], *CONTEXT_IDS])
        self.user_numbers = USER_NUMBERS
        self.item_numbers = [*ITEM_NUMBERS, *CONTEXT_NUMBERS]
        query = 2 * DIM
        self.attention = nn.Sequential(
            nn.Linear(4 * query, 64), nn.ReLU(), nn.Linear(64, 16), nn.ReLU(),
            nn.Linear(16, 1),
        )  # fmt: skip
        ids = len(USER_IDS) + len(ITEM_IDS) + len(CONTEXT_IDS)
        numbers = len(USER_NUMBERS) + len(ITEM_NUMBERS) + len(CONTEXT_NUMBERS)
        self.shared = nn.Sequential(
            nn.Linear(ids * DIM + numbers + query, 256), nn.ReLU(),
            nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(),
        )  # fmt: skip
        self.ctr = nn.Linear(64, 1)
        self.cvr = nn.Linear(64, 1)

    def forward(
        self,
        data: dict[str, Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, Tensor]:
        """Scores of ``batch_size`` rows; user features have one row."""
        batch: dict[str, Tensor] = {}
        for key, tensor in data.items():
            batch[key] = tensor.to(device)
        rows = int(batch["batch_size"].item())
        user = []
        for name, table in self.users.items():
            user.append(pool(batch, name, table.weight))
        for name in self.user_numbers:
            user.append(batch[name + ".values"])
        query = torch.cat(
            [
                pool(batch, "item_id_0", self.first.weight),
                pool(batch, "item_id_1", self.second.weight),
            ],
            dim=1,
        )
        item = [query]
        for name, table in self.items.items():
            item.append(pool(batch, name, table.weight))
        for name in self.item_numbers:
            item.append(batch[name + ".values"])
        keys = torch.cat(
            [
                self.first(batch["clicks__item.values"]),
                self.second(batch["clicks__category.values"]),
            ],
            dim=1,
        )
        seen = self.attend(query, keys)
        wide = torch.cat(user, dim=1).expand(rows, -1)
        hidden = self.shared(torch.cat([wide, torch.cat(item, dim=1), seen], dim=1))
        return {
            "probs_ctr": torch.sigmoid(self.ctr(hidden)).squeeze(1),
            "probs_cvr": torch.sigmoid(self.cvr(hidden)).squeeze(1),
        }

    def attend(self, query: Tensor, keys: Tensor) -> Tensor:
        """[rows, width]: one user's clicks [steps, width], weighed per row."""
        target = query.unsqueeze(1).expand(-1, keys.size(0), -1)
        clicks = keys.unsqueeze(0).expand(query.size(0), -1, -1)
        pairs = torch.cat([target, clicks, target - clicks, target * clicks], dim=2)
        weights = torch.softmax(self.attention(pairs).squeeze(2), dim=1)
        return weights @ keys


def tables(names: list[str]) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Embedding(buckets(name), DIM) for name in names})


def pool(batch: dict[str, Tensor], name: str, table: Tensor) -> Tensor:
    lengths = batch[name + ".lengths"].to(torch.int64)
    starts = torch.cumsum(lengths, 0) - lengths
    return nn.functional.embedding_bag(
        batch[name + ".values"], table, starts, mode="sum"
    )


def fg_document() -> dict[str, Any]:
    features = [
        *(hashed(name, f"user:{name}") for name in USER_IDS),
        *(number(name, f"user:{name}") for name in USER_NUMBERS),
        *(hashed(name, f"item:{name}") for name in ITEM_IDS),
        *(number(name, f"item:{name}") for name in ITEM_NUMBERS),
        *(hashed(name, f"context:{name}") for name in CONTEXT_IDS),
        *(number(name, f"context:{name}") for name in CONTEXT_NUMBERS),
    ]
    clicks = [
        hashed("item", "user:item", LARGE) | {"default_value": "0", "value_dim": 1},
        hashed("category", "user:category", SMALL)
        | {"default_value": "0", "value_dim": 1},
    ]
    group = {"sequence_name": "clicks", "sequence_length": STEPS, "features": clicks}
    return {"features": [*features, group]}


def hashed(name: str, expression: str, size: int = 0) -> dict[str, Any]:
    return {
        "feature_type": "id_feature",
        "feature_name": name,
        "expression": expression,
        "default_value": "",
        "value_type": "string",
        "hash_bucket_size": size or buckets(name),
    }


def number(name: str, expression: str) -> dict[str, Any]:
    return {
        "feature_type": "raw_feature",
        "feature_name": name,
        "expression": expression,
        "default_value": "0",
        "value_type": "float",
    }


def item_table(rng: np.random.Generator, count: int) -> pa.Table:
    columns = {"item_key": pa.array([f"i{n:07d}" for n in range(count)])}
    for name in ITEM_IDS:
        columns[name] = pa.array(rng.integers(0, buckets(name), count))
    for name in ITEM_NUMBERS:
        columns[name] = pa.array(rng.random(count, dtype=np.float32))
    return pa.table(columns)


def request(rng: np.random.Generator, known: int, count: int) -> bytes:
    """Bytes of a PBRequest with ``count`` items."""
    message = torchrec.PBRequest()
    user = message.user_features
    for name in USER_IDS:
        user[name].long_feature = int(rng.integers(0, buckets(name)))
    for name in USER_NUMBERS:
        user[name].float_feature = float(rng.random())
    for name, size in zip(CLICKS, (LARGE, SMALL), strict=True):
        ids = rng.integers(0, size, STEPS).tolist()
        user[name].long_list.features.extend(ids)
    message.item_ids.extend(f"i{n:07d}" for n in rng.integers(0, known, count))
    for name in CONTEXT_IDS:
        features = message.context_features[name].features
        for value in rng.integers(0, SMALL, count).tolist():
            features.add().long_feature = value
    for name in CONTEXT_NUMBERS:
        features = message.context_features[name].features
        for value in rng.random(count).tolist():
            features.add().float_feature = value
    body: bytes = message.SerializeToString(deterministic=True)
    return body


def service_document() -> dict[str, Any]:
    return {
        "metadata": {"name": "workload", "rpc": {"worker_threads": 16}},
        "processor": "easyrec-torch-1.12",
        "token": "procserver-bench-token",
        "model_config": {
            "fg_mode": "normal",
            "fg_threads": 1,
            "remote_type": "parquet",
            "url": "items.parquet",
            "tables": [{"key": "item_key"}],
        },
        "storage": [
            {
                "mount_path": "/home/admin/docker_ml/workspace/model/",
                "local": {"path": "export"},
            }
        ],
    }


def build(folder: Path, items: int = ITEMS) -> Path:
    """Writes the service to ``folder`` unless it is there already."""
    manifest = {"format": FORMAT, "items": items, "seed": SEED}
    mark = folder / "workload.json"
    if mark.exists() and json.loads(mark.read_text()) == manifest:
        return folder
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        (aside / "export").mkdir(parents=True)
        (aside / "requests").mkdir()
        model = torch.jit.script(Workload(SEED).eval())
        model.save(str(aside / "export" / "scripted_model.pt"))
        acc = {"SPARSE_INT64": "1", "INPUT_TILE": "3"}
        write_json(aside / "export" / "model_acc.json", acc)
        write_json(aside / "export" / "fg.json", fg_document())
        rng = np.random.default_rng(SEED)
        pq.write_table(item_table(rng, items), aside / "items.parquet")
        for size in SIZES:
            for at in range(REQUESTS):
                body = request(rng, items, size)
                (aside / "requests" / f"rank_{size}_{at:02d}.pb").write_bytes(body)
        write_json(aside / "service.json", service_document())
        write_json(aside / "workload.json", manifest)
        if mark.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=ITEMS)
    args = parser.parse_args()
    print(f"written to {build(args.folder, args.items)}")
