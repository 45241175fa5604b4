"""Gunicorn's settings, derived from the service JSON."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from procserver import config
from procserver.config import ServiceConfig
from procserver.errors import ConfigError
from procserver.lifecycle.cores import allowance

DEFAULT_CONFIG = Path("conf/service.json")
EXIT_CONFIG = 2
# Threads of a worker that are left for health checks and refusals.
FRONT_THREADS = 2
MOST_THREADS = 256
# Time for a load balancer to see that readiness says 503 and to turn away.
DRAIN_SECONDS = 5.0
# Beyond it threads cost more than a larger pass gains.
MOST_MERGED = 128
# How long a worker may be silent.
HANG_SECONDS = 30.0


@dataclass(frozen=True)
class Settings:
    """The service and what gunicorn needs to know of it. Times in seconds.

    ``turns``: requests that one worker processes at once; ``threads``: those it
    may hold, waiting ones included (each has a thread, which is made when needed);
    ``drain_seconds``: the part of ``graceful_timeout`` that lets clients turn away;
    ``kill_seconds``: for how long a worker may compute one request; ``timeout``: for
    how long its main loop may be silent.
    """

    service: ServiceConfig
    remarks: tuple[str, ...]
    workers: int
    turns: int
    threads: int
    graceful_timeout: int
    drain_seconds: float
    kill_seconds: float = HANG_SECONDS
    timeout: int = int(HANG_SECONDS)


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
    workers = service.host.workers or len(allowance().cores)
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
        kill_seconds=max(
            service.host.request_kill_seconds or _silence(service),
            service.rpc.keepalive_ms / 1000,
        ),
        timeout=math.ceil(_silence(service)),
    )


def _silence(service: ServiceConfig) -> float:
    """How long a worker may be silent, as the vendor's keys say it."""
    if service.rpc.enable_service_hang_detect:
        return service.rpc.service_hang_detect_period_s or HANG_SECONDS
    return HANG_SECONDS


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
