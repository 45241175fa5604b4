"""Gunicorn's settings, derived from the service JSON."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from procserver import config
from procserver.config import ServiceConfig
from procserver.errors import ConfigError
from procserver.lifecycle.cores import available_cores

DEFAULT_CONFIG = Path("conf/service.json")
EXIT_CONFIG = 2
# Threads of a worker that are left for health checks and refusals.
FRONT_THREADS = 2
MOST_THREADS = 256
# Time for a load balancer to see that readiness says 503 and to turn away.
DRAIN_SECONDS = 5.0
# Beyond it threads cost more than a larger pass gains.
MOST_MERGED = 128


@dataclass(frozen=True)
class Settings:
    """The service and what gunicorn needs to know of it. Times in seconds.

    ``turns``: requests that one worker processes at once; ``threads``: those it
    may hold, waiting ones included (each has a thread, which is made when needed);
    ``drain_seconds``: the part of ``graceful_timeout`` that lets clients turn away.
    """

    service: ServiceConfig
    remarks: tuple[str, ...]
    workers: int
    turns: int
    threads: int
    graceful_timeout: int
    drain_seconds: float


@cache
def service_settings() -> Settings:
    """What the service was started with.

    Wrong configuration ends the process with status 2 and one line a problem.
    """
    try:
        return read_settings()
    except ConfigError as error:
        for problem in error.problems:
            print(f"{config_path()}: {problem}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from error


def config_path() -> Path:
    """The service JSON that ``PROCSERVER_CONFIG`` names."""
    return Path(os.environ.get("PROCSERVER_CONFIG") or DEFAULT_CONFIG)


def read_settings() -> Settings:
    """Reads the service JSON as it is now.

    :raises ConfigError: with every problem found
    """
    loaded = config.load(config_path())
    service = loaded.service
    workers = service.host.workers or len(available_cores())
    return Settings(
        service=service,
        remarks=(*loaded.warnings, *loaded.notices),
        workers=workers,
        turns=_turns(service, workers),
        # NOTE: all that wait may wait at one worker.
        threads=min(
            MOST_THREADS,
            max(
                service.rpc.worker_threads + service.rpc.max_queue_size,
                _turns(service, workers),
            )
            + FRONT_THREADS,
        ),
        graceful_timeout=int(service.eas.termination_grace_period_s),
        drain_seconds=_window(service),
    )


def _window(service: ServiceConfig) -> float:
    given = service.host.drain_seconds
    if given is None:
        return min(DRAIN_SECONDS, service.eas.termination_grace_period_s / 2)
    return given


def _turns(service: ServiceConfig, workers: int) -> int:
    """Requests that one worker processes; the vendor counts them per service.

    With batching as many as one pass may merge, each being a request that waits.
    """
    turns = -(-service.rpc.worker_threads // workers)
    if service.rpc.batching:
        turns = max(turns, min(service.rpc.max_batch_size, MOST_MERGED) + 1)
    return turns
