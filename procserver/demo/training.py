"""Trains the demo's model on the output of FG and compares it with popularity."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from procserver.demo.interactions import SHOWN, Impressions
from procserver.demo.network import Ranker

PEAK_RATE = 1e-2


@dataclass(frozen=True, slots=True)
class Report:
    """Areas under the ROC curve on the last requests, which training never saw."""

    rows: int
    ctr: float
    cvr: float
    popular_ctr: float
    popular_cvr: float

    def __str__(self) -> str:
        return (
            f"test AUC over {self.rows} impressions:\n"
            f"         model  popularity\n"
            f"  ctr   {self.ctr:6.4f}      {self.popular_ctr:6.4f}\n"
            f"  cvr   {self.cvr:6.4f}      {self.popular_cvr:6.4f}   (clicked rows)"
        )


class FeatureRows:
    """FG's output for many rows, of which a run of neighbours can be taken."""

    def __init__(self, features: Mapping[str, npt.NDArray[Any]]) -> None:
        self.tensors = {key: torch.from_numpy(value) for key, value in features.items()}
        self.starts: dict[str, Tensor] = {}
        for key, lengths in self.tensors.items():
            if key.endswith(".lengths"):
                zero = torch.zeros(1, dtype=torch.int64)
                starts = torch.cat([zero, torch.cumsum(lengths, 0)])
                self.starts[key.removesuffix(".lengths")] = starts

    def take(self, begin: int, end: int) -> dict[str, Tensor]:
        """The tensors of rows ``begin`` to ``end`` (views)."""
        taken = {}
        for key, tensor in self.tensors.items():
            name, _, part = key.rpartition(".")
            if part == "values" and name in self.starts:
                starts = self.starts[name]
                taken[key] = tensor[int(starts[begin]) : int(starts[end])]
            else:
                taken[key] = tensor[begin:end]
        return taken


def train(
    fg: dict[str, Any],
    features: Mapping[str, npt.NDArray[Any]],
    shown: Impressions,
    *,
    seed: int,
    epochs: int = 2,
) -> tuple[Ranker, Report]:
    """A model trained on the first 85 % of the requests, tested on the rest."""
    torch.manual_seed(seed)
    model = Ranker(fg)
    rows = FeatureRows(features)
    total = len(shown.item)
    cut = total // SHOWN * 85 // 100 * SHOWN
    # At least some hundred steps also on a small demo.
    batch = SHOWN * min(max(total // SHOWN // 100, 16), 128)
    fit(model, rows, shown, cut, batch, epochs, np.random.default_rng(seed))
    model.eval()
    with torch.inference_mode():
        starts = range(cut, total, batch)
        scored = [model(rows.take(at, min(at + batch, total))) for at in starts]
    ctr = torch.cat([scores["probs_ctr"] for scores in scored]).numpy()
    cvr = torch.cat([scores["probs_cvr"] for scores in scored]).numpy()
    return model, report(shown, cut, ctr, cvr)


def fit(
    model: Ranker,
    rows: FeatureRows,
    shown: Impressions,
    cut: int,
    batch: int,
    epochs: int,
    rng: np.random.Generator,
) -> None:
    click = torch.from_numpy(shown.click.astype(np.float32))
    order = torch.from_numpy(shown.order.astype(np.float32))
    starts = np.arange(0, cut, batch)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=epochs * len(starts)
    )
    model.train()
    for _ in range(epochs):
        for begin in rng.permutation(starts).tolist():
            end = min(begin + batch, cut)
            scores = model(rows.take(begin, end))
            clicked = click[begin:end]
            # An order is only defined after a click.
            weight = clicked / clicked.sum().clamp(min=1)
            loss = binary_cross_entropy_with_logits(scores["logits_ctr"], clicked)
            loss = loss + binary_cross_entropy_with_logits(
                scores["logits_cvr"], order[begin:end], weight=weight, reduction="sum"
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def report(
    shown: Impressions,
    cut: int,
    ctr: npt.NDArray[np.float32],
    cvr: npt.NDArray[np.float32],
) -> Report:
    item, click, order = shown.item, shown.click, shown.order
    tested = click[cut:]
    popular_ctr = item_rate(item[:cut], click[:cut])
    before = np.flatnonzero(click[:cut])
    popular_cvr = item_rate(item[before], order[before])
    later = item[cut:]
    return Report(
        rows=len(later),
        ctr=auc(tested, ctr),
        cvr=auc(order[cut:][tested], cvr[tested]),
        popular_ctr=auc(tested, popular_ctr.of(later)),
        popular_cvr=auc(order[cut:][tested], popular_cvr.of(later[tested])),
    )


@dataclass(frozen=True, slots=True)
class ItemRate:
    """Smoothed share of hits per item, the overall share for an unseen item."""

    rate: npt.NDArray[np.float64]
    overall: float

    def of(self, item: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        seen = np.minimum(item, len(self.rate) - 1)
        return np.where(item < len(self.rate), self.rate[seen], self.overall)


def item_rate(item: npt.NDArray[np.int64], hit: npt.NDArray[np.bool_]) -> ItemRate:
    overall = float(hit.mean())
    hits = np.bincount(item, weights=hit)
    # Ten views of the overall rate stand for what is not known of an item.
    return ItemRate((hits + 10 * overall) / (np.bincount(item) + 10), overall)


def auc(label: npt.NDArray[np.bool_], score: npt.NDArray[Any]) -> float:
    """Probability that a positive is scored above a negative, ties counting half."""
    _, group, size = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - (size - 1) / 2  # mean rank of a group of ties
    positives = int(label.sum())
    negatives = len(label) - positives
    if not positives or not negatives:
        return 0.5
    above = middle[group][label].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
