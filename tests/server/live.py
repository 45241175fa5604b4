"""A real gunicorn with a real service, for tests."""

from __future__ import annotations

import atexit
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHM = Path("/dev/shm")
BOOT_SECONDS = 180.0
STOP_SECONDS = 60.0
# Kept, so that one that a failed test has left is neither collected nor left behind.
STARTED: list[subprocess.Popen[bytes]] = []


@atexit.register
def _end_all() -> None:
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def segments(server: LiveServer) -> list[str]:
    """Shared-memory segments of this server's master, alive or not.

    Another run of the tests may have a service of the same name.
    """
    start = f"procserver.{server.name}.{server.pid}."
    return sorted(path.name for path in SHM.iterdir() if path.name.startswith(start))


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


@dataclass
class Answer:
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class LiveServer:
    """``gunicorn -c conf/serve.py`` on a free loopback port."""

    config: Path
    log: Path
    workers: int = 2
    env: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable
    conf: Path = ROOT / "conf" / "serve.py"
    # One core means one thread, which fixes the last bits of scores.
    core: int | None = None
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    asked: bool = False

    @property
    def name(self) -> str:
        content = json.loads(self.config.read_text())
        return str(content["metadata"]["name"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def launch(self) -> LiveServer:
        """Starts the master and returns at once."""
        self.asked = False
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    self.python,
                    *("-m", "gunicorn", "-c", str(self.conf)),
                    *("-b", f"127.0.0.1:{self.port}", "-w", str(self.workers)),
                ],
                cwd=ROOT,
                env={**os.environ, **self.env, "PROCSERVER_CONFIG": str(self.config)},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        STARTED.append(self.process)
        if self.core is not None:
            os.sched_setaffinity(self.pid, {self.core})
        return self

    def start(self) -> LiveServer:
        """Starts the master and waits until every worker is ready."""
        return self.launch().wait_ready()

    def wait_ready(self) -> LiveServer:
        deadline = time.monotonic() + BOOT_SECONDS
        while "ready: service" not in self.log.read_text(errors="replace"):
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop(expect_clean=False)
                raise AssertionError(f"the server did not start:\n{self.text()}")
            time.sleep(0.05)
        return self

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ask_to_stop(self) -> None:
        """Signals once: a second signal would end Python while it ends gunicorn."""
        assert self.process is not None
        if not self.asked and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.asked = True

    def stop(self, *, expect_clean: bool = True) -> int:
        """Ends the master by pid; returns its exit status."""
        self.ask_to_stop()
        assert self.process is not None
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait(10)
        if expect_clean:
            assert status == 0, self.text()
            assert "Traceback (most" not in self.text(), self.text()
            assert segments(self) == []
        return status

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            return exchange(connection, method, path, body, headers)
        finally:
            connection.close()

    def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        """Bytes as they are; everything that comes back until the end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            parts = []
            while chunk := sock.recv(65536):
                parts.append(chunk)
            return b"".join(parts)


def exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on an open connection."""
    connection.request(method, path, body, dict(headers or {}))
    response = connection.getresponse()
    return Answer(
        response.status,
        response.reason,
        {name.lower(): value for name, value in response.getheaders()},
        response.read(),
    )
