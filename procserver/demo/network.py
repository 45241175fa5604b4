"""The demo's ranking model: two tasks, and attention over the click history.

It follows the calling contract of TorchEasyRec exports, ``forward(data, device)``
over the tensors that FG names, and is made of plain torch operators, so that the
scripted file needs no other library.
"""

from typing import Any

import torch
from torch import Tensor, nn

from procserver.demo.features import SEQUENCE

DIM = 8  # width of every embedding
# Features whose tables the click history shares.
SHARED = ("item_id", "category", "brand")
DENSE = ("price", "rating", "stats")
DENSE_WIDTH = 5


def table_sizes(fg: dict[str, Any]) -> dict[str, int]:
    """Number of ids that each bucketized feature of an ``fg.json`` can yield.

    Features of a sequence group are named ``<sequence>__<feature>``.
    """
    sizes: dict[str, int] = {}
    for entry in fg["features"]:
        group = entry.get("sequence_name") if "features" in entry else None
        for feature in entry.get("features", [entry]):
            name = feature["feature_name"]
            size = bucket_count(feature)
            if size:
                sizes[f"{group}__{name}" if group else name] = size
    return sizes


def bucket_count(feature: dict[str, Any]) -> int:
    """Number of ids of one feature, 0 for a dense one."""
    if "boundaries" in feature:
        return len(feature["boundaries"]) + 1
    if "vocab_list" in feature:
        return len(feature["vocab_list"])
    return int(feature.get("hash_bucket_size") or feature.get("num_buckets") or 0)


def mlp(width: int, *layers: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for size in layers:
        parts += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*parts)


class Ranker(nn.Module):
    """Embeddings, target attention over the clicks, shared layers, two heads."""

    def __init__(self, fg: dict[str, Any]) -> None:
        super().__init__()
        sizes = table_sizes(fg)
        hours = f"{SEQUENCE}__hours_ago"
        self.item_id = nn.Embedding(sizes.pop("item_id"), DIM)
        self.category = nn.Embedding(sizes.pop("category"), DIM)
        self.brand = nn.Embedding(sizes.pop("brand"), DIM)
        self.hours_ago = nn.Embedding(sizes.pop(hours), DIM)
        for name in SHARED:
            sizes.pop(f"{SEQUENCE}__{name}")
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(size, DIM) for name, size in sizes.items()}
        )
        self.scale = nn.BatchNorm1d(DENSE_WIDTH)
        query = len(SHARED) * DIM
        self.attention = nn.Sequential(
            *mlp(2 * query + DIM + 1, 32, 16), nn.Linear(16, 1)
        )
        width = len(sizes) * DIM + 3 * query + DENSE_WIDTH
        self.shared = mlp(width, 96, 64)
        self.ctr = nn.Sequential(*mlp(64, 32), nn.Linear(32, 1))
        self.cvr = nn.Sequential(*mlp(64, 32), nn.Linear(32, 1))
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                # Smaller starts learn the crosses (query x click) much slower.
                nn.init.normal_(module.weight, std=0.4)

    def forward(
        self,
        data: dict[str, Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, Tensor]:
        """Scores of every row: ``probs_*`` in 0..1 and ``logits_*``, float32 [rows].

        ``cvr`` is the probability of an order given a click.
        """
        batch: dict[str, Tensor] = {}
        for key, tensor in data.items():
            batch[key] = tensor.to(device)
        query = torch.cat(
            [
                self.pool(self.item_id.weight, batch, "item_id"),
                self.pool(self.category.weight, batch, "category"),
                self.pool(self.brand.weight, batch, "brand"),
            ],
            dim=1,
        )
        clicks = self.clicks(batch, query)
        parts = [query, clicks, query * clicks]
        for name, table in self.tables.items():
            parts.append(self.pool(table.weight, batch, name))  # type: ignore[arg-type]
        dense = [batch["price.values"], batch["rating.values"], batch["stats.values"]]
        parts.append(self.scale(torch.cat(dense, dim=1)))
        hidden = self.shared(torch.cat(parts, dim=1))
        ctr = self.ctr(hidden).squeeze(1)
        cvr = self.cvr(hidden).squeeze(1)
        return {
            "logits_ctr": ctr,
            "probs_ctr": torch.sigmoid(ctr),
            "logits_cvr": cvr,
            "probs_cvr": torch.sigmoid(cvr),
        }

    def pool(self, table: Tensor, batch: dict[str, Tensor], name: str) -> Tensor:
        """One embedding per row: the mean of its ids', zeros for a row without."""
        lengths = batch[name + ".lengths"].to(torch.int64)
        starts = torch.cumsum(lengths, 0) - lengths
        return nn.functional.embedding_bag(
            batch[name + ".values"], table, starts, mode="mean"
        )

    def clicks(self, batch: dict[str, Tensor], query: Tensor) -> Tensor:
        """The click history as the target item sees it, [rows, 3 * DIM]."""
        lengths = batch["click_seq__item_id.lengths"].to(torch.int64)
        steps = int(lengths.max().item())
        keys = torch.cat(
            [
                self.steps(self.item_id.weight, batch, "click_seq__item_id", steps),
                self.steps(self.category.weight, batch, "click_seq__category", steps),
                self.steps(self.brand.weight, batch, "click_seq__brand", steps),
            ],
            dim=2,
        )
        hours = self.steps(self.hours_ago.weight, batch, "click_seq__hours_ago", steps)
        price = self.spread(
            batch["click_seq__price.values"], batch["click_seq__price.lengths"], steps
        )
        gap = (price - batch["price.values"].unsqueeze(1)).abs()
        pairs = torch.cat([keys, query.unsqueeze(1) * keys, hours, gap], dim=2)
        weights = self.attention(pairs).squeeze(2)
        held = torch.arange(steps, device=lengths.device) < lengths.unsqueeze(1)
        weights = torch.softmax(weights.masked_fill(~held, -1e9), dim=1)
        return torch.bmm(weights.unsqueeze(1), keys).squeeze(1)

    def steps(
        self, table: Tensor, batch: dict[str, Tensor], name: str, steps: int
    ) -> Tensor:
        ids = batch[name + ".values"]
        rows = nn.functional.embedding(ids, table)
        return self.spread(rows, batch[name + ".lengths"], steps)

    def spread(self, values: Tensor, lengths: Tensor, steps: int) -> Tensor:
        """Elements [total, width] as [rows, steps, width], zeros behind the last."""
        lengths = lengths.to(torch.int64)
        starts = torch.cumsum(lengths, 0) - lengths
        step = torch.arange(steps, device=values.device)
        held = step < lengths.unsqueeze(1)
        at = torch.where(held, starts.unsqueeze(1) + step, torch.zeros_like(step))
        rows = values.index_select(0, at.flatten())
        rows = rows.view(lengths.size(0), steps, values.size(1))
        return rows * held.unsqueeze(2)


def script(model: Ranker) -> torch.jit.ScriptModule:
    """The model as it is exported, in evaluation mode."""
    scripted: torch.jit.ScriptModule = torch.jit.script(model.eval())
    return scripted
