"""Writes the demo service: items, model, configuration and sample requests."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from procserver.demo import bypass, service
from procserver.demo.features import fg_document, training_columns
from procserver.demo.interactions import Impressions, draw_impressions, draw_requests
from procserver.demo.network import script
from procserver.demo.requests import sample_requests
from procserver.demo.shop import draw_items, draw_map, draw_users
from procserver.demo.training import Report, train
from procserver.fg import FeatureGenerator

MANIFEST = "demo.json"
FORMAT = 1  # raised when a written demo must be written again
ROW_GROUP = 10_000


@dataclass(frozen=True, slots=True)
class Size:
    """How large a demo is and from which seed it is drawn."""

    items: int = 50_000
    requests: int = 15_000  # simulated, for training and test
    seed: int = 7

    def manifest(self) -> dict[str, int]:
        return {
            "format": FORMAT,
            "items": self.items,
            "requests": self.requests,
            "seed": self.seed,
        }


def written(directory: Path) -> dict[str, Any] | None:
    """The manifest of a demo in ``directory``, None where there is none."""
    try:
        document: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return document


def write_demo(
    directory: Path, size: Size, say: Callable[[str], None] = print
) -> Report:
    """Writes a whole demo to ``directory``, in the place of what is there.

    Everything is written aside and renamed at the end, so that a demo that exists
    is a whole one, and the old one stays until the new one is complete.
    """
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    old = directory.with_name(f".{directory.name}.old-{os.getpid()}")
    remove_leftovers(directory)
    try:
        for part in ("export", "bypass", "requests"):
            (aside / part).mkdir(parents=True)
        report = write_parts(aside, size, say)
        if directory.exists():
            directory.rename(old)
        aside.rename(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return report


def remove_leftovers(directory: Path) -> None:
    """Removes what writers that were killed left aside; their pid ends the name."""
    for path in directory.parent.glob(f".{directory.name}.partial-*"):
        pid = path.name.rpartition("-")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(path, ignore_errors=True)


def write_parts(aside: Path, size: Size, say: Callable[[str], None]) -> Report:
    rng = np.random.default_rng(size.seed)
    where = draw_map(rng)
    items = draw_items(rng, where, size.items)
    users = draw_users(rng, where, max(size.requests * 2 // 5, 100))
    requests = draw_requests(rng, items, users, size.requests)
    shown = draw_impressions(rng, items, users, requests)
    say(
        f"{len(items)} items, {len(users)} users, {len(shown.item)} impressions, "
        f"{int(shown.click.sum())} clicks, {int(shown.order.sum())} orders"
    )
    pq.write_table(items.table, aside / "items.parquet", row_group_size=ROW_GROUP)
    samples = sample_requests(items, users, requests, size.seed)
    samples[bypass.SAMPLE] = bypass.sample_request(size.seed)
    for name, body in samples.items():
        (aside / "requests" / name).write_bytes(body)

    fg = fg_document()
    write_json(aside / "export" / "fg.json", fg)
    features = FeatureGenerator(fg).transform(
        training_columns(items, users, requests, shown)
    )
    report = write_models(aside, size.seed, fg, features, shown)
    say(str(report))
    write_json(aside / "service.json", service.service_document())
    write_json(aside / "bypass.json", service.bypass_document())
    write_json(aside / MANIFEST, size.manifest())
    return report


def write_models(
    aside: Path,
    seed: int,
    fg: dict[str, Any],
    features: dict[str, Any],
    shown: Impressions,
) -> Report:
    threads = torch.get_num_threads()
    # PERF: batches are small; a second thread mostly waits, on a busy machine long.
    torch.set_num_threads(1)
    try:
        model, report = train(fg, features, shown, seed=seed)
        script(model).save(str(aside / "export" / "scripted_model.pt"))
        bypass.script_twin(seed).save(str(aside / "bypass" / "scripted_model.pt"))
    finally:
        torch.set_num_threads(threads)
    for part in ("export", "bypass"):
        write_json(aside / part / "model_acc.json", {"SPARSE_INT64": "1"})
    return report


def write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n")
