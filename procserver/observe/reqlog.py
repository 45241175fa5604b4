"""What is kept of single requests: the request log and the slow log.

The request log holds requests that ask for it (debug level 100) with their features,
``<folder>/<date_hour>/<request_id>_<random>.pb``, each a ``PBLogData``. The slow log
is a line in the service's log for each request over ``long_request_threshold``, and
with ``save_long_request`` its body as ``torch_req/<request_id>_<random>.pb``.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from procserver.config import ServiceConfig
from procserver.observe.metrics import SLOW_REQUESTS
from procserver.observe.spool import Spool
from procserver.observe.trace import Trace

log = logging.getLogger("procserver.slow")

SLOW_FOLDER = "torch_req"
LOG_FOLDER = "request_log"
HOUR = "%Y%m%d_%H"
# A request id in a line of the log.
LONGEST_ID = 128


@dataclass(frozen=True)
class RequestLog:
    """Saves requests with their features, below one folder for each hour."""

    folder: Path
    spool: Spool

    def offer(self, request_id: str, size: int, content: Callable[[], bytes]) -> bool:
        """Queues an entry; see :meth:`Spool.offer`."""
        # NOTE: wall time, for people who look for a file; nothing depends on it.
        hour = time.strftime(HOUR)
        return self.spool.offer(self.folder / hour, request_id, size, content)


@dataclass(frozen=True)
class SlowLog:
    """Notes requests that took longer than ``threshold_ns``.

    ``folder``: where their bodies are saved; None: nowhere.
    """

    threshold_ns: int
    spool: Spool
    folder: Path | None = None

    def check(self, trace: Trace, body: bytes | bytearray | memoryview) -> None:
        """Call when the request has been processed, while its body is there."""
        if trace.stop() <= self.threshold_ns:
            return
        SLOW_REQUESTS.add()
        log.warning("slow request %s", line(trace, len(body)))
        if self.folder is not None:
            saved = bytes(body)
            self.spool.offer(self.folder, trace.request_id, len(saved), lambda: saved)


def line(trace: Trace, body_bytes: int) -> str:
    """One request as one line of JSON; times in milliseconds."""
    return json.dumps(
        {
            "request_id": trace.request_id[:LONGEST_ID],
            "debug_level": trace.debug_level,
            "items": trace.items,
            "missing": trace.missing,
            "bytes": body_bytes,
            "ms": trace.milliseconds(),
        }
    )


@dataclass(frozen=True)
class Logs:
    """What one worker keeps of requests."""

    spool: Spool
    requests: RequestLog
    slow: SlowLog

    def close(self, timeout: float) -> None:
        """Writes what is queued, for as long as ``timeout`` seconds."""
        if not self.spool.close(timeout):
            log.warning("the request log was not written to its end")


def open_logs(service: ServiceConfig, workers: int) -> Logs:
    """The logs of one of ``workers`` workers, who share the service's threads."""
    model = service.model
    threads = -(-model.background_feature_thread_num // workers)
    spool = Spool(threads)
    requests = model.request_log_path or service.state_dir / LOG_FOLDER
    return Logs(
        spool,
        RequestLog(requests, spool),
        SlowLog(
            round(model.long_request_threshold_ms * 1e6),
            spool,
            slow_folder(service) if model.save_long_request else None,
        ),
    )


def slow_folder(service: ServiceConfig) -> Path:
    """``torch_req`` in the model directory, or in the state directory."""
    place = service.model_dir
    if place.is_file():
        place = place.parent
    folder = place / SLOW_FOLDER
    if os.access(folder if folder.is_dir() else place, os.W_OK):
        return folder
    return service.state_dir / SLOW_FOLDER
