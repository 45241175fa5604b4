"""``make bench``: what the server costs beside the model alone.

For each subject, rounds of two kinds alternate: forwards of the TorchScript model on
ready tensors, and requests to a server with one worker that serves the same model.
Both run on the same core, the client on another. Medians over the rounds are printed,
and their ratio: 1.00 would be a server that costs nothing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import workload
from bench_server import ROOT, BenchServer, ServerFailed, pin_to

from procserver.wire.pb import torchrec_predict_pb2 as torchrec

WARM_UP = 30
# Read before this process pins itself.
ALLOWED = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Round:
    """Milliseconds per forward or request in one round."""

    cpu: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Result:
    """Medians over the rounds, in milliseconds."""

    subject: str
    items: int
    rounds: int
    raw_cpu: float
    server_cpu: float
    raw_wall: float
    server_wall: float
    server_p99: float
    cpu_ratio: float  # the share of the server's core that is the model
    wall_ratio: float
    equal: bool  # the server's scores are the raw ones, bit for bit


class RawChild:
    """The raw forward loop in a process of its own on the given core."""

    def __init__(self, service_json: Path, requests: list[Path], core: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("raw.py"))]
        command += [str(service_json), *map(str, requests)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=pin_to(core),
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        self.scores: dict[str, list[float]] = self.answer()["scores"]

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the raw loop ended with {self.process.wait()}")
        return json.loads(line)

    def round(self, count: int) -> Round:
        assert self.process.stdin is not None
        print(count, file=self.process.stdin, flush=True)
        timed = self.answer()
        return summary(timed["cpu"] / 1e9, timed["walls"])

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def summary(cpu_s: float, walls_ns: list[int]) -> Round:
    walls = sorted(walls_ns)
    return Round(
        cpu=cpu_s * 1e3 / len(walls),
        p50=walls[len(walls) // 2] / 1e6,
        p99=walls[min(len(walls) - 1, len(walls) * 99 // 100)] / 1e6,
    )


def server_round(server: BenchServer, bodies: list[bytes], count: int) -> Round:
    connection = server.connect()
    walls = []
    try:
        server.post(connection, bodies[0])
        cpu = server.cpu_seconds()
        for at in range(count):
            body = bodies[at % len(bodies)]
            started = time.perf_counter_ns()
            server.post(connection, body)
            walls.append(time.perf_counter_ns() - started)
        return summary(server.cpu_seconds() - cpu, walls)
    finally:
        connection.close()


def same_scores(server: BenchServer, body: bytes, raw: dict[str, list[float]]) -> bool:
    """Whether the server's answer holds exactly the raw scores."""
    connection = server.connect()
    response = torchrec.PBResponse()
    response.ParseFromString(server.post(connection, body))
    connection.close()
    outputs = response.map_outputs
    return len(outputs) > 0 and all(
        list(array.float_val) == raw[name] for name, array in outputs.items()
    )


def measure(
    subject: str, service_json: Path, requests: list[Path], args: argparse.Namespace
) -> Result:
    client_core, server_core = cores()
    os.sched_setaffinity(0, {client_core})
    bodies = [path.read_bytes() for path in requests]
    first = torchrec.PBRequest()
    first.ParseFromString(bodies[0])
    raw = RawChild(service_json, requests, server_core)
    with BenchServer(service_json, core=server_core) as server:
        equal = same_scores(server, bodies[0], raw.scores)
        server_round(server, bodies, WARM_UP)
        speed = raw.round(WARM_UP)
        count = max(10, int(args.seconds * 1e3 / speed.p50))
        raws, served = [], []
        for _ in range(args.rounds):
            raws.append(raw.round(count))
            served.append(server_round(server, bodies, count))
    raw.stop()
    raw_cpu = statistics.median(r.cpu for r in raws)
    server_cpu = statistics.median(r.cpu for r in served)
    raw_wall = statistics.median(r.p50 for r in raws)
    server_wall = statistics.median(r.p50 for r in served)
    return Result(
        subject=subject,
        items=len(first.item_ids),
        rounds=args.rounds,
        raw_cpu=raw_cpu,
        server_cpu=server_cpu,
        raw_wall=raw_wall,
        server_wall=server_wall,
        server_p99=statistics.median(r.p99 for r in served),
        cpu_ratio=statistics.median(
            r.cpu / s.cpu for r, s in zip(raws, served, strict=True)
        ),
        wall_ratio=statistics.median(
            r.p50 / s.p50 for r, s in zip(raws, served, strict=True)
        ),
        equal=equal,
    )


def cores() -> tuple[int, int]:
    """The client's core and the server's."""
    return ALLOWED[0], ALLOWED[-1]


def print_results(results: list[Result]) -> None:
    print(
        f"\n{'':10} {'':5} {'CPU ms per request':^28}   {'wall ms, p50':^28} {'p99':>7}"
    )
    print(
        f"{'subject':10} {'items':>5} {'forward':>9} {'server':>9} {'ratio':>8}"
        f"   {'forward':>9} {'server':>9} {'ratio':>8} {'server':>7}  scores"
    )
    for r in results:
        print(
            f"{r.subject:10} {r.items:5d} {r.raw_cpu:9.2f} {r.server_cpu:9.2f} "
            f"{r.cpu_ratio:8.3f}   {r.raw_wall:9.2f} {r.server_wall:9.2f} "
            f"{r.wall_ratio:8.3f} {r.server_p99:7.2f}  "
            f"{'equal' if r.equal else 'DIFFERENT'}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=ROOT / "demo")
    parser.add_argument("--data", type=Path, default=ROOT / "loadtest" / "data")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="of forwards in a round"
    )
    parser.add_argument("--items", type=int, default=300, help="items per request")
    parser.add_argument(
        "--subject", choices=("workload", "demo"), help="only one of the two"
    )
    parser.add_argument("--json", type=Path, help="also write the results here")
    return parser.parse_args()


def main() -> int:
    args = parse()
    subjects: list[tuple[str, Path, list[Path]]] = []
    if args.subject in (None, "workload"):
        folder = workload.build(args.data)
        found = sorted((folder / "requests").glob(f"rank_{args.items}_*.pb"))
        subjects.append(("workload", folder / "service.json", found))
    if args.subject in (None, "demo"):
        found = sorted((args.demo / "requests").glob(f"rank_{args.items}.pb"))
        subjects.append(("demo", args.demo / "service.json", found))
    client, server = cores()
    where = "the same core" if client == server else f"core {client}"
    print(
        f"one worker on core {server}, client on {where}; "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    results = []
    for name, service_json, requests in subjects:
        if not requests:
            print(f"{name}: no requests of {args.items} items", file=sys.stderr)
            return 2
        try:
            results.append(measure(name, service_json, requests, args))
        except ServerFailed as error:
            print(error, file=sys.stderr)
            return 1
    print_results(results)
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    return 0 if all(r.equal for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
