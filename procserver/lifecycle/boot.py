"""The master: from ``gunicorn -c conf/serve.py`` to workers that answer.

The master reads the configuration, reclaims what dead owners left in shared
memory, starts the refresher and waits for the first cache generation,
supervises. It imports torch, so that workers share the pages, and never runs
an operator: a fork after a parallel operator hangs in the child.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import signal
import time
from contextlib import suppress
from typing import Any, NoReturn

from gunicorn.errors import HaltServer

from procserver import faults
from procserver.config import ServiceConfig
from procserver.errors import ServiceError, StateInUse
from procserver.lifecycle import crew, refreshing, rundir
from procserver.lifecycle.crew import child_exit, pre_fork
from procserver.lifecycle.drain import Drain
from procserver.lifecycle.fetching import fetch_copies
from procserver.lifecycle.inheriting import inherit
from procserver.lifecycle.master import Master, Release, master, set_master, started
from procserver.lifecycle.process import Job, allow_open_files, no_core_dumps
from procserver.lifecycle.refresher import Refresher
from procserver.lifecycle.reload import Reloads
from procserver.lifecycle.settings import EXIT_CONFIG, service_settings
from procserver.lifecycle.stuck import end_stuck
from procserver.model.package import ModelPackage, open_served
from procserver.observe import metrics
from procserver.shm import list_segments, segment_name, this_process, unlink

__all__ = ["child_exit", "on_exit", "on_starting", "pre_fork"]

log = logging.getLogger("procserver.lifecycle")

EXIT_NOT_STARTED = 4
# An exit status that no process has.
NO_STATUS = -1
TURN_S = 1.0
# Files of a worker that are no connections: libraries, pipes, logs, shared memory.
OWN_FILES = 64


def on_starting(server: Any) -> None:
    """Gunicorn hook: in the master, before the sockets are opened."""
    _log_through(server.log)
    no_core_dumps()
    _mind_signals(server)
    _check_open_files(server)
    refreshing.mind(server, _ask_for_build)
    settings = service_settings()
    service = settings.service
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
        faults.announce()
        if service.engine != "torch":
            raise ServiceError(
                f"processor {service.processor!r}: TensorFlow models are not served yet"
            )
        lock = _lock(server, service)
        if service.copies:
            Job(lambda: fetch_copies(service)).wait()
        state = Master(Release.of(1, settings, _find_model(server, service)), lock)
        set_master(state)
        atexit.register(_clear, server, os.getpid())
        adopted = inherit(service)
        metrics.create(service.name, server.cfg.workers)
        if service.item_source is not None:
            state.refresher = Refresher(
                service, service.item_source, state.package, adopted
            )
            state.control_name = state.refresher.control_name
            state.refresher.start([])
        _import_for_workers()
        if state.refresher is not None:
            state.refresher.wait_for_first_generation()
        rundir.write_pid(service.state_dir)
    except ServiceError as error:
        server.log.error("service %s cannot start: %s", service.name, error)
        on_exit(server)
        is_in_use = isinstance(error, StateInUse)
        raise SystemExit(EXIT_CONFIG if is_in_use else EXIT_NOT_STARTED) from error
    _halt_once(server)
    _supervise_and_reload(server)


def _check_open_files(server: Any) -> None:
    """Each connection is an open file of the worker that has it."""
    most = allow_open_files()
    wanted = server.cfg.worker_connections + server.cfg.threads + OWN_FILES
    if most < wanted:
        server.log.warning(
            "a process may have %d files open, a worker with %d connections needs %d; "
            "raise the limit (ulimit -Hn) or set worker_connections",
            most,
            server.cfg.worker_connections,
            wanted,
        )


def _lock(server: Any, service: ServiceConfig) -> rundir.Lock:
    """The lock on the state folder.

    The successor of a running master (USR2) has it as soon as that one is gone.

    :raises ServiceError: as :meth:`rundir.Lock.take`
    """
    lock = rundir.Lock(service.state_dir)
    try:
        lock.take()
    except StateInUse as error:
        if not server.master_pid or error.pid != server.master_pid:
            raise
    return lock


def _mind_signals(server: Any) -> None:
    """Signals during the start: those to end do so, others wait for the loop.

    NOTE: gunicorn installs its handlers after ``on_starting``; until then a HUP
    would end the process. An exception instead of the exit would get lost if the
    signal came while Python ran a callback, of which an import has many.
    """

    parent = os.getpid()

    def stop(signum: int, frame: object) -> NoReturn:
        # A child that has not set handlers of its own yet has nothing to clear.
        if os.getpid() == parent:
            try:
                server.log.info("stopped before the start was complete")
                on_exit(server)
                if server.pidfile is not None:
                    server.pidfile.unlink()
            except Exception:
                server.log.exception("the start was not stopped well")
        os._exit(0)

    for signum in server.SIGNALS:
        ends = signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        signal.signal(signum, stop if ends else server.signal)


def _ask_for_build(force: bool) -> None:
    if started():
        refresher = master().refresher
        if refresher is not None:
            refresher.ask_for_build(force=force)


def _find_model(server: Any, service: ServiceConfig) -> ModelPackage:
    """Looks at files only; the canary verifies and loads them.

    :raises ModelError: if there is no model that can be served
    """
    package = open_served(service)
    server.log.info("model: %s, version %s", package.kind.value, package.version)
    for notice in package.notices:
        server.log.info("model: %s", notice)
    return package


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
            crew.note_endings()
            try:
                reap_workers()
            except HaltServer:
                if not state.halting:
                    state.halting = True
                    raise
            else:
                return

    server.reap_workers = reap_and_halt_once


def _supervise_and_reload(server: Any) -> None:
    """Takes over what gunicorn's loop does each turn, its reload and its end."""
    reloads = Reloads()
    drain = Drain(server, reloads)

    def manage_and_supervise() -> None:
        state = master()
        crew.note_reports()
        if state.weights.settled:
            reloads.turn(server)
        elif not state.members:
            # The very first worker; others follow when the weights are there.
            crew.spawn(server, state.release)
        supervise(server)
        if drain.is_running:
            crew.wait(server, [], min(TURN_S, drain.left()))
        elif reloads.is_running or not state.has_been_ready:
            crew.wait(server, reloads.readers(), TURN_S)

    reopen_ours = server.handle_usr1

    def reopen_all() -> None:
        reopen_ours()
        refresher = master().refresher
        if refresher is not None:
            refresher.reopen_logs()

    server.handle_usr1 = reopen_all
    server.manage_workers = manage_and_supervise
    server.handle_hup = reloads.ask


def supervise(server: Any) -> None:
    """Looks after workers and the refresher, whatever else goes on."""
    state = master()
    crew.note_reports()
    crew.hurry(server)
    end_stuck(server)
    metrics.WORKERS_WANTED.set(server.num_workers)
    if not state.has_been_ready and state.ready() >= server.num_workers:
        state.has_been_ready = True
        # SAFETY: no worker's exit status ends the service from now on.
        server.WORKER_BOOT_ERROR = server.APP_LOAD_ERROR = NO_STATUS
        server.log.info(
            "ready: service %s, %d workers on %s, %.1f s after the start",
            state.service.name,
            state.ready(),
            ", ".join(str(listener) for listener in server.LISTENERS),
            time.monotonic() - state.started,
        )
    if state.refresher is not None:
        state.refresher.supervise(server.LISTENERS)
    if not state.lock.is_held:
        with suppress(ServiceError):
            state.lock.take()


def _clear(server: Any, pid: int) -> None:
    """What gunicorn leaves when it gives up, for one over a port that is taken."""
    if os.getpid() == pid:
        on_exit(server)


def on_exit(server: Any) -> None:
    """Gunicorn hook: in the master, last of all."""
    if not started():
        return
    state = master()
    if state.refresher is not None:
        state.refresher.stop()
    for release in state.releases:
        release.weights.remove()
    rundir.remove_pid(state.service.state_dir)
    metrics.leave()
    for name in list_segments(segment_name(state.service.name, this_process(), "")):
        # What a step that was cut short had just made.
        unlink(name)
    state.lock.release()
    set_master(None)
