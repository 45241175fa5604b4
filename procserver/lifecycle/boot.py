"""The master: from ``gunicorn -c conf/serve.py`` to workers that answer.

The master reads the configuration, reclaims what dead owners left in shared
memory, starts the refresher and waits for the first cache generation,
supervises. It imports torch, so that workers share the pages, and never runs
an operator: a fork after a parallel operator hangs in the child.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from dataclasses import dataclass, field
from typing import Any

from gunicorn.errors import HaltServer

from procserver.config import ServiceConfig
from procserver.config.fetch import fetch
from procserver.errors import ServiceError
from procserver.lifecycle.admission import SharedCounts
from procserver.lifecycle.process import run_in_child
from procserver.lifecycle.refresher import Refresher
from procserver.lifecycle.reports import Reports
from procserver.lifecycle.settings import Settings, service_settings
from procserver.shm import reclaim

EXIT_NOT_STARTED = 4


@dataclass
class Master:
    """State of the arbiter process; workers see the copy made at their fork."""

    settings: Settings
    refresher: Refresher | None = None
    control_name: str | None = None
    has_been_ready: bool = False
    halting: bool = False
    # By worker age, gunicorn's serial number of workers: the slot (which stands
    # for a set of cores), the pipe, and who has reported to be ready.
    slots: dict[int, int] = field(default_factory=dict)
    reports: dict[int, Reports] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    started: float = field(default_factory=time.monotonic)
    counts: SharedCounts = field(default_factory=SharedCounts)

    @property
    def service(self) -> ServiceConfig:
        return self.settings.service


_master: Master | None = None


def master() -> Master:
    """The state that :func:`on_starting` made."""
    if _master is None:
        raise RuntimeError("the service has not been started")
    return _master


def on_starting(server: Any) -> None:
    """Gunicorn hook: in the master, before the sockets are opened."""
    global _master
    _log_through(server.log)
    settings = service_settings()
    state = _master = Master(settings)
    for remark in settings.remarks:
        server.log.info("config: %s", remark)
    service = settings.service
    server.log.info(
        "service %s: fg_mode %s, hash %s",
        service.name,
        service.model.fg_mode,
        "FarmHash" if service.envs.farm_hash else "std::hash",
    )
    # Vendor switches such as PYTORCH_TENSOREXPR_FALLBACK are torch's own.
    os.environ.update(service.envs.raw)
    try:
        if service.engine != "torch":
            raise ServiceError(
                f"processor {service.processor!r}: TensorFlow models are not served yet"
            )
        if service.copies:
            run_in_child(lambda: _fetch_copies(service))
        removed = reclaim()
        if removed:
            server.log.info("removed %d shared segments of dead owners", removed)
        if service.item_source is not None:
            state.refresher = Refresher(service, service.item_source)
            state.control_name = state.refresher.control_name
            state.refresher.start([])
        _import_for_workers()
        if state.refresher is not None:
            state.refresher.wait_for_first_generation()
    except ServiceError as error:
        server.log.error("service %s cannot start: %s", service.name, error)
        on_exit(server)
        raise SystemExit(EXIT_NOT_STARTED) from error
    _halt_once(server)
    _call_on_each_turn(server)


def _fetch_copies(service: ServiceConfig) -> None:
    for mount in service.copies:
        fetch(mount, service.state_dir)


def _log_through(gunicorn_log: Any) -> None:
    """Sends our loggers' lines where gunicorn's error log goes."""
    logger = logging.getLogger("procserver")
    logger.handlers = gunicorn_log.error_log.handlers
    logger.setLevel(gunicorn_log.error_log.level)
    logger.propagate = False


def _import_for_workers() -> None:
    """Imports torch and our rooms once, while the refresher builds."""
    # NOTE: OpenMP reads this once, at import; workers set their own number.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    importlib.import_module("procserver.lifecycle.service")


def _halt_once(server: Any) -> None:
    """Keeps a second worker that cannot start from breaking into the halt.

    NOTE: gunicorn halts on the first such worker, reaps again while it halts, and
    a second one then ends the master with status 1 before ``on_exit``.
    """
    reap_workers = server.reap_workers

    def reap_and_halt_once() -> None:
        state = master()
        while True:
            try:
                reap_workers()
            except HaltServer:
                if not state.halting:
                    state.halting = True
                    raise
            else:
                return

    server.reap_workers = reap_and_halt_once


def _call_on_each_turn(server: Any) -> None:
    """Hooks :func:`supervise` into the arbiter's loop (once a second or less)."""
    manage_workers = server.manage_workers

    def manage_and_supervise() -> None:
        manage_workers()
        supervise(server)

    server.manage_workers = manage_and_supervise


def supervise(server: Any) -> None:
    """Reads what children report and restarts the refresher if it died."""
    state = master()
    for age, reports in list(state.reports.items()):
        reports.in_master()
        for message in reports.poll():
            if message["event"] == "ready":
                state.ready.add(age)
        if reports.closed:
            del state.reports[age]
    if not state.has_been_ready and len(state.ready) >= server.num_workers:
        state.has_been_ready = True
        server.log.info(
            "ready: service %s, %d workers on %s, %.1f s after the start",
            state.service.name,
            len(state.ready),
            ", ".join(str(listener) for listener in server.LISTENERS),
            time.monotonic() - state.started,
        )
    if state.refresher is not None:
        state.refresher.supervise(server.LISTENERS)


def pre_fork(server: Any, worker: Any) -> None:
    """Gunicorn hook: in the master, before each fork of a worker."""
    state = master()
    for reports in state.reports.values():
        reports.in_master()
    taken = set(state.slots.values())
    worker.slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
    worker.workers = server.num_workers
    state.counts.open_slot(worker.slot)
    worker.reports = Reports.open()
    state.slots[worker.age] = worker.slot
    state.reports[worker.age] = worker.reports


def child_exit(server: Any, worker: Any) -> None:
    """Gunicorn hook: in the master, after a worker was reaped."""
    state = master()
    state.slots.pop(worker.age, None)
    state.ready.discard(worker.age)


def on_exit(server: Any) -> None:
    """Gunicorn hook: in the master, last of all."""
    if _master is not None and _master.refresher is not None:
        _master.refresher.stop()
