"""A small complete service on disk: model, fg.json, items, service JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

TOKEN = "dG9rZW4tZm9yLXRlc3Q="
ITEMS = 200
CATEGORIES = ["books", "games", "garden", "häuser", "服装"]

FG: dict[str, Any] = {
    "features": [
        {
            "feature_type": "id_feature",
            "feature_name": "user_id",
            "expression": "user:user_id",
            "default_value": "",
            "hash_bucket_size": 1000,
        },
        {
            "feature_type": "raw_feature",
            "feature_name": "age",
            "expression": "user:age",
            "default_value": "18",
            "normalizer": "method=zscore,mean=30,standard_deviation=10",
        },
        {
            "feature_type": "id_feature",
            "feature_name": "category",
            "expression": "item:category",
            "default_value": "",
            "vocab_list": ["", "<OOV>", *CATEGORIES],
            "default_bucketize_value": 1,
        },
        {
            "feature_type": "raw_feature",
            "feature_name": "price",
            "expression": "item:price",
            "default_value": "0",
        },
        {
            "feature_type": "raw_feature",
            "feature_name": "vector",
            "expression": "item:vector",
            "default_value": "0",
            "value_dim": 4,
        },
        {
            "feature_type": "id_feature",
            "feature_name": "position",
            "expression": "context:position",
            "default_value": "0",
            "num_buckets": 10,
        },
        {
            "feature_type": "combo_feature",
            "feature_name": "city_x_category",
            "expression": ["user:city", "item:category"],
            "default_value": "",
            "hash_bucket_size": 500,
        },
        {
            "sequence_name": "clicks",
            "sequence_length": 20,
            "sequence_delim": ";",
            "sequence_pk": "user:clicks",
            "features": [
                {
                    "feature_type": "id_feature",
                    "feature_name": "category",
                    "expression": "item:category",
                    "default_value": "0",
                    "hash_bucket_size": 100,
                    "value_dim": 1,
                },
                {
                    "feature_type": "raw_feature",
                    "feature_name": "price",
                    "expression": "item:price",
                    "default_value": "0",
                },
            ],
        },
    ]
}


def pooled(table: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor):
    """Sum of embeddings per row."""
    rows = torch.repeat_interleave(torch.arange(lengths.size(0)), lengths.long())
    out = torch.zeros(lengths.size(0), table.size(1))
    return out.index_add(0, rows, table[values])


class Ranker(torch.nn.Module):
    """Every feature counts, so that a wrong one changes the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.user = torch.nn.Parameter(torch.randn(1000, 8))
        self.category = torch.nn.Parameter(torch.randn(7, 8))
        self.position = torch.nn.Parameter(torch.randn(10, 8))
        self.cross = torch.nn.Parameter(torch.randn(500, 8))
        self.clicked = torch.nn.Parameter(torch.randn(100, 8))
        self.top = torch.nn.Sequential(
            torch.nn.Linear(8 * 5 + 1 + 1 + 4 + 1, 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, 2),
        )

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        clicked = pooled(
            self.clicked,
            data["clicks__category.values"],
            data["clicks__category.lengths"],
        )
        paid = pooled(
            data["clicks__price.values"],
            torch.arange(data["clicks__price.values"].size(0)),
            data["clicks__price.lengths"],
        )
        parts = [
            pooled(self.user, data["user_id.values"], data["user_id.lengths"]),
            pooled(self.category, data["category.values"], data["category.lengths"]),
            pooled(self.position, data["position.values"], data["position.lengths"]),
            pooled(
                self.cross,
                data["city_x_category.values"],
                data["city_x_category.lengths"],
            ),
            clicked,
            data["age.values"],
            data["price.values"],
            data["vector.values"],
            paid,
        ]
        logits = self.top(torch.cat(parts, 1))
        return {
            "probs_ctr": torch.sigmoid(logits[:, 0]),
            "probs_cvr": torch.sigmoid(logits[:, 1]),
        }


class Doubler(torch.nn.Module):
    """Positional inputs for the bypass service."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a.float().sum(1) + b * 2


def item(index: int) -> dict[str, Any]:
    return {
        "item_id": f"item_{index:04d}",
        "category": None if index % 17 == 0 else CATEGORIES[index % len(CATEGORIES)],
        "price": index / 7,
        "vector": [index / 3, -index / 5, 0.25, 1.0],
    }


def write(folder: Path, name: str, **overrides: Any) -> Path:
    """Writes the service and returns the path of its JSON."""
    torch.manual_seed(11)
    export = folder / "export"
    export.mkdir(parents=True)
    torch.jit.script(Ranker().eval()).save(str(export / "scripted_model.pt"))
    (export / "fg.json").write_text(json.dumps(FG, ensure_ascii=False))
    (export / "model_acc.json").write_text('{"SPARSE_INT64": "1"}')
    rows = pa.Table.from_pylist([item(i) for i in range(ITEMS)])
    pq.write_table(rows, folder / "items.parquet")
    return _service_json(
        folder,
        {
            "metadata": {
                "name": name,
                "instance": 1,
                "rpc": {"worker_threads": 4, "health_check_path": "/status/up"},
            },
            "processor": "easyrec-torch-1.12",
            "token": TOKEN,
            "model_path": "export",
            "model_config": {
                "fg_mode": "normal",
                "item_empty_score": -1,
                # Bits are compared, which depend on it.
                "intra_op_parallelism_threads": 1,
                "remote_type": "parquet",
                "url": "items.parquet",
                "tables": [{"key": "item_id"}],
            },
            "procserver": {"state_dir": "state", "drain_seconds": 0},
        },
        overrides,
    )


def write_bypass(folder: Path, name: str, **overrides: Any) -> Path:
    """The same for a bare model with positional tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.script(Doubler()).save(str(folder / "doubler.pt"))
    return _service_json(
        folder,
        {
            "metadata": {"name": name, "instance": 1},
            "processor": "easyrec-torch-1.12",
            "token": TOKEN,
            "model_path": "doubler.pt",
            "model_config": {"fg_mode": "bypass"},
            "procserver": {"state_dir": "state", "drain_seconds": 0},
        },
        overrides,
    )


def _service_json(
    folder: Path, content: dict[str, Any], overrides: dict[str, Any]
) -> Path:
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            content[key] = {**content[key], **value}
        else:
            content[key] = value
    path = folder / "service.json"
    path.write_text(json.dumps(content))
    return path
