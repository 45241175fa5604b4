"""Small models: two that are good, five that do what models should not.

All take the same features and return ``score``, ``build`` (the build number that
each item carries, as the model got it) and ``mark`` (which model it is), so that an
answer tells what it was made of. Trouble starts where the request asks for it with
the user feature ``trouble``; ``nan`` and ``leak`` need no asking. ``python
fault_models.py FOLDER`` writes them.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

FG: dict[str, Any] = {
    "features": [
        {
            "feature_type": "id_feature",
            "feature_name": "user_id",
            "expression": "user:user_id",
            "default_value": "",
            "hash_bucket_size": 100,
        },
        {
            "feature_type": "raw_feature",
            "feature_name": "trouble",
            "expression": "user:trouble",
            "default_value": "0",
        },
        {
            "feature_type": "raw_feature",
            "feature_name": "price",
            "expression": "item:price",
            "default_value": "0",
        },
        {
            "feature_type": "raw_feature",
            "feature_name": "build",
            "expression": "item:build",
            "default_value": "0",
        },
    ]
}


class Good(torch.nn.Module):
    """Answers."""

    def __init__(self, mark: float = 1.0) -> None:
        super().__init__()
        self.mark = torch.nn.Parameter(torch.full([1], mark))
        self.user = torch.nn.Parameter(torch.randn(100, 8))
        self.top = torch.nn.Linear(9, 1)

    def answer(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        price = data["price.values"]
        lengths = data["user_id.lengths"].long()
        rows = torch.repeat_interleave(torch.arange(price.size(0)), lengths)
        user = torch.zeros(price.size(0), 8)
        user = user.index_add(0, rows, self.user[data["user_id.values"]])
        score = self.top(torch.cat([user, price / 100.0], 1))[:, 0]
        return {
            "score": torch.sigmoid(score),
            "build": data["build.values"][:, 0],
            "mark": self.mark.expand(price.size(0)),
        }

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.answer(data)


class Loop(Good):
    """Never answers a request with trouble."""

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        trouble = data["trouble.values"]
        while bool((trouble > 0).any()):
            trouble = trouble + 0
        return self.answer(data)


class Hang(Good):
    """Never answers anything: a worker cannot even warm up."""

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        price = data["price.values"]
        while bool((price == price).all()):
            price = price + 0
        return self.answer(data)


class Crash(Good):
    """Takes its process down with a request that has trouble."""

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if bool((data["trouble.values"] > 0).any()):
            # Reads far beyond its input: a segmentation fault.
            lengths = torch.full([1], 1 << 40)
            torch.segment_reduce(
                data["price.values"], "sum", lengths=lengths, axis=0, unsafe=True
            )
        return self.answer(data)


class Nan(Good):
    """Scores that are no numbers."""

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = self.answer(data)
        found["score"] = found["score"] * float("nan")
        return found


class Leak(Good):
    """Keeps five megabytes of each request."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.jit.Attribute([], list[torch.Tensor])

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.kept.append(torch.ones(5 << 18))
        return self.answer(data)


MODELS = {
    "good": lambda: Good(1.0),
    "good2": lambda: Good(2.0),
    "loop": Loop,
    "hang": Hang,
    "crash": Crash,
    "nan": Nan,
    "leak": Leak,
}


def write(folder: Path, module: torch.nn.Module) -> Path:
    """An export of the module."""
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(module.eval())
    scripted.save(str(folder / "scripted_model.pt"))
    (folder / "fg.json").write_text(json.dumps(FG))
    (folder / "model_acc.json").write_text("{}")
    return folder


def write_all(folder: Path) -> Path:
    """An export of each model, by name."""
    for name, make in MODELS.items():
        torch.manual_seed(5)
        write(folder / name, make())
    return folder


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
