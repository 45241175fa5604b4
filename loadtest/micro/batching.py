"""Merged requests of one worker against single ones: requests a second.

    PYTHONPATH=. python loadtest/micro/batching.py [--items 50] [--threads 8]
        [--device cpu] [--json FILE]

Threads call one model runner as request threads do: a raw loop (a lock and a bare
forward), the runner without batching, and the runner with batching. Rounds are
interleaved; a ratio over 1 means that merging pays on this device.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from procserver.model.loading import load
from procserver.model.package import open_package
from procserver.model.runner import Batching, ModelRunner
from procserver.observe.metrics import BATCHED_REQUESTS, BATCHES, REGISTRY

SECONDS = 1.0
ROUNDS = 5
TABLES = 20
ROWS_EACH = 100_000
WIDTH = 16


class Ranker(torch.nn.Module):
    """Pooled embeddings and a tower, in the tensor contract."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.bags = torch.nn.ModuleList(
            torch.nn.EmbeddingBag(ROWS_EACH, WIDTH, mode="sum") for _ in range(TABLES)
        )
        self.top = torch.nn.Sequential(
            torch.nn.Linear(TABLES * WIDTH, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, 1),
        )

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        pooled = []
        for i, bag in enumerate(self.bags):
            lengths = data[f"f{i}.lengths"].to(device)
            offsets = torch.cumsum(lengths, 0) - lengths
            pooled.append(bag(data[f"f{i}.values"].to(device), offsets))
        return {"probs": torch.sigmoid(self.top(torch.cat(pooled, 1))[:, 0])}


def request(generator: np.random.Generator, items: int) -> dict[str, np.ndarray]:
    tensors = {}
    for i in range(TABLES):
        lengths = generator.integers(1, 4, items)
        tensors[f"f{i}.values"] = generator.integers(0, ROWS_EACH, lengths.sum())
        tensors[f"f{i}.lengths"] = lengths
    return tensors


def rate(call: Callable[[dict[str, np.ndarray]], Any], requests: list, threads: int):
    """Requests a second that ``threads`` callers get."""
    counts = [0] * threads
    end = time.perf_counter() + SECONDS

    def work(index: int) -> None:
        torch.set_num_threads(1)
        while time.perf_counter() < end:
            call(requests[(index * 7 + counts[index]) % len(requests)])
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=50)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ranker.pt"
        torch.jit.script(Ranker(options.hidden).eval()).save(str(file))
        model = load(open_package(file), device=options.device)
    single = ModelRunner(model, device=options.device)
    batching = Batching(options.threads, patience=0.002, most_rows=5000)
    merging = ModelRunner(model, device=options.device, batching=batching)
    lock = threading.Lock()
    device = torch.device(options.device)

    def raw(tensors: dict[str, np.ndarray]) -> None:
        batch = {name: torch.from_numpy(array) for name, array in tensors.items()}
        with lock, torch.inference_mode():
            model.module(batch, device)["probs"].cpu()

    def merged(tensors: dict[str, np.ndarray]) -> None:
        with merging.coming():
            merging.run(tensors)

    generator = np.random.default_rng(0)
    requests = [request(generator, options.items) for _ in range(64)]
    ways = {"raw": raw, "single": single.run, "merged": merged}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, call in ways.items():
            found = rate(call, requests, options.threads)
            if turn:
                rates[name].append(found)
    mean = {name: statistics.median(found) for name, found in rates.items()}
    passes, inside = (
        metric.read(REGISTRY.block, REGISTRY.row, "")
        for metric in (BATCHES, BATCHED_REQUESTS)
    )
    result = {
        "items": options.items,
        "threads": options.threads,
        "device": options.device,
        "requests_per_second": {name: round(value) for name, value in mean.items()},
        "single_to_raw": round(mean["single"] / mean["raw"], 3),
        "merged_to_single": round(mean["merged"] / mean["single"], 3),
        "requests_per_pass": round(inside / max(1, passes), 2),
    }
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
