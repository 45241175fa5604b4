"""One real server to measure: gunicorn on a loopback port, pinned to one core."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
READY_S = 180
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class ServerFailed(Exception):
    """The server did not become ready; the text holds the end of its log."""


class BenchServer:
    """``gunicorn -c conf/serve.py`` with a service JSON, for a ``with`` block."""

    def __init__(
        self, service_json: Path, *, workers: int = 1, core: int | None = None
    ) -> None:
        document = json.loads(service_json.read_text())
        self.service_json = service_json.absolute()
        self.workers = workers
        self.core = core
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.path = f"/api/predict/{document['metadata']['name']}"
        self.token: str = document.get("token", "")
        self.log = tempfile.NamedTemporaryFile(prefix="procserver-", suffix=".log")  # noqa: SIM115
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "BenchServer":
        command = [sys.executable, "-m", "gunicorn", "-c", "conf/serve.py"]
        command += ["-b", f"127.0.0.1:{self.port}", "-w", str(self.workers)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PROCSERVER_CONFIG": str(self.service_json)},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            preexec_fn=pin_to(self.core),
        )
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            if is_ready(self.url):
                return
            time.sleep(0.2)
        tail = Path(self.log.name).read_text(errors="replace")[-4000:]
        raise ServerFailed(f"{self.service_json}: the server is not ready\n{tail}")

    def stop(self) -> None:
        if self.process is None:
            return
        # At once: nobody is served any more.
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def post(self, connection: http.client.HTTPConnection, body: bytes) -> bytes:
        """One request over a connection that stays open.

        :raises ServerFailed: for any status but 200
        """
        connection.request("POST", self.path, body, {"Authorization": self.token})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            text = content.decode("utf-8", "replace")
            raise ServerFailed(f"{self.path} answered {answer.status}: {text}")
        return content

    def cpu_seconds(self) -> float:
        """User and system time of the master and all its descendants."""
        assert self.process is not None
        return sum(cpu_of(pid) for pid in process_tree(self.process.pid))


def pin_to(core: int | None) -> Callable[[], Any] | None:
    """What a child process runs first to stay on one core."""
    return None if core is None else lambda: os.sched_setaffinity(0, {core})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_ready(url: str) -> bool:
    """Whether a server at ``http://host:port`` says that it is ready."""
    host = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def process_tree(root: int) -> list[int]:
    """The process and its descendants that are alive now."""
    found = [root]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def cpu_of(pid: int) -> float:
    """Seconds of CPU time of one process, those of reaped children included."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    # The name in brackets may hold spaces: count fields after it (14..17).
    fields = text[text.rindex(")") + 2 :].split()
    return sum(int(ticks) for ticks in fields[11:15]) * TICK_S
