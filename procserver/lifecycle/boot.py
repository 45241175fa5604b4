"""The master: from ``gunicorn -c conf/serve.py`` to workers that answer.

The master reads the configuration, reclaims what dead owners left in shared
memory, starts the refresher and waits for the first cache generation,
supervises. It imports torch, so that workers share the pages, and never runs
an operator: a fork after a parallel operator hangs in the child.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gunicorn.errors import HaltServer

from procserver.config import ServiceConfig
from procserver.config.fetch import fetch
from procserver.config.storage import Mount
from procserver.errors import FetchError, ServiceError
from procserver.lifecycle.admission import SharedCounts
from procserver.lifecycle.deaths import OomKills
from procserver.lifecycle.process import run_in_child
from procserver.lifecycle.refresher import Refresher
from procserver.lifecycle.reports import Reports
from procserver.lifecycle.settings import Settings, service_settings
from procserver.lifecycle.weights import EVENT as WEIGHTS
from procserver.lifecycle.weights import Weights
from procserver.model.package import ModelPackage, open_served
from procserver.observe import metrics
from procserver.shm import reclaim

log = logging.getLogger("procserver.lifecycle")

EXIT_CANARY_DIED = 3
EXIT_NOT_STARTED = 4
TURN_S = 1.0
POLL_S = 0.05


@dataclass
class Master:
    """State of the arbiter process; workers see the copy made at their fork."""

    settings: Settings
    weights: Weights
    # The age of the worker that introduces the weights.
    canary: int | None = None
    served: ModelPackage | None = None
    refresher: Refresher | None = None
    control_name: str | None = None
    has_been_ready: bool = False
    halting: bool = False
    # By worker age, gunicorn's serial number of workers: the slot (which stands
    # for a set of cores), the pipe, and who has reported to be ready.
    slots: dict[int, int] = field(default_factory=dict)
    reports: dict[int, Reports] = field(default_factory=dict)
    ready: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)
    oom_kills: OomKills = field(default_factory=OomKills)
    started: float = field(default_factory=time.monotonic)
    counts: SharedCounts = field(default_factory=SharedCounts)

    @property
    def service(self) -> ServiceConfig:
        return self.settings.service

    @property
    def package(self) -> ModelPackage:
        """The model version that every worker serves, whatever is published since."""
        assert self.served is not None
        return self.served


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
    service = settings.service
    weights = Weights.of_version(service.name, 1, share=service.host.share_weights)
    state = _master = Master(settings, weights)
    for remark in settings.remarks:
        server.log.info("config: %s", remark)
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
        state.served = _find_model(server, service)
        removed = reclaim()
        if removed:
            server.log.info("removed %d shared segments of dead owners", removed)
        metrics.create(service.name, server.cfg.workers)
        if service.item_source is not None:
            state.refresher = Refresher(service, service.item_source, state.package)
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


def _find_model(server: Any, service: ServiceConfig) -> ModelPackage:
    """Looks at files only; the canary verifies and loads them.

    :raises ModelError: if there is no model that can be served
    """
    package = open_served(service)
    server.log.info("model: %s, version %s", package.kind.value, package.version)
    for notice in package.notices:
        server.log.info("model: %s", notice)
    return package


def _fetch_copies(service: ServiceConfig) -> None:
    for mount in service.copies:
        try:
            fetch(mount, service.state_dir)
        except FetchError as error:
            # Before the first start nobody has captured anything.
            if not _holds_captures_only(mount, service):
                raise
            log.warning("no captured requests to warm up with: %s", error)


def _holds_captures_only(mount: Mount, service: ServiceConfig) -> bool:
    folder = mount.folder(service.state_dir)
    needed = [service.model_dir, service.warm_up_data_path]
    source = service.item_source
    if source is not None and source.url is not None:
        needed.append(Path(source.url.reveal()))
    captures = service.model.warmup_data_path
    return (
        captures is not None
        and captures.is_relative_to(folder)
        and not any(path and path.is_relative_to(folder) for path in needed)
    )


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
    # PERF: a collection writes to every object that it looks at. What was
    # imported is left out, or each worker would soon have pages of its own for it.
    gc.collect()
    gc.freeze()


def _halt_once(server: Any) -> None:
    """Keeps a worker that cannot start from breaking into a halt.

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

    stop = server.stop

    def stop_and_note(graceful: bool = True) -> None:
        master().halting = True
        stop(graceful)

    server.reap_workers = reap_and_halt_once
    server.stop = stop_and_note


def _call_on_each_turn(server: Any) -> None:
    """Hooks :func:`supervise` into the arbiter's loop (once a second or less)."""
    manage_workers = server.manage_workers

    def manage_and_supervise() -> None:
        if not master().weights.settled:
            _await_canary(server)
        if master().weights.settled:
            manage_workers()
        supervise(server)

    server.manage_workers = manage_and_supervise


def _await_canary(server: Any) -> None:
    """Forks the canary and waits until it reports, or a signal wants attention.

    Returns after a second in any case, so that the refresher is looked after.
    """
    state = master()
    if not server.WORKERS:
        server.spawn_worker()
    # The arbiter's next turn is to come at once, not after a second's wait.
    server.wakeup()
    end = time.monotonic() + TURN_S
    while not state.weights.settled and time.monotonic() < end:
        reports = state.reports.get(state.canary or 0)
        if server.SIG_QUEUE.qsize() > 1:
            return
        # Nobody's pipe: the canary is dead, and SIGCHLD on its way.
        readers = [] if reports is None else [reports.reader]
        select.select(readers, [], [], POLL_S)
        _note_reports()


def supervise(server: Any) -> None:
    """Reads what children report and restarts the refresher if it died."""
    state = master()
    _note_reports()
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


def _note_reports() -> None:
    state = master()
    for age, reports in list(state.reports.items()):
        reports.in_master()
        for message in reports.poll():
            if message["event"] == "ready":
                state.ready.add(age)
            elif message["event"] == "leaving":
                state.leaving.add(age)
            elif message["event"] == WEIGHTS:
                state.weights.note(message)
        if reports.closed:
            del state.reports[age]
    metrics.WORKERS_READY.set(len(state.ready))


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
    if not state.weights.settled:
        state.canary = worker.age
    state.slots[worker.age] = worker.slot
    state.reports[worker.age] = worker.reports
    metrics.WORKER_STARTS.add()


def child_exit(server: Any, worker: Any) -> None:
    """Gunicorn hook: in the master, after a worker was reaped.

    :raises HaltServer: for a canary that died before it reported: there is
        nothing that another worker could do better
    """
    state, age = master(), worker.age
    _note_reports()
    metrics.WORKER_DEATHS.add(
        1,
        state.oom_kills.cause(
            was_ready=age in state.ready, said_so=age in state.leaving
        ),
    )
    if age == state.canary and not state.weights.settled and not state.halting:
        raise HaltServer(
            "the first worker died while it loaded the model", EXIT_CANARY_DIED
        )
    state.slots.pop(age, None)
    state.ready.discard(age)
    state.leaving.discard(age)


def on_exit(server: Any) -> None:
    """Gunicorn hook: in the master, last of all."""
    if _master is None:
        return
    if _master.refresher is not None:
        _master.refresher.stop()
    _master.weights.remove()
    metrics.leave()
