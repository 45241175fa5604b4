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
# Beyond it threads cost more than a larger pass gains.
MOST_THREADS = 128


@dataclass(frozen=True)
class Settings:
    """The service and what gunicorn needs to know of it. Times in seconds."""

    service: ServiceConfig
    remarks: tuple[str, ...]
    workers: int
    threads: int
    graceful_timeout: int


@cache
def service_settings() -> Settings:
    """Reads the service JSON that ``PROCSERVER_CONFIG`` names.

    Wrong configuration ends the process with status 2 and one line a problem.
    """
    path = Path(os.environ.get("PROCSERVER_CONFIG") or DEFAULT_CONFIG)
    try:
        loaded = config.load(path)
    except ConfigError as error:
        for problem in error.problems:
            print(f"{path}: {problem}", file=sys.stderr)
        raise SystemExit(EXIT_CONFIG) from error
    service = loaded.service
    workers = service.host.workers or len(available_cores())
    return Settings(
        service=service,
        remarks=(*loaded.warnings, *loaded.notices),
        workers=workers,
        threads=_threads(service, workers),
        graceful_timeout=int(service.eas.termination_grace_period_s),
    )


def _threads(service: ServiceConfig, workers: int) -> int:
    """Request threads of one worker; the vendor counts them per service.

    Two at least, so that a health check need not wait for a request; with
    batching as many as one pass may merge, each being a request that waits.
    """
    threads = max(2, -(-service.rpc.worker_threads // workers))
    if service.rpc.batching:
        threads = max(threads, min(service.rpc.max_batch_size, MOST_THREADS) + 1)
    return threads
