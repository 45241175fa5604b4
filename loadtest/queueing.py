"""``make queueing``: how near many connections on few workers come to one queue.

Requests are due at Poisson instants (an open loop: the next one is due however long
the last one takes), each goes out on a connection that is free, and its latency
counts from when it was due. The same instants and the service times that the server
measured go through a simulated first-come first-served queue with as many servers as
there are workers. Prints percentiles of both and their ratio, for each run and the
median. Service is a rest (``--work``: computation) of 20 to 30 ms, so that neither
this generator nor the machine is what is measured.
"""

import argparse
import contextlib
import heapq
import json
import os
import random
import re
import selectors
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import queueing_operators  # noqa: F401
import torch
from bench_server import BenchServer, process_tree

from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse

SERVE = Path(__file__).with_name("queueing_serve.py")
TOKEN = "cXVldWVpbmc="
DT_FLOAT = 1
BAR = 1.3
UNLOADED = 100
GIVEN_UP_S = 20.0
PERCENTS = (50, 95, 99)


class Rests(torch.nn.Module):
    """A model that sleeps."""

    def forward(self, milliseconds: torch.Tensor) -> torch.Tensor:
        return torch.ops.queueing.rest(milliseconds)


class Works(torch.nn.Module):
    """A model that computes."""

    def forward(self, milliseconds: torch.Tensor) -> torch.Tensor:
        return torch.ops.queueing.work(milliseconds)


@dataclass
class Asked:
    """One request; times in seconds. ``served``: what the server measured."""

    due: float
    wanted: float
    sent: float = 0.0
    answered: float = 0.0
    served: float = 0.0


@dataclass(eq=False)
class Client:
    """One kept-alive connection and the request that is on it."""

    sock: socket.socket
    asked: Asked | None = None
    received: bytearray = field(default_factory=bytearray)


class Generator:
    """Keeps ``connections`` open and asks in an open loop."""

    def __init__(self, server: BenchServer, connections: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._head = (
            f"POST {server.path} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: {TOKEN}\r\nContent-Length: "
        )
        # NOTE: select takes microseconds, epoll rounds up to milliseconds.
        self._selector = selectors.SelectSelector()
        self._free: list[Client] = []
        for _ in range(connections):
            sock = socket.create_connection(("127.0.0.1", server.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = Client(sock)
            self._free.append(client)
            self._selector.register(sock, selectors.EVENT_READ, client)

    def settle(self) -> None:
        """One request on each connection, one after the other."""
        for _ in range(len(self._free)):
            one = Asked(time.monotonic(), 1e-3)
            client = self._free.pop(0)
            self._send(client, one)
            while not one.answered:
                self._receive(GIVEN_UP_S)

    def unloaded(self) -> float:
        """Seconds that a lone request takes beside its service (median)."""
        beside = []
        for _ in range(UNLOADED):
            one = Asked(time.monotonic(), 5e-3)
            self._send(self._free.pop(0), one)
            while not one.answered:
                self._receive(GIVEN_UP_S)
            beside.append(one.answered - one.due - one.served)
        return statistics.median(beside)

    def run(
        self, rate: float, seconds: float, wanted: tuple[float, float]
    ) -> list[Asked]:
        """Asks ``rate`` times a second on average, until all are answered."""
        now = time.monotonic()
        end = now + seconds
        all_asked: list[Asked] = []
        due: list[Asked] = []
        while (now := now + self._random.expovariate(rate)) < end:
            due.append(Asked(now, self._random.uniform(*wanted)))
        due.reverse()
        while due or any(not one.answered for one in all_asked[-1000:]):
            now = time.monotonic()
            if now > end + GIVEN_UP_S:
                raise SystemExit("requests were not answered in time")
            while due and due[-1].due <= now and self._free:
                one = due.pop()
                free = self._random.randrange(len(self._free))
                self._send(self._free.pop(free), one)
                all_asked.append(one)
            wait = due[-1].due - time.monotonic() if due and self._free else 1.0
            self._receive(max(wait, 0.0))
        return all_asked

    def _send(self, client: Client, one: Asked) -> None:
        request = PredictRequest()
        array = request.inputs.add(dtype=DT_FLOAT)
        array.array_shape.dim.append(1)
        array.float_val.append(one.wanted * 1e3)
        body = request.SerializeToString()
        client.asked = one
        one.sent = time.monotonic()
        client.sock.sendall(f"{self._head}{len(body)}\r\n\r\n".encode() + body)

    def _receive(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            client: Client = key.data
            data = client.sock.recv(65536)
            if not data:
                raise SystemExit("the server closed a connection")
            client.received += data
            self._finish(client)

    def _finish(self, client: Client) -> None:
        head, found, rest = bytes(client.received).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not found or length is None or len(rest) < int(length[1]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answered {head!r} {rest!r}")
        one, client.asked = client.asked, None
        assert one is not None
        one.answered = time.monotonic()
        one.served = PredictResponse.FromString(rest).outputs[0].float_val[0] / 1e3
        client.received.clear()
        self._free.append(client)

    def close(self) -> None:
        for client in self._free:
            client.sock.close()
        self._selector.close()


def shared_queue(
    arrivals: Sequence[float], services: Sequence[float], servers: int
) -> list[float]:
    """Time in system of each request in a first-come first-served queue."""
    free = [float("-inf")] * servers
    times = []
    for arrival, service in zip(arrivals, services, strict=True):
        end = max(heapq.heappop(free), arrival) + service
        heapq.heappush(free, end)
        times.append(end - arrival)
    return times


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def write_service(folder: Path, work: bool) -> Path:
    model = torch.jit.script(Works() if work else Rests())
    model.save(str(folder / "model.pt"))
    path = folder / "service.json"
    document = {
        "metadata": {"name": "queueing", "instance": 1},
        "processor": "easyrec-torch-1.12",
        "token": TOKEN,
        "model_path": "model.pt",
        "model_config": {"fg_mode": "bypass"},
        "procserver": {"state_dir": "state"},
    }
    path.write_text(json.dumps(document))
    return path


def wait_for_workers(server: BenchServer, count: int) -> None:
    end = time.monotonic() + GIVEN_UP_S
    while time.monotonic() < end:
        connection = server.connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read()
        connection.close()
        if re.search(rb"(?m)^procserver_workers_ready %d(?:\.0)?$" % count, text):
            return
        time.sleep(0.1)
    raise SystemExit(
        "the workers did not become ready:\n"
        + Path(server.log.name).read_text()[-3000:]
    )


def measure(server: BenchServer, args: argparse.Namespace, seed: int) -> float:
    """One run; prints its line and returns the ratio of the 99th percentiles."""
    generator = Generator(server, args.connections, seed)
    try:
        generator.settle()
        beside = generator.unloaded()
        mean = (args.shortest + args.longest) / 2 / 1e3
        rate = args.load * args.workers / mean
        span = (args.shortest / 1e3, args.longest / 1e3)
        asked = generator.run(rate, args.seconds, span)
    finally:
        generator.close()
    asked.sort(key=lambda one: one.due)
    services = [one.served for one in asked]
    arrivals = [one.due for one in asked]
    ideal = [t + beside for t in shared_queue(arrivals, services, args.workers)]
    real = [one.answered - one.due for one in asked]
    load = sum(services) / args.workers / (arrivals[-1] - arrivals[0])
    pairs = [(percentile(real, p), percentile(ideal, p)) for p in PERCENTS]
    ratio = pairs[-1][0] / pairs[-1][1]
    late = percentile([one.sent - one.due for one in asked], 99)
    print(
        f"{len(asked):6d} requests, load {load:.2f}:"
        + "".join(
            f"  p{p} {1e3 * mine:.1f} / {1e3 * best:.1f} ms"
            for p, (mine, best) in zip(PERCENTS, pairs, strict=True)
        )
        + f"  ratio {ratio:.2f}  (sent p99 {1e3 * late:.1f} ms late,"
        f" {1e3 * beside:.1f} ms beside the service)",
        flush=True,
    )
    return ratio


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shortest", type=float, default=20.0, help="service, ms")
    parser.add_argument("--longest", type=float, default=30.0, help="service, ms")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", action="store_true", help="compute, do not rest")
    parser.add_argument(
        "--shield",
        action="store_true",
        help="real-time priority for the server too, on a machine that others use",
    )
    return parser.parse_args(argv)


def be_punctual() -> None:
    """Requests go out when they are due, whatever else runs on the machine."""
    # NOTE: needs a right that not everybody has.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def shield(server: BenchServer) -> None:
    """The same for the server: others on the machine do not hold it up.

    :raises OSError: without the right to
    """
    assert server.process is not None
    for pid in process_tree(server.process.pid):
        for task in os.listdir(f"/proc/{pid}/task"):
            os.sched_setscheduler(int(task), os.SCHED_RR, os.sched_param(1))


def main() -> int:
    args = parse()
    kind = "computing" if args.work else "resting"
    print(
        f"{args.connections} connections, {args.workers} workers, {kind} "
        f"{args.shortest:g} to {args.longest:g} ms; served / simulated shared queue",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="queueing-") as folder:
        config = write_service(Path(folder), args.work)
        with BenchServer(config, workers=args.workers, settings=SERVE) as server:
            wait_for_workers(server, args.workers)
            be_punctual()
            if args.shield:
                shield(server)
            ratios = [measure(server, args, args.seed + n) for n in range(args.runs)]
    median = statistics.median(ratios)
    print(f"median ratio of the 99th percentiles: {median:.2f} (bar {BAR})")
    return 0 if median <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
