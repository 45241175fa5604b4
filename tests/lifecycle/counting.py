"""Small models whose score is how often they were called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from procserver import config
from procserver.config import ServiceConfig
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest

FG = {
    "features": [
        {
            "feature_type": "id_feature",
            "feature_name": "user_id",
            "expression": "user:user_id",
            "default_value": "0",
            "hash_bucket_size": 1000,
        },
        {
            "feature_type": "raw_feature",
            "feature_name": "price",
            "expression": "item:price",
            "default_value": "0",
        },
    ]
}


class Counting(torch.nn.Module):
    """The score of every item is the number of this call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.calls += 1
        rows = data["price.values"].size(0)
        return {"calls": torch.full([rows], float(self.calls))}


class Slow(torch.nn.Module):
    """The same, but a price of 777 costs a while."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.calls += 1
        rows = data["price.values"].size(0)
        if bool(data["price.values"][0, 0] == 777.0):
            one = torch.ones(64, 64)
            for _ in range(5000):
                one = torch.tanh(one @ one)
        return {"calls": torch.full([rows], float(self.calls))}


class Demanding(torch.nn.Module):
    """Fails unless some price is 1000 or more, which nobody makes up."""

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert bool((data["price.values"] >= 1000.0).any()), "too cheap"
        return {"price": data["price.values"][:, 0]}


class Positional(torch.nn.Module):
    """Takes what nobody knows."""

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return a


def write(
    folder: Path,
    name: str,
    *,
    module: torch.nn.Module | None = None,
    fg: Any = FG,
    **overrides: Any,
) -> Path:
    """Writes a service without an item cache; returns the path of its JSON."""
    export = folder / "export"
    export.mkdir(parents=True)
    torch.jit.script(module or Counting()).save(str(export / "scripted_model.pt"))
    if fg is not None:
        (export / "fg.json").write_text(json.dumps(fg))
    content: dict[str, Any] = {
        "metadata": {"name": name, "instance": 1},
        "processor": "easyrec-torch-1.12",
        "model_path": "export",
        "model_config": {"fg_mode": "normal"},
        # Calls are counted in a replica of the worker's own from the start.
        "procserver": {"state_dir": "state", "share_weights": False},
    }
    for key, value in overrides.items():
        known = content.get(key)
        content[key] = {**known, **value} if isinstance(known, dict) else value
    path = folder / "service.json"
    path.write_text(json.dumps(content))
    return path


def load(path: Path) -> ServiceConfig:
    """The configuration as a worker sees it."""
    return config.load(path, {}).service


def request(user: str = "u", prices: tuple[float, ...] = (1.5, 2.5)) -> bytes:
    """A request for some items, told apart by its user."""
    message = PBRequest()
    message.user_features["user_id"].string_feature = user
    message.item_ids.extend(str(i) for i in range(len(prices)))
    for price in prices:
        feature = message.item_features["price"].features.add()
        feature.float_feature = price
    return message.SerializeToString()
