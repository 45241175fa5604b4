"""A distributed-embedding export written by hand, and the full model beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import sparse_oracle as oracle
import torch

EBC = "model.embedding_group.emb_impls.__BASE__.ebc.embedding_bags."
USER = "model.embedding_group.emb_impls.__BASE__.ebc_user.embedding_bags."
ZCH = "model.embedding_group.emb_impls.__BASE__.mc_ebc.embedding_bags."
SEQ = "model.embedding_group.seq_emb_impls.__BASE__.ec_dict."

# table -> rows, dimension, feature implementations, pooling
TABLES: dict[str, tuple[int, int, list[str], str]] = {
    f"{USER}user_id_emb": (50, 4, ["user_id__ebc"], "SUM"),
    f"{EBC}category_emb": (8, 8, ["category__ebc"], "SUM"),
    f"{EBC}tags_emb": (30, 6, ["tags__ebc"], "MEAN"),
    f"{ZCH}shop_emb": (9, 4, ["shop__ebc"], "SUM"),
    f"{SEQ}8.embeddings.category_seq_emb": (
        20,
        8,
        ["category__ec", "clicks__category__ec"],
        "NONE",
    ),
    f"{SEQ}6.embeddings.tags_seq_emb": (30, 6, ["clicks__tags__ec"], "NONE"),
}
SHOP = f"{ZCH}shop_emb"
SHOPS = [2**62 - 57 * i for i in range(9)]
DENSE_META = {
    "sequence__ec": [
        "category__ec",
        "category__lengths",
        "clicks__category__ec",
        "clicks__category__lengths",
        "clicks__tags__ec",
        "clicks__tags__lengths",
    ],
    "deep__ebc": ["category__ebc", "tags__ebc"],
    "deep__ebc_user": ["user_id__ebc"],
    "deep__mc_ebc": ["shop__ebc"],
}
FG: dict[str, Any] = {
    "features": [
        {
            "feature_type": "id_feature",
            "feature_name": "user_id",
            "expression": "user:user_id",
            "default_value": "",
            "hash_bucket_size": 50,
        },
        {
            "feature_type": "id_feature",
            "feature_name": "category",
            "expression": "item:category",
            "default_value": "",
            "hash_bucket_size": 8,
        },
        {
            "feature_type": "id_feature",
            "feature_name": "tags",
            "expression": "item:tags",
            "default_value": "",
            "hash_bucket_size": 30,
        },
        {
            "feature_type": "id_feature",
            "feature_name": "shop",
            "expression": "item:shop",
            "default_value": "",
            "num_buckets": 2**63 - 1,
        },
        {
            "feature_type": "raw_feature",
            "feature_name": "price",
            "expression": "item:price",
            "default_value": "0",
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
                    "hash_bucket_size": 20,
                    "value_dim": 1,
                },
                {
                    "feature_type": "id_feature",
                    "feature_name": "tags",
                    "expression": "item:tags",
                    "default_value": "0",
                    "hash_bucket_size": 30,
                    "value_dim": 0,
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


def summed(rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sum of so many rows each."""
    owner = torch.repeat_interleave(torch.arange(lengths.size(0)), lengths.long())
    out = torch.zeros(lengths.size(0), rows.size(1))
    return out.index_add(0, owner, rows)


class Dense(torch.nn.Module):
    """What reads the looked-up tensors, each in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.top = torch.nn.Sequential(
            torch.nn.Linear(4 + 14 + 4 + 8 + 8 + 6 + 1 + 1, 16),
            torch.nn.ReLU(),
            torch.nn.Linear(16, 2),
        )

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        items = int(data["batch_size"].item())
        query = summed(data["category"], data["category__lengths"])
        clicks = data["clicks__category"]
        steps = data["clicks__category__lengths"]
        attention = torch.softmax(query @ clicks.t(), 1) @ clicks
        mask = (steps > 0).float()
        steps_tags = summed(data["clicks__tags"], data["clicks__tags.key_lengths"])
        tags = summed(steps_tags, data["clicks__tags.lengths"])
        share = data["clicks__tags__lengths"].float().unsqueeze(1)
        paid = summed(data["clicks__price.values"], data["clicks__price.lengths"])
        parts = [
            data["deep__ebc_user"].tile([items, 1]),
            data["deep__ebc"],
            data["deep__mc_ebc"],
            query,
            attention * mask,
            (tags / share).tile([items, 1]),
            paid.tile([items, 1]),
            data["price.values"],
        ]
        logits = self.top(torch.cat(parts, 1))
        return {
            "probs_ctr": torch.sigmoid(logits[:, 0]),
            "probs_cvr": torch.sigmoid(logits[:, 1]),
        }


def dense() -> Dense:
    torch.manual_seed(5)
    return Dense().eval()


def tables(form: str) -> dict[str, np.ndarray]:
    """Every table as it is stored; that of shops ends in its default row."""
    rng = np.random.default_rng(23)
    made = {}
    for name, (rows, dim, _, _) in TABLES.items():
        values = rng.normal(size=(rows + (name == SHOP), dim)).astype(np.float32)
        made[name] = oracle.int8_rows(values) if form == "int8" else values.astype(form)
    return made


def write_export(
    path: Path, form: str = "float32", *, shards: int = 1, default: bool = True
) -> Path:
    """Writes the whole export directory.

    :param form: float32, float16 or int8
    :param shards: by how many ranks it was written; each has a part of the rows
    :param default: whether the table of shops says what unknown ones give
    """
    sparse = path / "sparse"
    sparse.mkdir(parents=True)
    torch.jit.script(dense()).save(str(path / "scripted_model.pt"))
    put(path / "fg.json", FG)
    put(path / "dense_meta.json", DENSE_META)
    put(
        path / "model_acc.json",
        {"SPARSE_INT64": "1", "INPUT_TILE": "3", "DISTRIBUTED_EMBEDDING": "1"},
    )
    stored = tables(form)
    put(sparse / "sparse_embedding.json", {n: described(n, form) for n in TABLES})
    put(
        sparse / "sparse_features.json",
        {
            impl: {"embedding_name": name, "pooling": pooling}
            for name, (_, _, impls, pooling) in TABLES.items()
            for impl in impls
        },
    )
    for rank in range(shards):
        stem = f"{rank:02d}-of-{shards:02d}"
        part = {n: np.array_split(v, shards)[rank] for n, v in stored.items()}
        shop = np.array_split(stored[SHOP][:-1], shards)[rank]
        keys = np.array_split(np.array(SHOPS), shards)[rank]
        del part[SHOP]
        np.savez(sparse / f"sparse_embeddings-{stem}.npz", **part)
        put(
            sparse / f"sparse_embeddings-{stem}.json",
            {n: described(n, form, rows=len(v)) for n, v in part.items()},
        )
        dynamic = {
            f"{SHOP}.keys": keys,
            f"{SHOP}.values": shop,
            f"{SHOP}.scores": keys * 0 + 1,
        }
        if default:
            dynamic[f"{SHOP}.default_value"] = stored[SHOP][-1:]
        np.savez(sparse / f"sparse_dynamic_embedding-{stem}.npz", **dynamic)
    return path


def put(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=4))


def described(name: str, form: str, rows: int | None = None) -> dict[str, Any]:
    """A table's entry in ``sparse_embedding.json``."""
    whole, dim, impls, _ = TABLES[name]
    rows = whole if rows is None else rows
    entry: dict[str, Any] = {
        "feat_name_impl": impls,
        "dense": False,
        "is_dynamic": name == SHOP,
        "dimension": dim,
        "dtype": form,
        "memory": rows * dim * 4,
        "shape": [rows, dim],
    }
    if form == "int8":
        entry |= {
            "dtype": "QUint8RowwiseF16",
            "storage_dtype": "uint8",
            "storage_shape": [rows, dim + 4],
            "row_bytes": dim + 4,
            "quant": {"format": "QUint8RowwiseF16"},
        }
    if name == SHOP:
        entry |= {
            "key_dtype": "int64",
            "score_dtype": "int64",
            "key_name": f"{name}.keys",
            "value_name": f"{name}.values",
            "score_name": f"{name}.scores",
            "default_value_name": f"{name}.default_value",
        }
    return entry


def looked_up(
    tensors: Mapping[str, np.ndarray], form: str, *, default: bool = True
) -> dict[str, np.ndarray]:
    """The tensors and their embeddings, by torch's own lookups."""
    plain = {n: oracle.plain_rows(table) for n, table in tables(form).items()}
    if not default:
        plain[SHOP][-1] = 0
    owner = {i: n for n, (_, _, impls, _) in TABLES.items() for i in impls}
    joined = dict(tensors)
    for group, impls in DENSE_META.items():
        parts = []
        for impl in impls:
            feature, _, role = impl.rpartition("__")
            if role == "lengths":
                continue
            name = owner[impl]
            ids, lengths = _ids(tensors, feature)
            if name == SHOP:
                at = {key: row for row, key in enumerate(SHOPS)}
                ids = np.array([at.get(i, len(SHOPS)) for i in ids.tolist()], np.int64)
            table = torch.from_numpy(plain[name])
            if role == "ec":
                joined[feature] = table[torch.from_numpy(ids)].numpy()
                joined[f"{feature}__lengths"] = lengths
                continue
            offsets = torch.from_numpy(np.cumsum(lengths) - lengths)
            parts.append(
                torch.nn.functional.embedding_bag(
                    torch.from_numpy(ids),
                    table,
                    offsets,
                    mode=TABLES[name][3].lower(),
                )
            )
        if parts:
            joined[group] = torch.cat(parts, 1).numpy()
    return joined


def _ids(
    tensors: Mapping[str, np.ndarray], feature: str
) -> tuple[np.ndarray, np.ndarray]:
    ids = tensors[f"{feature}.values"].astype(np.int64)
    lengths = tensors[f"{feature}.lengths"].astype(np.int64)
    keys = tensors.get(f"{feature}.key_lengths")
    if keys is not None:
        ends = np.cumsum(lengths)
        lengths = np.array(
            [
                keys[end - steps : end].sum()
                for end, steps in zip(ends, lengths, strict=True)
            ],
            np.int64,
        )
    return ids, lengths


def full_forward(
    tensors: Mapping[str, np.ndarray], form: str, *, default: bool = True
) -> dict[str, np.ndarray]:
    """Scores of the undivided model."""
    batch = {
        name: torch.from_numpy(np.asarray(array))
        for name, array in looked_up(tensors, form, default=default).items()
    }
    with torch.inference_mode():
        return {n: t.numpy() for n, t in dense()(batch).items()}


def request_tensors(
    items: int, *, seed: int = 0, steps: int = 5, width: type = np.int32
) -> dict[str, np.ndarray]:
    """Tensors as feature generation makes them: one row of user features."""
    rng = np.random.default_rng(seed)

    def ids(bound: int, lengths: np.ndarray) -> np.ndarray:
        return rng.integers(0, bound, lengths.sum())

    category = rng.integers(0, 2, items).astype(width)
    tags = rng.integers(0, 4, items).astype(width)
    shop = rng.integers(0, 2, items).astype(width)
    user = np.array([2], width)
    per_step = rng.integers(1, 4, steps).astype(width)
    row = np.array([steps], width)
    known = np.array([*SHOPS, 1, 2, 3])
    return {
        "user_id.values": ids(50, user),
        "user_id.lengths": user,
        "category.values": ids(8, category),
        "category.lengths": category,
        "tags.values": ids(30, tags),
        "tags.lengths": tags,
        "tags.weights": rng.random(int(tags.sum())).astype(np.float32),
        "shop.values": rng.choice(known, shop.sum()),
        "shop.lengths": shop,
        "price.values": rng.random((items, 1)).astype(np.float32),
        "clicks__category.values": ids(20, row),
        "clicks__category.lengths": row,
        "clicks__tags.values": ids(30, per_step),
        "clicks__tags.key_lengths": per_step,
        "clicks__tags.lengths": row,
        "clicks__price.values": rng.random((steps, 1)).astype(np.float32),
        "clicks__price.lengths": row,
        "batch_size": np.array(items, np.int64),
    }
