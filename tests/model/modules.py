"""Modules in the tensor contract, for tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from procserver.model.loading import LoadedModel, load
from procserver.model.package import open_package

MARKER = 666.0
TABLE = 50


class Contract(torch.nn.Module):
    """A dense, a weighted, a sequence of lists and a dense sequence feature.

    Fails on rows whose price is the marker. ``calls`` counts passes.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.calls = 0
        self.table = torch.nn.Parameter(torch.randn(TABLE, 4))
        self.top = torch.nn.Linear(4 + 4 + 2 + 1, 3)

    def pool(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        rows = torch.repeat_interleave(torch.arange(lengths.size(0)), lengths.long())
        out = torch.zeros(lengths.size(0), values.size(1))
        return out.index_add(0, rows, values)

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        self.calls += 1
        if bool((data["price.values"] == 666.0).any()):
            raise RuntimeError("marker")
        tags = self.table[data["tag.values"]] * data["tag.weights"][:, None]
        steps = self.pool(
            self.table.index_select(0, data["s__cat.values"]),
            data["s__cat.key_lengths"],
        )
        parts = [
            self.pool(tags, data["tag.lengths"]),
            self.pool(steps, data["s__cat.lengths"]),
            self.pool(data["s__paid.values"], data["s__paid.lengths"]),
            data["price.values"],
        ]
        logits = self.top(torch.cat(parts, 1))
        return {
            "probs": torch.sigmoid(logits[:, 0]),
            "logits": logits[:, 1:],
            "best": logits.argmax(1),
        }


def loaded(path: Path, module: torch.nn.Module, **package: object) -> LoadedModel:
    file = path / "m.pt"
    torch.jit.script(module).save(str(file))
    return load(open_package(file, **package))  # type: ignore[arg-type]


def tensors(
    generator: np.random.Generator, rows: int, *, marked: bool = False
) -> dict[str, np.ndarray]:
    """A request in the contract, with random ragged shapes."""
    tags = generator.integers(0, 3, rows)
    steps = generator.integers(0, 4, rows)
    per_step = generator.integers(0, 3, steps.sum())
    paid = generator.integers(0, 3, rows)
    price = generator.random((rows, 1), dtype=np.float32)
    if marked:
        price[-1] = MARKER
    return {
        "tag.values": generator.integers(0, TABLE, tags.sum()),
        "tag.lengths": tags,
        "tag.weights": generator.random(tags.sum(), dtype=np.float32),
        "s__cat.values": generator.integers(0, TABLE, per_step.sum()),
        "s__cat.key_lengths": per_step,
        "s__cat.lengths": steps,
        "s__paid.values": generator.random((paid.sum(), 2), dtype=np.float32),
        "s__paid.lengths": paid,
        "price.values": price,
    }
