"""Starts the demo's processes, and ends each by its pid."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import procserver
from procserver.demo.call import CallError

GUNICORN_CONF = Path("conf/serve.py")
HOST = "127.0.0.1"
READY_SECONDS = 300.0
STOP_SECONDS = 60.0


@contextmanager
def child(
    command: Sequence[str], environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, so that Ctrl-C is for us to handle."""
    process = subprocess.Popen(
        command,
        env=None if environ is None else dict(environ),
        stdin=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def start_service(service_json: Path, port: int) -> Iterator[str]:
    """gunicorn with that service, and its URL once it is ready.

    :raises CallError: if it does not start
    """
    if is_taken(port):
        raise CallError(f"{HOST}:{port} is taken: --port names another one")
    command = [sys.executable, "-m", "gunicorn", "-c", str(gunicorn_conf())]
    environ = {**os.environ, "PROCSERVER_CONFIG": str(service_json.absolute())}
    with child([*command, "-b", f"{HOST}:{port}"], environ) as process:
        url = f"http://{HOST}:{port}"
        deadline = time.monotonic() + READY_SECONDS
        while not is_ready(url):
            if process.poll() is not None:
                status = process.returncode
                raise CallError(f"the service did not start: exit status {status}")
            if time.monotonic() > deadline:
                raise CallError(f"the service is not ready after {READY_SECONDS:g} s")
            time.sleep(0.1)
        yield url


def gunicorn_conf() -> Path:
    """The settings of the checkout that this is, or stands in."""
    places = (Path.cwd(), Path(procserver.__file__).resolve().parents[1])
    for place in places:
        if (place / GUNICORN_CONF).exists():
            return place / GUNICORN_CONF
    raise CallError(f"no {GUNICORN_CONF} here: run this in a checkout")


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
