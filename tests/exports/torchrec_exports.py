"""Exports made of torchrec's modules, and what their scripts compute.

A program for the environment that has torchrec: ``torchrec_exports.py FOLDER``
writes ``FOLDER/<name>`` for each model, then runs each script on the tensors in
``FOLDER/cases/<name>-<case>.npz`` and writes its outputs into ``.out.npz`` beside.
"""

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
from export_networks import CPU, Data, attended, averaged, tower, vocabulary
from torch import Tensor, nn
from torch.ao.quantization import PlaceholderObserver, QConfig
from torchrec.fx import Tracer
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollection,
    EmbeddingCollection,
)
from torchrec.quant import embedding_modules as quant
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

DIM = 16
# Name -> type of the bags' tables, type of the sequences' tables, INPUT_TILE.
MODELS: dict[str, tuple[Any, Any, int]] = {
    "trfloat": (None, None, 0),
    "trint8": (torch.qint8, torch.qint8, 0),
    "trmixed": (torch.quint4x2, torch.float16, 2),
}
QUANTISED = {torch.qint8: "INT8", torch.float16: "FP16", torch.quint4x2: "INT4"}


@torch.fx.wrap
def longest(lengths: Tensor) -> int:
    return int(lengths.max())


@torch.fx.wrap
def ids_per_row(lengths: Tensor, key_lengths: Tensor) -> Tensor:
    """Of a multi-value sequence, whose lengths count steps."""
    starts = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths.long())
    counts = key_lengths.float()
    return torch.ops.fbgemm.segment_sum_csr(1, starts, counts).int()


@torch.fx.wrap
def summed_steps(found: Tensor, key_lengths: Tensor) -> Tensor:
    return torch.segment_reduce(found, "sum", lengths=key_lengths.long(), axis=0)


@torch.fx.wrap
def for_each_item(jagged: KeyedJaggedTensor, batch_size: Tensor) -> KeyedJaggedTensor:
    """The one user row's ids, for each item."""
    keys = jagged.keys()
    places = torch.arange(len(keys), dtype=torch.int32)
    lengths, values, _ = torch.ops.fbgemm.permute_1D_sparse_data(
        places.repeat_interleave(int(batch_size)), jagged.lengths(), jagged.values()
    )
    return KeyedJaggedTensor(keys=keys, values=values, lengths=lengths)


@torch.fx.wrap
def tiled(tensor: Tensor, batch_size: Tensor) -> Tensor:
    return tensor.expand([int(batch_size)] + [-1] * (tensor.dim() - 1))


@torch.fx.wrap
def padded(values: Tensor, lengths: Tensor, length: int) -> Tensor:
    offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths.long())
    return torch.ops.fbgemm.jagged_to_padded_dense(values, [offsets], [length], 0.0)


def quantised(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    if dtype is None:
        return module
    module.qconfig = QConfig(
        activation=PlaceholderObserver.with_args(dtype=torch.float),
        weight=PlaceholderObserver.with_args(dtype=dtype),
    )
    if isinstance(module, EmbeddingBagCollection):
        return quant.EmbeddingBagCollection.from_float(module)
    return quant.EmbeddingCollection.from_float(module)


class TorchRecDin(nn.Module):
    """Bags for flat ids, a collection for the sequences, attention on the group."""

    def __init__(self, fg_json: Mapping[str, Any], bags: Any, rows: Any, tile: int):
        super().__init__()
        self.tile = tile
        flat: list[tuple[str, dict[str, Any], bool]] = []
        self.sequences: list[tuple[str, dict[str, Any], bool]] = []
        for feature in fg_json["features"]:
            side = is_user_side(feature)
            if "sequence_name" in feature:
                prefix = feature["sequence_name"]
                self.sequences += [
                    (f"{prefix}__{child['feature_name']}", child, True)
                    for child in feature["features"]
                ]
            elif feature["feature_type"].startswith("sequence_"):
                self.sequences.append((feature["feature_name"], feature, side))
            else:
                flat.append((feature["feature_name"], feature, side))
        self.dense = [(n, s) for n, f, s in flat if not vocabulary(f)]
        self.sparse = {
            side: [(n, f) for n, f, s in flat if vocabulary(f) and s == side]
            for side in (True, False)
        }
        self.user_bags = quantised(self._bags(True), bags)
        self.item_bags = quantised(self._bags(False), bags)
        self.rows = quantised(
            EmbeddingCollection(
                device=CPU,
                tables=[
                    EmbeddingConfig(
                        name=f"{name}_table",
                        embedding_dim=DIM,
                        num_embeddings=vocabulary(feature),
                        feature_names=[name],
                    )
                    for name, feature, _ in self.sequences
                    if vocabulary(feature)
                ],
            ),
            rows,
        )
        width = sum(f.get("value_dim", 1) for _, f, _ in flat if not vocabulary(f))
        width += DIM * sum(map(len, self.sparse.values()))
        widths = {
            name: DIM if vocabulary(f) else f.get("value_dim", 1)
            for name, f, _ in self.sequences
        }
        width += sum(w for n, w in widths.items() if not n.startswith("clicks__"))
        steps = sum(w for n, w in widths.items() if n.startswith("clicks__"))
        self.query = nn.Linear(width, steps)
        self.top = tower(width + steps, 32, 1)

    def _bags(self, side: bool) -> EmbeddingBagCollection:
        return EmbeddingBagCollection(
            device=CPU,
            tables=[
                EmbeddingBagConfig(
                    name=f"{name}_bag",
                    embedding_dim=DIM,
                    num_embeddings=vocabulary(feature),
                    feature_names=[name],
                )
                for name, feature in self.sparse[side]
            ],
        )

    def _for_items(self, data: Data, tensor: Tensor, side: bool) -> Tensor:
        return tiled(tensor, data["batch_size"]) if side and self.tile else tensor

    def _jagged(self, data: Data, device: torch.device, side: bool):
        keys = [name for name, _ in self.sparse[side]]
        return KeyedJaggedTensor(
            keys=keys,
            values=torch.cat([data[f"{key}.values"].to(device) for key in keys]),
            lengths=torch.cat([data[f"{key}.lengths"].to(device) for key in keys]),
        )

    def _steps(self, data: Data, device: torch.device):
        """Padded steps of each sequence, with their lengths."""
        keys = [name for name, f, _ in self.sequences if vocabulary(f)]
        many = {n for n, f, _ in self.sequences if f.get("value_dim", 1) == 0}
        lengths = [
            ids_per_row(data[f"{key}.lengths"], data[f"{key}.key_lengths"])
            if key in many
            else data[f"{key}.lengths"]
            for key in keys
        ]
        jagged = KeyedJaggedTensor(
            keys=keys,
            values=torch.cat([data[f"{key}.values"].to(device) for key in keys]),
            lengths=torch.cat(lengths).to(device),
        )
        found = self.rows(jagged)
        steps = {}
        for name, feature, side in self.sequences:
            if not vocabulary(feature):
                values = data[f"{name}.values"].to(device)
            elif name in many:
                values = summed_steps(
                    found[name].values(), data[f"{name}.key_lengths"].to(device)
                )
            else:
                values = found[name].values()
            count = data[f"{name}.lengths"].to(device)
            dense = padded(values, count, longest(count))
            steps[name] = (
                self._for_items(data, dense, side),
                self._for_items(data, count, side),
            )
        return steps

    def forward(self, data: Data, device: torch.device = CPU) -> Data:
        user = self._jagged(data, device, True)
        if self.tile:
            user = for_each_item(user, data["batch_size"])
        parts = [
            self.user_bags(user).values(),
            self.item_bags(self._jagged(data, device, False)).values(),
        ]
        for name, side in self.dense:
            values = data[f"{name}.values"].to(device)
            parts.append(self._for_items(data, values, side))
        steps = self._steps(data, device)
        clicks = [pair for name, pair in steps.items() if name.startswith("clicks__")]
        for name, (keys, lengths) in steps.items():
            if not name.startswith("clicks__"):
                parts.append(averaged(keys, lengths))
        flat = torch.cat(parts, 1)
        wanted = attended(
            self.query(flat), torch.cat([keys for keys, _ in clicks], 2), clicks[0][1]
        )
        # The weights of weighted ids are read and do not count.
        weights = data["interests.weights"].to(device).sum() * 0.0
        logits = self.top(torch.cat([flat, wanted], 1)).squeeze(1) + weights
        return {"logits": logits, "probs": torch.sigmoid(logits)}


def build(folder: Path) -> None:
    for number, (name, (bags, rows, tile)) in enumerate(MODELS.items()):
        torch.manual_seed(50 + number)
        model = TorchRecDin(RANKING, bags, rows, tile)
        acc = {"INPUT_TILE": str(tile)} if tile else {}
        acc["QUANT_EMB"] = QUANTISED.get(bags, "0")
        acc["QUANT_EC_EMB"] = QUANTISED.get(rows, "0")
        write_export(folder / name, model, RANKING, tracer=Tracer(), **acc)


def run(folder: Path) -> None:
    for case in sorted((folder / "cases").glob("*.npz")):
        export = folder / case.name.partition("-")[0]
        script = torch.jit.load(str(export / "scripted_model.pt"))
        batch = {name: torch.from_numpy(a) for name, a in np.load(case).items()}
        with torch.inference_mode():
            found = script(batch, CPU)
        outputs = {name: tensor.numpy() for name, tensor in found.items()}
        np.savez(case.with_suffix(".out.npz"), **outputs)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    build(Path(sys.argv[1]))
    run(Path(sys.argv[1]))
