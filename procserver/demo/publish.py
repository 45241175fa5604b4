"""How changed prices get into the demo's stream: Redis, or a file."""

import importlib.util
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from procserver.demo.call import CallError
from procserver.demo.starting import child

# The program `redis-server`, or the URL of a server that runs; empty: none.
REDIS = "PROCSERVER_REDIS"
START_SECONDS = 30.0
KEPT_ENTRIES = 100_000

Publish = Callable[[str, float], None]


def redis_choice(environ: Mapping[str, str]) -> str | None:
    """A URL, or a program to start; None where there is no Redis."""
    if importlib.util.find_spec("redis") is None:
        return None
    return environ.get(REDIS, shutil.which("redis-server") or "") or None


@contextmanager
def start_redis(program: str) -> Iterator[str]:
    """A Redis on a socket of its own, and its URL."""
    # NOTE: a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="procserver-", dir="/tmp") as folder:
        socket = f"{folder}/redis.sock"
        command = [
            program,
            *("--port", "0", "--unixsocket", socket, "--dir", folder),
            *("--save", "", "--appendonly", "no", "--loglevel", "warning"),
            *("--logfile", f"{folder}/log"),
        ]
        with child(command) as process:
            deadline = time.monotonic() + START_SECONDS
            while not answers(f"unix://{socket}"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CallError(f"{program} does not start: set {REDIS}= to go on")
                time.sleep(0.02)
            yield f"unix://{socket}"


def answers(url: str) -> bool:
    import redis

    client: Any = redis.Redis.from_url(url)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


@contextmanager
def open_stream(service_json: Path) -> Iterator[Publish]:
    """What publishes a price to the stream that the service JSON names.

    :raises CallError: if there is no such service JSON
    """
    try:
        stream = json.loads(service_json.read_text())["model_config"]["stream"]
    except FileNotFoundError:
        raise CallError(
            f"{service_json} does not exist: `procserver demo --live` without --url "
            "writes it and starts the service"
        ) from None
    if "key" not in stream:
        path = service_json.parent / stream["url"]
        yield lambda item, price: append(path, item, price)
        return
    import redis

    client: Any = redis.Redis.from_url(stream["url"])

    def add(item: str, price: float) -> None:
        fields = {"item_id": item, "price": repr(price)}
        try:
            client.xadd(stream["key"], fields, maxlen=KEPT_ENTRIES)
        except redis.RedisError as error:
            raise CallError(f"Redis: {error}") from error

    try:
        yield add
    finally:
        client.close()


def append(path: Path, item: str, price: float) -> None:
    """One line in one write, so that writers never mix theirs."""
    line = json.dumps({"item_id": item, "price": price}) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
