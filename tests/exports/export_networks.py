"""Plain-torch ranking models and towers in the tensor contract of an export.

Written so that FX traces them into one flat forward over ``data['...']``, as the
exporter does: branches on ``tile`` are taken while tracing, everything that depends
on data is in the wrapped functions. TorchScript reads the annotations, so they are
not postponed.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, Dict, List  # noqa: UP035 (TorchScript of FX code)

import torch
import torch.fx
from export_features import is_user_side
from torch import Tensor, nn

Data = Dict[str, Tensor]  # noqa: UP006
# Name of the tensors, entry of fg.json, whether a tiled export has one row of it.
Entry = tuple[str, dict[str, Any], bool]
CPU = torch.device("cpu")
BUCKETIZED = ("hash_bucket_size", "num_buckets", "vocab_list", "vocab_dict")


@torch.fx.wrap
def pooled(table: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Sum of the embeddings of each row."""
    offsets = torch.cumsum(lengths, 0) - lengths
    return nn.functional.embedding_bag(values, table, offsets, mode="sum")


@torch.fx.wrap
def pooled_by_weight(
    table: Tensor, values: Tensor, lengths: Tensor, weights: Tensor
) -> Tensor:
    offsets = torch.cumsum(lengths, 0) - lengths
    return nn.functional.embedding_bag(
        values, table, offsets, mode="sum", per_sample_weights=weights
    )


@torch.fx.wrap
def dequantised(codes: Tensor, scale: Tensor, offset: Tensor, values: Tensor) -> Tensor:
    """Rows of an INT8 table: one scale and one offset per row."""
    found = nn.functional.embedding(values, codes).float()
    return found * scale.float()[values].unsqueeze(1) + offset.float()[
        values
    ].unsqueeze(1)


@torch.fx.wrap
def summed_rows(found: Tensor, lengths: Tensor) -> Tensor:
    rows = torch.repeat_interleave(torch.arange(lengths.size(0)), lengths.long())
    out = torch.zeros(lengths.size(0), found.size(1), device=found.device)
    return out.index_add(0, rows, found)


@torch.fx.wrap
def summed_steps(found: Tensor, key_lengths: Tensor) -> Tensor:
    """One vector per step. NOTE: fails on a batch without any step, like exports."""
    return torch.segment_reduce(found, "sum", lengths=key_lengths.long(), axis=0)


@torch.fx.wrap
def padded(steps: Tensor, lengths: Tensor) -> Tensor:
    """[sum of steps, D] to [R, longest, D]; fails for no rows, like exports."""
    longest = int(lengths.max())
    mask = torch.arange(longest) < lengths.unsqueeze(1)
    out = torch.zeros(lengths.size(0), longest, steps.size(1), device=steps.device)
    out[mask] = steps
    return out


@torch.fx.wrap
def tiled(tensor: Tensor, batch_size: Tensor) -> Tensor:
    """The one user row (ids, lengths, numbers or embeddings), for each item."""
    shape = [int(batch_size)] + [1] * (tensor.dim() - 1)
    return tensor.repeat(shape)


@torch.fx.wrap
def attended(query: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
    """Softmax attention of [B, D] on [B, T, D]."""
    scores = (keys * query.unsqueeze(1)).sum(2)
    beyond = torch.arange(keys.size(1)) >= lengths.unsqueeze(1)
    scores = scores.masked_fill(beyond, float("-inf"))
    return (torch.softmax(scores, 1).unsqueeze(2) * keys).sum(1)


@torch.fx.wrap
def averaged(keys: Tensor, lengths: Tensor) -> Tensor:
    return keys.sum(1) / lengths.unsqueeze(1)


@torch.fx.wrap
def concatenated(parts: List[Tensor]) -> Tensor:  # noqa: UP006
    return torch.cat(parts, 1)


def vocabulary(feature: Mapping[str, Any]) -> int:
    """How many ids a feature has; 0: it is dense."""
    for key in BUCKETIZED[:2]:
        if key in feature:
            return int(feature[key])
    if "boundaries" in feature:
        return len(feature["boundaries"]) + 1
    listed = feature.get("vocab_list") or feature.get("vocab_dict")
    if listed:
        return len(listed) + 2
    return 8 if "vocab_file" in feature else 0


class Table(nn.Module):
    """An embedding table in float32, in float16, or in INT8 codes."""

    def __init__(self, rows: int, dim: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        weight = torch.randn(rows, dim) / math.sqrt(dim)
        if kind == "int8":
            low, high = weight.min(1).values, weight.max(1).values
            scale = ((high - low) / 255).half()
            codes = ((weight - low[:, None]) / scale.float()[:, None]).round()
            self.register_buffer("codes", codes.clamp(0, 255).to(torch.uint8))
            self.register_buffer("scale", scale)
            self.register_buffer("offset", low.half())
        elif kind == "fp16":
            self.register_buffer("weight", weight.half())
        else:
            self.weight = nn.Parameter(weight)

    def rows(self, values: Tensor) -> Tensor:
        if self.kind == "int8":
            return dequantised(self.codes, self.scale, self.offset, values)
        return nn.functional.embedding(values, self.weight).float()

    def sums(
        self, values: Tensor, lengths: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        if self.kind != "fp32":
            return summed_rows(self.rows(values), lengths)
        if weights is not None:
            return pooled_by_weight(self.weight, values, lengths, weights)
        return pooled(self.weight, values, lengths)


class Features(nn.Module):
    """Reads every feature of an fg.json: flat vectors and padded sequences.

    ``tile`` 0: all features have a row for each item. 2: the one user row's ids
    are tiled, then looked up. 3: it is looked up, then its embeddings are tiled.
    """

    def __init__(
        self, fg_json: Mapping[str, Any], *, tile: int, dim: int, tables: str
    ) -> None:
        super().__init__()
        self.tile = tile
        self.dim = dim
        self.tables = nn.ModuleDict()
        self.flat: list[Entry] = []
        self.alone: list[Entry] = []
        self.group: list[Entry] = []
        for feature in fg_json["features"]:
            user = is_user_side(feature)
            if "sequence_name" in feature:
                for child in feature["features"]:
                    name = f"{feature['sequence_name']}__{child['feature_name']}"
                    self.group.append((name, child, user))
            elif feature["feature_type"].startswith("sequence_"):
                self.alone.append((feature["feature_name"], feature, user))
            else:
                self.flat.append((feature["feature_name"], feature, user))
        for name, feature, _ in [*self.flat, *self.alone, *self.group]:
            if vocabulary(feature):
                self.tables[name] = Table(vocabulary(feature), dim, tables)

    @property
    def flat_width(self) -> int:
        return sum(self._width(f) for _, f, _ in [*self.flat, *self.alone])

    def _width(self, feature: Mapping[str, Any]) -> int:
        return self.dim if vocabulary(feature) else feature.get("value_dim", 1)

    @property
    def group_width(self) -> int:
        return sum(self._width(f) for _, f, _ in self.group)

    def read(self, data: Data, device: torch.device, key: str, *, ids: bool) -> Tensor:
        """A tensor on the device; what tile 2 repeats, repeated."""
        tensor = data[key].to(device)
        if ids and self.tile == 2:
            return tiled(tensor, data["batch_size"])
        return tensor

    def spread(self, data: Data, tensor: Tensor, *, user: bool) -> Tensor:
        if user and self.tile == 3:
            return tiled(tensor, data["batch_size"])
        return tensor

    def vector(self, data: Data, device: torch.device, one: Entry) -> Tensor:
        name, feature, user = one
        values = self.read(data, device, f"{name}.values", ids=user)
        if vocabulary(feature):
            lengths = self.read(data, device, f"{name}.lengths", ids=user)
            weights = None
            if feature.get("weighted"):
                weights = self.read(data, device, f"{name}.weights", ids=user)
            values = self.tables[name].sums(values, lengths, weights)
        return self.spread(data, values, user=user)

    def steps(
        self, data: Data, device: torch.device, one: Entry
    ) -> tuple[Tensor, Tensor]:
        """Padded steps [rows, longest, width] and their lengths."""
        name, feature, user = one
        found = self.read(data, device, f"{name}.values", ids=user)
        lengths = self.read(data, device, f"{name}.lengths", ids=user)
        if vocabulary(feature):
            found = self.tables[name].rows(found)
            if feature.get("value_dim", 1) != 1:
                keys = self.read(data, device, f"{name}.key_lengths", ids=user)
                found = summed_steps(found, keys)
        found = self.spread(data, padded(found, lengths), user=user)
        return found, self.spread(data, lengths, user=user)

    def forward(
        self, data: Data, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All flat features, the group's steps, and how many there are."""
        parts = [self.vector(data, device, one) for one in self.flat]
        for one in self.alone:
            keys, lengths = self.steps(data, device, one)
            parts.append(averaged(keys, lengths))
        flat = concatenated(parts)
        if not self.group:
            return flat, flat, flat
        read = [self.steps(data, device, one) for one in self.group]
        return flat, torch.cat([keys for keys, _ in read], 2), read[0][1]


def tower(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Din(nn.Module):
    """Attention of the item's features on the clicked ones; one task."""

    def __init__(self, fg_json: Mapping[str, Any], *, tile: int = 0) -> None:
        super().__init__()
        self.features = Features(fg_json, tile=tile, dim=8, tables="fp32")
        width, steps = self.features.flat_width, self.features.group_width
        self.query = nn.Linear(width, steps)
        self.top = tower(width + steps, 32, 1)

    def forward(self, data: Data, device: torch.device = CPU) -> Data:
        flat, clicks, lengths = self.features(data, device)
        wanted = attended(self.query(flat), clicks, lengths)
        logits = self.top(torch.cat([flat, wanted], 1)).squeeze(1)
        return {"logits": logits, "probs": torch.sigmoid(logits)}


class WideAndDeep(nn.Module):
    """num_class 2 on INT8 tables."""

    def __init__(self, fg_json: Mapping[str, Any]) -> None:
        super().__init__()
        self.features = Features(fg_json, tile=0, dim=8, tables="int8")
        self.wide = nn.Linear(self.features.flat_width, 2)
        self.deep = tower(self.features.flat_width, 32, 2)

    def forward(self, data: Data, device: torch.device = CPU) -> Data:
        flat, _, _ = self.features(data, device)
        logits = self.wide(flat) + self.deep(flat)
        probs = torch.softmax(logits, 1)
        return {"logits": logits, "probs": probs, "probs1": probs[:, 1]}


class MultiTask(nn.Module):
    """A shared bottom on FP16 tables, two classifiers and a regression."""

    def __init__(self, fg_json: Mapping[str, Any]) -> None:
        super().__init__()
        self.features = Features(fg_json, tile=0, dim=8, tables="fp16")
        self.bottom = tower(self.features.flat_width, 32)
        self.ctr, self.cvr, self.stay = tower(32, 8, 1), tower(32, 8, 1), tower(32, 1)

    def forward(self, data: Data, device: torch.device = CPU) -> Data:
        flat, _, _ = self.features(data, device)
        shared = self.bottom(flat)
        ctr, cvr = self.ctr(shared).squeeze(1), self.cvr(shared).squeeze(1)
        return {
            "logits_ctr": ctr,
            "probs_ctr": torch.sigmoid(ctr),
            "logits_cvr": cvr,
            "probs_cvr": torch.sigmoid(cvr),
            "y_stay": self.stay(shared).squeeze(1),
        }


class UserTower(nn.Module):
    """L2-normalised; with ``interests`` several vectors for each user (MIND)."""

    def __init__(self, fg_json: Mapping[str, Any], *, interests: int = 0) -> None:
        super().__init__()
        self.features = Features(fg_json, tile=0, dim=8, tables="fp32")
        width = self.features.flat_width + self.features.group_width
        self.interests = interests
        self.top = tower(width, 32, 16 * max(interests, 1))

    def forward(self, data: Data, device: torch.device = CPU) -> Data:
        flat, clicks, lengths = self.features(data, device)
        vector = self.top(torch.cat([flat, averaged(clicks, lengths)], 1))
        if self.interests:
            vector = vector.reshape(-1, self.interests, 16)
        return {"user_tower_emb": nn.functional.normalize(vector, dim=-1)}


class ItemTower(nn.Module):
    def __init__(self, fg_json: Mapping[str, Any]) -> None:
        super().__init__()
        self.features = Features(fg_json, tile=0, dim=8, tables="fp32")
        self.top = tower(self.features.flat_width, 32, 16)

    def forward(self, data: Data, device: torch.device = CPU) -> Data:
        flat, _, _ = self.features(data, device)
        return {"item_tower_emb": nn.functional.normalize(self.top(flat), dim=-1)}
