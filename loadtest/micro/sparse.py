"""Lookups of a distributed-embedding export: microseconds per request.

Run from the repository root: ``python loadtest/micro/sparse.py [--json FILE]``. 300
items, 20 features over 4 tables of 1,000,000 rows of 16; ids are new each time, as
rows come from memory, not from a cache. torch's ``embedding_bag`` and numpy look up
the same float32 tables.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cython_ext.model_embedding import index_keys
from procserver.model.package import ModelPackage, SparseFiles
from procserver.model.sparse import SparseEmbeddings
from procserver.model.tables import SLOTS

ITEMS = 300
FEATURES = 20
TABLES = 4
ROWS = 1_000_000
DIM = 16
REQUESTS = 60

Tensors = dict[str, np.ndarray]


def package(folder: Path) -> ModelPackage:
    """The JSON files that say which feature reads which table."""
    names = [f"f{i}" for i in range(FEATURES)]
    sparse = SparseFiles(folder / "dense_meta.json", folder)
    sparse.dense_meta.write_text(json.dumps({"g__ebc": [n + "__ebc" for n in names]}))
    described = {
        f"f{i}__ebc": {"embedding_name": f"t{i % TABLES}", "pooling": "SUM"}
        for i in range(FEATURES)
    }
    sparse.features.write_text(json.dumps(described))
    return ModelPackage(folder, folder / "none.pt", None, 3, "bench", sparse=sparse)


def requests(per_item: int) -> list[Tensors]:
    rng = np.random.default_rng(3)
    lengths = np.full(ITEMS, per_item, np.int32)
    return [
        {
            f"f{i}.{part}": array
            for i in range(FEATURES)
            for part, array in (
                ("values", rng.integers(0, ROWS, ITEMS * per_item)),
                ("lengths", lengths),
            )
        }
        for _ in range(REQUESTS)
    ]


def by_torch(tables: list[torch.Tensor]) -> Callable[[Tensors], object]:
    def look_up(tensors: Tensors) -> torch.Tensor:
        parts = []
        for i in range(FEATURES):
            ids = torch.from_numpy(tensors[f"f{i}.values"])
            lengths = torch.from_numpy(tensors[f"f{i}.lengths"]).long()
            offsets = torch.cumsum(lengths, 0) - lengths
            parts.append(
                torch.nn.functional.embedding_bag(
                    ids, tables[i % TABLES], offsets, mode="sum"
                )
            )
        return torch.cat(parts, 1)

    return look_up


def by_numpy(tables: list[np.ndarray]) -> Callable[[Tensors], object]:
    def look_up(tensors: Tensors) -> np.ndarray:
        parts = []
        for i in range(FEATURES):
            lengths = tensors[f"f{i}.lengths"]
            rows = tables[i % TABLES][tensors[f"f{i}.values"]]
            starts = np.cumsum(lengths) - lengths
            parts.append(np.add.reduceat(rows, starts, axis=0))
        return np.concatenate(parts, 1)

    return look_up


def microseconds(call: Callable[[Tensors], object], given: list[Tensors]) -> float:
    """The median over requests with ids of their own."""
    took = []
    for tensors in given:
        start = time.perf_counter()
        call(tensors)
        took.append(time.perf_counter() - start)
    return float(np.median(took)) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    plain = [rng.random((ROWS, DIM), np.float32) for _ in range(TABLES)]
    codes = [
        np.concatenate([(t * 255).astype(np.uint8), np.zeros((ROWS, 4), np.uint8)], 1)
        for t in plain
    ]
    slots, _ = index_keys(np.arange(ROWS - 1))
    forms: dict[str, Tensors] = {
        "float32": {f"t{i}": t for i, t in enumerate(plain)},
        "float16": {f"t{i}": t.astype(np.float16) for i, t in enumerate(plain)},
        "INT8": {f"t{i}": t for i, t in enumerate(codes)},
    }
    forms["keyed float32"] = forms["float32"] | {
        f"t{i}{SLOTS}": slots for i in range(TABLES)
    }
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        export = package(Path(folder))
        calls: dict[str, Callable[[Tensors], object]] = {
            form: SparseEmbeddings(export, tables).join
            for form, tables in forms.items()
        }
        calls["torch embedding_bag"] = by_torch([torch.from_numpy(t) for t in plain])
        calls["numpy"] = by_numpy(plain)
        for per_item in (1, 10):
            for name, call in calls.items():
                label = f"{name}, {per_item} a row"
                found[label] = microseconds(call, requests(per_item))
                print(f"{label:32} {found[label]:8.1f} us for {ITEMS} items")
    if arguments.json:
        with open(arguments.json, "w") as out:
            json.dump({"rows": ITEMS, "microseconds": found}, out)


if __name__ == "__main__":
    main()
