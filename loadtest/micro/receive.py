"""What a 10 MB body costs the server, against receiving the same bytes and no more.

A line of ``wire.py``, which has the bar; by itself: ``python -m
loadtest.micro.receive`` from the repository root. A real gunicorn worker serves a
model that looks at one value of each tensor; beside it a bare process receives the
same bytes into one warm buffer. Both are pinned to one core, the client to another;
rounds alternate, medians of CPU time per request are shown.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from procserver.demo.bypass import sample_request

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench_server import BenchServer, pin_to, process_tree

ROUNDS = 15
PER_ROUND = 20
BARE = """
import socket, sys
size = int(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sock, _ = listener.accept()
view = memoryview(bytearray(size))
while True:
    got = 0
    while got < size:
        count = sock.recv_into(view[got:])
        if not count:
            sys.exit()
        got += count
    sock.sendall(b"x")
"""


class Glance(torch.nn.Module):
    """As little of a model as there can be."""

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor
    ) -> torch.Tensor:
        return b.reshape(-1)[:1] + c.reshape(-1)[:1]


def service(folder: Path) -> Path:
    torch.jit.script(Glance()).save(str(folder / "glance.pt"))
    path = folder / "service.json"
    content = {
        "metadata": {"name": "glance"},
        "processor": "easyrec-torch-1.12",
        "model_path": "glance.pt",
        "model_config": {"fg_mode": "bypass"},
        "procserver": {"state_dir": "state"},
    }
    path.write_text(json.dumps(content))
    return path


def cpu_ns(pids: list[int]) -> int:
    """Time on a core of all threads, which must be alive, in ns."""
    return sum(
        int(stat.read_text().split()[0])
        for pid in pids
        for stat in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


def ask(sock: socket.socket, message: bytes) -> None:
    """Sends it all and takes the whole answer: one byte, or a 200."""
    sock.sendall(message)
    answer = sock.recv(65536)
    while answer != b"x" and len(answer) < answer_size(answer):
        answer += sock.recv(65536)
    assert answer == b"x" or answer.startswith(b"HTTP/1.1 200"), answer


def answer_size(answer: bytes) -> int:
    """Bytes of the whole answer, as far as its head has come."""
    head, end, _ = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    if not end or length is None:
        return len(answer) + 1
    return len(head) + 4 + int(length[1])


def measure(
    sock: socket.socket, message: bytes, pids: list[int]
) -> tuple[float, float]:
    """CPU and wall ms of one request."""
    cpu, wall = cpu_ns(pids), time.perf_counter()
    for _ in range(PER_ROUND):
        ask(sock, message)
    wall = time.perf_counter() - wall
    return (cpu_ns(pids) - cpu) / PER_ROUND / 1e6, wall / PER_ROUND * 1e3


def server_ratio() -> tuple[float, str]:
    """CPU of a request over that of receiving alone, and the figures in words."""
    cores = sorted(os.sched_getaffinity(0))
    body = sample_request(0)
    head = (
        f"POST /api/predict/glance HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
    )
    message = head.encode() + b"\r\n\r\n" + body
    bare = subprocess.Popen(
        [sys.executable, "-c", BARE, str(len(message))],
        stdout=subprocess.PIPE,
        preexec_fn=pin_to(cores[-1]),
    )
    assert bare.stdout is not None
    with (
        tempfile.TemporaryDirectory() as folder,
        BenchServer(service(Path(folder)), core=cores[-1]) as server,
        socket.create_connection(("127.0.0.1", server.port)) as ours,
        socket.create_connection(("127.0.0.1", int(bare.stdout.readline()))) as plain,
    ):
        os.sched_setaffinity(0, {cores[0]})
        assert server.process is not None
        workers = process_tree(server.process.pid)[1:]
        for _ in range(5):
            ask(ours, message)
            ask(plain, message)
        rounds = [
            (measure(ours, message, workers), measure(plain, message, [bare.pid]))
            for _ in range(ROUNDS)
        ]
    bare.wait(10)
    served = statistics.median(ours[0] for ours, _ in rounds)
    received = statistics.median(plain[0] for _, plain in rounds)
    ratio = statistics.median(ours[0] / plain[0] for ours, plain in rounds)
    wall = [statistics.median(r[i][1] for r in rounds) for i in range(2)]
    return ratio, (
        f"{len(body)} bytes: server {served:.2f} ms of CPU (wall {wall[0]:.2f}), "
        f"receiving alone {received:.2f} (wall {wall[1]:.2f})"
    )


def main() -> None:
    ratio, figures = server_ratio()
    print(f"{figures}, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
