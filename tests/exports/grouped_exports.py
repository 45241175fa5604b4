"""Exports with feature groups as TorchEasyRec builds them, of torchrec's modules.

A ``deep`` and a ``wide`` group share one bag collection, in which a feature of both
has two tables and is called ``<feature>@<table>``; attention reads query and sequences
from an embedding collection. Whole, INPUT_TILE 2 and 3, INT8, and with the tables
beside the script. A program for the environment that has torchrec, called as
``torchrec_exports.py`` is.
"""

import copy
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.fx
from export_features import RANKING, is_user_side
from export_folders import write_export
from export_networks import CPU, Data, tower, vocabulary
from torch import Tensor, nn
from torchrec.fx import Tracer
from torchrec.inference.modules import quantize_embeddings
from torchrec.modules.embedding_configs import (
    EmbeddingBagConfig,
    EmbeddingConfig,
    PoolingType,
)
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingCollection,
    get_embedding_names_by_table,
)
from torchrec.quant import embedding_modules as quant
from torchrec.sparse.jagged_tensor import (
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
)
from torchrec_exports import ids_per_row, longest

# They are called by names of this module.
torch.fx.wrap("ids_per_row")
torch.fx.wrap("longest")

DIM, WIDE_DIM = 16, 4
QUERY = ("item_id", "category", "tags")
BAGS = "model.embedding_group.emb_impls.__BASE__.ebc.embedding_bags."
ROWS = f"model.embedding_group.seq_emb_impls.__BASE__.ec_dict.{DIM}.embeddings."
# Name -> INPUT_TILE, whether tables are INT8, whether they are beside the script.
MODELS = {
    "gwhole": (0, False, False),
    "gint8": (0, True, False),
    "gtile2": (2, False, False),
    "gtile3": (3, True, False),
    "gsplit": (3, False, True),
    "gsplit8": (3, True, True),
}


@torch.fx.wrap
def number(size: Tensor) -> int:
    return int(size.item())


@torch.fx.wrap
def attended(query: Tensor, steps: Tensor, lengths: Tensor) -> Tensor:
    weights = torch.matmul(query.unsqueeze(1), steps.transpose(1, 2)).squeeze(1)
    mask = torch.arange(steps.size(1)).unsqueeze(0) < lengths.unsqueeze(1)
    weights = torch.softmax(torch.where(mask, weights, -1e9), 1)
    return torch.matmul(weights.unsqueeze(1), steps).squeeze(1)


class Feature:
    """What the network must know of one entry of ``fg.json``."""

    def __init__(self, name: str, entry: Mapping[str, Any], user: bool) -> None:
        self.name, self.user = name, user
        self.size = vocabulary(dict(entry))
        self.width = entry.get("value_dim", 1)
        self.dim = DIM if self.size else self.width
        # The exporter's rule for sequences with several values a step.
        self.many = bool(self.size) and self.width != 1


def features() -> tuple[list[Feature], list[Feature]]:
    """Flat features and sequences."""
    flat, sequences = [], []
    for entry in RANKING["features"]:
        side = is_user_side(entry)
        if "sequence_name" in entry:
            for child in entry["features"]:
                name = f"{entry['sequence_name']}__{child['feature_name']}"
                sequences.append(Feature(name, child, True))
        elif entry["feature_type"].startswith("sequence_"):
            sequences.append(Feature(entry["feature_name"], entry, side))
        else:
            flat.append(Feature(entry["feature_name"], entry, side))
    return flat, sequences


FLAT, SEQUENCES = features()
SPARSE = [one for one in FLAT if one.size]
DENSE = [one for one in FLAT if not one.size]
WIDE = SPARSE[::2]
ASKED = [one for one in FLAT if one.name in QUERY]
STEPS = [one for one in SEQUENCES if one.size]


def bags(chosen: list[Feature]) -> EmbeddingBagCollection:
    def table(one: Feature, dim: int, suffix: str) -> EmbeddingBagConfig:
        pooling = PoolingType.MEAN if one.name == "tags" else PoolingType.SUM
        return EmbeddingBagConfig(
            name=f"{one.name}_emb{suffix}",
            embedding_dim=dim,
            num_embeddings=one.size,
            feature_names=[one.name],
            pooling=pooling,
        )

    tables = [table(one, DIM, "") for one in chosen]
    tables += [table(one, WIDE_DIM, "_wide") for one in chosen if one in WIDE]
    return EmbeddingBagCollection(tables=tables, device=CPU)


def rows(chosen: list[Feature]) -> EmbeddingCollection:
    """An item's features and those of the clicked items share their tables."""
    shared: dict[str, list[Feature]] = {}
    for one in chosen:
        shared.setdefault(one.name.removeprefix("clicks__"), []).append(one)
    tables = [
        EmbeddingConfig(
            name=f"{name}_seq_emb",
            embedding_dim=DIM,
            num_embeddings=max(one.size for one in readers),
            feature_names=[one.name for one in readers],
        )
        for name, readers in shared.items()
    ]
    return EmbeddingCollection(tables=tables, device=CPU)


class Grouped(nn.Module):
    """The whole network; ``split`` has been given what is looked up."""

    def __init__(self, tile: int) -> None:
        super().__init__()
        self.tile, self.split = tile, False
        self.keys: dict[str, tuple[list[str], list[int]]] = {}
        user = [one for one in SPARSE if one.user] if tile == 3 else []
        self.ebc = bags([one for one in SPARSE if one not in user])
        self.ec = rows(ASKED if tile == 3 else ASKED + STEPS)
        if tile == 3:
            self.ebc_user, self.ec_user = bags(user), rows(STEPS)
        both = {one.name: f"{one.name}@{one.name}_emb" for one in WIDE}
        self.deep = [both.get(one.name, one.name) for one in SPARSE]
        self.deep += [one.name for one in DENSE]
        self.wide = [f"{both[one.name]}_wide" for one in WIDE]
        width = sum(one.dim for one in FLAT)
        steps = sum(o.dim for o in SEQUENCES if o.name.startswith("clicks__"))
        rest = sum(o.dim for o in SEQUENCES) - steps
        query = DIM * len(QUERY)
        self.query = nn.Linear(query, steps)
        self.norm = nn.BatchNorm1d(width)
        self.norm.running_mean.normal_()
        total = width + WIDE_DIM * len(WIDE) + steps + rest + query
        self.top = tower(total, 64, 1)

    def jagged(self, data: Data, chosen: list[Feature]) -> KeyedJaggedTensor:
        values, lengths = [], []
        for one in chosen:
            ids, counts = data[f"{one.name}.values"], data[f"{one.name}.lengths"]
            if one in STEPS and one.many:
                counts = ids_per_row(counts, data[f"{one.name}.key_lengths"])
            if self.tile == 2 and one.user:
                items = number(data["batch_size"])
                ids, counts = ids.tile(items), counts.tile(items)
            values.append(ids)
            lengths.append(counts)
        return KeyedJaggedTensor(
            keys=[one.name for one in chosen],
            values=torch.cat(values, dim=-1),
            lengths=torch.cat(lengths, dim=-1),
        )

    def looked_up(self, data: Data) -> tuple[list[KeyedTensor], dict[str, Any]]:
        """Pooled embeddings of the bags, and a row for each id."""
        if self.split:
            pooled = []
            for name, (keys, lengths) in self.keys.items():
                found = data[name]
                if name.endswith("_user"):
                    found = found.tile(number(data["batch_size"]), 1)
                pooled.append(KeyedTensor(keys, lengths, found))
            singles = {
                one.name: JaggedTensor(
                    values=data[one.name], lengths=data[f"{one.name}__lengths"]
                )
                for one in ASKED + STEPS
            }
            return pooled, singles
        if self.tile != 3:
            jagged = self.jagged(data, SPARSE + STEPS)
            return [self.ebc(jagged)], self.ec(jagged)
        item = self.jagged(data, [o for o in SPARSE if not o.user])
        user = self.jagged(data, [o for o in SPARSE if o.user] + STEPS)
        found = self.ebc_user(user)
        tiled = found.values().tile(number(data["batch_size"]), 1)
        pooled = KeyedTensor(found.keys(), found.length_per_key(), tiled)
        asked, steps = self.ec(item), self.ec_user(user)
        singles = {one.name: asked[one.name] for one in ASKED}
        return [self.ebc(item), pooled], {
            **singles,
            **{one.name: steps[one.name] for one in STEPS},
        }

    def dense(self, data: Data) -> KeyedTensor:
        values = []
        for one in DENSE:
            found = data[f"{one.name}.values"]
            if self.tile and one.user:
                found = found.tile(number(data["batch_size"]), 1)
            values.append(found)
        return KeyedTensor(
            keys=[one.name for one in DENSE],
            length_per_key=[one.dim for one in DENSE],
            values=torch.cat(values, dim=-1),
        )

    def steps(
        self, data: Data, one: Feature, singles: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Padded steps of a sequence for each item, and how many there are."""
        lengths = data[f"{one.name}.lengths"]
        tiled = self.tile == 2 and bool(one.size)
        if not one.size:
            jagged = JaggedTensor(values=data[f"{one.name}.values"], lengths=lengths)
        elif one.many:
            counts = data[f"{one.name}.key_lengths"]
            if tiled:
                items = number(data["batch_size"])
                counts, lengths = counts.tile(items), lengths.tile(items)
            found = singles[one.name].values()
            jagged = JaggedTensor(
                values=torch.segment_reduce(found, "sum", lengths=counts),
                lengths=lengths,
            )
        else:
            jagged = singles[one.name]
        lengths = jagged.lengths()
        padded = jagged.to_padded_dense(longest(lengths))
        if self.tile and not tiled:
            items = number(data["batch_size"])
            padded, lengths = padded.tile(items, 1, 1), lengths.tile(items)
        return padded, lengths

    def forward(self, data: Data, device: torch.device = CPU) -> Data:
        pooled, singles = self.looked_up(data)
        groups = KeyedTensor.regroup_as_dict(
            [*pooled, self.dense(data)], [self.deep, self.wide], ["deep", "wide"]
        )
        asked = []
        for one in ASKED:
            way = "mean" if one.name == "tags" else "sum"
            jagged = singles[one.name]
            found = torch.segment_reduce(jagged.values(), way, lengths=jagged.lengths())
            asked.append(torch.nan_to_num(found, nan=0.0))
        query = torch.cat(asked, dim=1)
        clicks, alone = [], []
        lengths = []
        for one in SEQUENCES:
            padded, count = self.steps(data, one, singles)
            if one.name.startswith("clicks__"):
                clicks.append(padded)
                lengths.append(count)
            else:
                alone.append(padded.sum(1))
        wanted = attended(self.query(query), torch.cat(clicks, dim=-1), lengths[0])
        deep = self.norm(groups["deep"])
        parts = [deep, groups["wide"], wanted, query, *alone]
        logits = self.top(torch.cat(parts, dim=-1)).squeeze(1)
        return {"logits": logits, "probs": torch.sigmoid(logits)}


def made(tile: int) -> Grouped:
    """The same weights for each INPUT_TILE."""
    torch.manual_seed(61)
    whole = Grouped(0).eval()
    model = Grouped(tile).eval()
    weights = whole.state_dict()
    names = {n: n.replace("_user.", ".", 1) for n in model.state_dict()}
    model.load_state_dict({ours: weights[theirs] for ours, theirs in names.items()})
    return model


def quantised(model: Grouped) -> Grouped:
    kinds = [EmbeddingBagCollection, EmbeddingCollection]
    quant.quant_prep_enable_cache_features_order(model, kinds)
    quantize_embeddings(
        model,
        dtype=torch.qint8,
        inplace=True,
        additional_qconfig_spec_keys=[EmbeddingCollection],
        additional_mapping={EmbeddingCollection: quant.EmbeddingCollection},
    )
    return model


def int8(table: np.ndarray) -> np.ndarray:
    """Codes, float16 scale, float16 offset."""
    low = table.min(1, keepdims=True).astype(np.float16)
    span = table.max(1, keepdims=True) - low.astype(np.float32)
    scale = np.where(span != 0, span / 255, 1).astype(np.float16)
    codes = np.rint((table - low.astype(np.float32)) / scale.astype(np.float32))
    codes = np.clip(codes, 0, 255).astype(np.uint8)
    return np.concatenate([codes, scale.view(np.uint8), low.view(np.uint8)], 1)


def plain(stored: np.ndarray) -> np.ndarray:
    trailer = np.ascontiguousarray(stored[:, -4:]).view(np.float16).astype(np.float32)
    return stored[:, :-4].astype(np.float32) * trailer[:, :1] + trailer[:, 1:]


def write_split(folder: Path, model: Grouped, narrow: bool) -> Grouped:
    """The dense script and the tables; returns the undivided model of the same."""
    split = copy.deepcopy(model)
    split.split = True
    meta: dict[str, list[str]] = {"sequence__ec": []}
    tables: dict[str, np.ndarray] = {}
    described: dict[str, dict[str, Any]] = {}
    known: dict[str, dict[str, str]] = {}

    def add(name: str, weight: Tensor, readers: list[str], pooling: str) -> None:
        with torch.no_grad():
            table = weight.numpy().copy()
            entry: dict[str, Any] = {"dtype": "float32"}
            if narrow:
                table = int8(table)
                weight.copy_(torch.from_numpy(plain(table)))
                form = "QUint8RowwiseF16"
                entry = {
                    "dtype": form,
                    "storage_dtype": "uint8",
                    "storage_shape": list(table.shape),
                    "row_bytes": table.shape[1],
                    "quant": {"enabled": True, "format": form},
                }
        tables[name] = table
        before = described.get(name, {}).get("feat_name_impl", [])
        described[name] = {
            "feat_name_impl": before + readers,
            "dense": False,
            "is_dynamic": False,
            "dimension": weight.size(1),
            "memory": table.nbytes,
            "shape": list(weight.shape),
            **entry,
        }
        # One table for each feature: the last.
        known.update({r: {"embedding_name": name, "pooling": pooling} for r in readers})

    for part in ("ebc", "ebc_user"):
        module = getattr(model, part)
        configs = module.embedding_bag_configs()
        keys = [key for keys in get_embedding_names_by_table(configs) for key in keys]
        split.keys[f"deep__wide__{part}"] = (keys, [c.embedding_dim for c in configs])
        meta[f"deep__wide__{part}"] = [f"{key}__ebc" for key in keys]
        for one in configs:
            weight = module.embedding_bags[one.name].weight
            readers = [f"{name}__ebc" for name in one.feature_names]
            add(f"{BAGS}{one.name}", weight, readers, one.pooling.name)
    for module in (model.ec, model.ec_user):
        for one in module.embedding_configs():
            weight = module.embeddings[one.name].weight
            readers = [f"{name}__ec" for name in one.feature_names]
            add(f"{ROWS}{one.name}", weight, readers, "NONE")
            for name in one.feature_names:
                meta["sequence__ec"] += [f"{name}__ec", f"{name}__lengths"]
    del split.ebc, split.ebc_user, split.ec, split.ec_user
    acc = {"INPUT_TILE": "3", "DISTRIBUTED_EMBEDDING": "1"}
    acc |= {"DIST_QUANT": "INT8"} if narrow else {}
    write_export(folder, split, RANKING, tracer=Tracer(), **acc)
    sparse = folder / "sparse"
    sparse.mkdir()
    np.savez(sparse / "sparse_embeddings-00-of-01.npz", **tables)
    for path, content in (
        (folder / "dense_meta.json", meta),
        (sparse / "sparse_embeddings-00-of-01.json", described),
        (sparse / "sparse_embedding.json", described),
        (sparse / "sparse_features.json", known),
    ):
        path.write_text(json.dumps(content, indent=4))
    return model


def build(folder: Path) -> dict[str, Grouped]:
    """Writes every export; the undivided models of those that were split."""
    whole = {}
    for name, (tile, narrow, split) in MODELS.items():
        model = made(tile)
        if split:
            whole[name] = write_split(folder / name, model, narrow)
            continue
        acc = {"INPUT_TILE": str(tile)} if tile else {}
        acc |= {"QUANT_EC_EMB": "INT8"} if narrow else {"QUANT_EMB": "0"}
        model = quantised(model) if narrow else model
        write_export(folder / name, model, RANKING, tracer=Tracer(), **acc)
    return whole


def run(folder: Path, whole: Mapping[str, Grouped]) -> None:
    for case in sorted((folder / "cases").glob("*.npz")):
        name = case.name.partition("-")[0]
        script = whole.get(name)
        if script is None:
            script = torch.jit.load(str(folder / name / "scripted_model.pt"))
        batch = {name: torch.from_numpy(a) for name, a in np.load(case).items()}
        with torch.inference_mode():
            found = script(batch, CPU)
        outputs = {name: tensor.numpy() for name, tensor in found.items()}
        np.savez(case.with_suffix(".out.npz"), **outputs)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), build(Path(sys.argv[1])))
