"""``make memory``: what a worker costs when the weights are shared, and when not.

A model of one large embedding is served by 1, 2 and 4 workers, with its weights in
shared memory and with a copy for each worker. Every worker answers its share of
requests over HTTP first, since memory is only given when it is touched; then the
proportional set sizes (PSS) of the master and all its children are summed: every
page of the machine counts once, however many processes map it.

At the end forwards of the model on shared weights and on an own copy alternate in
one process.
"""

import argparse
import gc
import http.client
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_server import BenchServer, ServerFailed, process_tree

from procserver import shm
from procserver.model.loading import load
from procserver.model.package import open_package
from procserver.model.shared import attach, publish
from procserver.wire.pb import torch_predict_pb2 as wire

WIDTH = 64
ROWS = 100
IDS = 50
WORKERS = (1, 2, 4)
WAIT_S = 120
# The bars: MB for each worker beyond the first, seconds, ratio of forwards.
MOST_MB = 40.0
MOST_READY_S = 0.5
LEAST_RATIO = 0.95


class Scorer(torch.nn.Module):
    """A bag of embeddings and a small tower."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.bag = torch.nn.EmbeddingBag(count, WIDTH, mode="sum")
        self.tower = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 256),
            torch.nn.ReLU(),
            torch.nn.Linear(256, 64),
            torch.nn.ReLU(),
            torch.nn.Linear(64, 1),
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.tower(self.bag(ids))).squeeze(1)


@dataclass(frozen=True)
class Row:
    """One line of the table. Sizes in MB, times in seconds."""

    workers: int
    shared: bool
    total: float
    each: list[float]
    ready: float
    extra_ready: float


def write_service(folder: Path, megabytes: int, seed: int = 5) -> Path:
    """Model, warm-up request and a service JSON per way of holding weights."""
    torch.manual_seed(seed)
    count = megabytes * 2**20 // (WIDTH * 4)
    torch.jit.script(Scorer(count).eval()).save(str(folder / "model.pt"))
    (folder / "warm_up.bin").write_bytes(request(np.random.default_rng(seed), count))
    for shared in (True, False):
        document = {
            "metadata": {"name": "memory", "rpc": {"worker_threads": 1}},
            "processor": "easyrec-torch-1.12",
            "model_path": "model.pt",
            "warm_up_data_path": str(folder / "warm_up.bin"),
            "model_config": {"fg_mode": "bypass"},
            "procserver": {
                "state_dir": "state",
                "share_weights": shared,
                "pin_cores": False,
            },
        }
        (folder / f"{spelled(shared)}.json").write_text(json.dumps(document))
    return folder / "model.pt"


def spelled(shared: bool) -> str:
    return "shared" if shared else "own"


def request(rng: np.random.Generator, count: int) -> bytes:
    """A predict request of random ids, all of the table in reach."""
    message = wire.PredictRequest()
    array = message.inputs.add()
    array.dtype = wire.DT_INT64
    array.array_shape.dim.extend([ROWS, IDS])
    array.int64_val.extend(rng.integers(0, count, ROWS * IDS).tolist())
    return message.SerializeToString()


def measure(
    folder: Path, workers: int, shared: bool, megabytes: int, requests: int
) -> Row:
    """Starts a server, has every worker answer, and adds up its memory."""
    config = folder / f"{spelled(shared)}.json"
    started = time.monotonic()
    with BenchServer(config, workers=workers) as server:
        assert server.process is not None
        pids = ready_workers(server, workers)
        ready = time.monotonic() - started
        rng = np.random.default_rng(workers)
        count = megabytes * 2**20 // (WIDTH * 4)
        for connection in connections(server, pids).values():
            for _ in range(requests):
                server.post(connection, request(rng, count))
            connection.close()
        tree = process_tree(server.process.pid)
        sizes = {pid: pss(pid) for pid in tree}
        server.process.send_signal(signal.SIGTTIN)
        extra = set(ready_workers(server, workers + 1)) - set(pids)
        after_warm_up = ready_seconds(server, extra.pop())
    return Row(
        workers,
        shared,
        sum(sizes.values()),
        [sizes[pid] for pid in pids],
        ready,
        after_warm_up,
    )


def ready_workers(server: BenchServer, count: int) -> list[int]:
    """Pids of the workers that have said to be ready, once there are so many."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        text = Path(server.log.name).read_text(errors="replace")
        pids = [int(pid) for pid in re.findall(r"worker (\d+) is ready", text)]
        if len(pids) >= count:
            return pids
        time.sleep(0.05)
    raise ServerFailed(f"not {count} workers in {WAIT_S} s:\n{text[-4000:]}")


def ready_seconds(server: BenchServer, pid: int) -> float:
    """From a worker's fork until it was ready, without its warm-up."""
    text = Path(server.log.name).read_text(errors="replace")
    ready = re.search(rf"worker {pid} is ready ([\d.]+) s", text)
    warm_up = re.findall(rf"\[{pid}\].*warmed up in ([\d.]+) s", text)
    assert ready
    return float(ready[1]) - sum(float(seconds) for seconds in warm_up)


def connections(
    server: BenchServer, pids: list[int]
) -> dict[int, http.client.HTTPConnection]:
    """An open connection to every worker: whoever accepts has it."""
    found: dict[int, http.client.HTTPConnection] = {}
    deadline = time.monotonic() + WAIT_S
    while set(found) != set(pids):
        if time.monotonic() > deadline:
            raise ServerFailed("some worker takes no connection")
        connection = server.connect()
        connection.request("GET", "/v2/health/live")
        connection.getresponse().read()
        port = connection.sock.getsockname()[1]
        pid = next((pid for pid in pids if holds(pid, port)), None)
        if pid is None or pid in found:
            # Kept open for a moment: a busy worker leaves the next one to others.
            connection.close()
            time.sleep(0.01)
        else:
            found[pid] = connection
    return found


def holds(pid: int, port: int) -> bool:
    """Whether a process has the server's end of the client's TCP port."""
    inodes = {
        fields[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if (fields := line.split())[2].endswith(f":{port:04X}")
    }
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.removeprefix("socket:[").removesuffix("]") in inodes:
            return True
    return False


def pss(pid: int) -> float:
    """Proportional set size in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found[1]) * 1024 / 1e6


def forward_ratio(script: Path, megabytes: int, rounds: int, calls: int) -> float:
    """Median over rounds of (CPU time on an own copy / CPU time on shared weights).

    One thread computes, so that its CPU time, page faults included, is what a
    forward costs; the wall clock also counts whoever else uses the machine.
    """
    torch.set_num_threads(1)
    package = open_package(script)
    own = load(package)
    name = shm.segment_name("memory", shm.this_process(), "weights-1")
    publish(own, name, shm.this_process())
    gc.collect()
    shared = attach(package, name)
    shm.unlink(name)
    rng = np.random.default_rng(1)
    count = megabytes * 2**20 // (WIDTH * 4)
    batches = [
        torch.from_numpy(rng.integers(0, count, (ROWS, IDS))) for _ in range(calls)
    ]

    def seconds(module: torch.jit.ScriptModule) -> float:
        started = time.process_time()
        with torch.inference_mode():
            for batch in batches:
                module(batch)
        return time.process_time() - started

    # Both have every page in their tables before the first round.
    for model in (own, shared):
        seconds(model.module)
        for tensor in model.module.parameters():
            tensor.detach().sum()
    ratios = []
    for index in range(rounds):
        pair = (own, shared) if index % 2 else (shared, own)
        took = {id(model): seconds(model.module) for model in pair}
        ratios.append(took[id(own)] / took[id(shared)])
    return statistics.median(ratios)


def table(rows: list[Row]) -> str:
    """A Markdown table; a worker's cost is counted beyond the first."""
    lines = [
        "| weights | workers | total PSS, MB | per extra worker, MB "
        "| all ready, s | one more ready, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = next(r for r in rows if r.shared == row.shared and r.workers == 1)
        extra = (
            f"{(row.total - first.total) / (row.workers - 1):.0f}"
            if row.workers > 1
            else "-"
        )
        lines.append(
            f"| {spelled(row.shared)} | {row.workers} | {row.total:.0f} | {extra} "
            f"| {row.ready:.1f} | {row.extra_ready:.2f} |"
        )
    return "\n".join(lines)


def verdicts(rows: list[Row], ratio: float) -> list[tuple[str, bool]]:
    """The bars, in words, and whether they are met."""
    shared = {row.workers: row for row in rows if row.shared}
    most, least = max(shared), min(shared)
    extra = (shared[most].total - shared[least].total) / (most - least)
    ready = max(row.extra_ready for row in shared.values())
    return [
        (f"an extra worker costs {extra:.1f} MB (<= {MOST_MB:.0f})", extra <= MOST_MB),
        (
            f"an extra worker is ready in {ready:.2f} s (<= {MOST_READY_S}) "
            "beside its warm-up",
            ready <= MOST_READY_S,
        ),
        (
            f"forward on shared weights: {ratio:.3f} of an own copy's speed "
            f"(>= {LEAST_RATIO})",
            ratio >= LEAST_RATIO,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1024, help="embedding size")
    parser.add_argument("--requests", type=int, default=500, help="for each worker")
    parser.add_argument("--rounds", type=int, default=20, help="of forwards")
    parser.add_argument("--calls", type=int, default=100, help="forwards in a round")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    options = parser.parse_args()
    if 1 not in options.workers:
        parser.error("--workers must hold 1: the others are compared with it")
    rows = []
    with tempfile.TemporaryDirectory(prefix="procserver-memory-") as name:
        folder = Path(name)
        script = write_service(folder, options.megabytes)
        gc.collect()
        for shared in (True, False):
            for workers in options.workers:
                row = measure(
                    folder, workers, shared, options.megabytes, options.requests
                )
                rows.append(row)
                print(
                    f"{spelled(shared)}, {workers} workers: {row.total:.0f} MB, "
                    f"ready in {row.ready:.1f} s, workers "
                    + " ".join(f"{size:.0f}" for size in row.each),
                    flush=True,
                )
        ratio = forward_ratio(script, options.megabytes, options.rounds, options.calls)
    print(f"\n{options.megabytes} MiB embedding, {options.requests} requests each\n")
    print(table(rows))
    print()
    results = verdicts(rows, ratio)
    for text, met in results:
        print(("met:  " if met else "MISSED: ") + text)
    return 0 if all(met for _, met in results) else 1


if __name__ == "__main__":
    sys.exit(main())
