"""One worker process: from fork to answers."""

from __future__ import annotations

import os
import sys
from concurrent import futures
from dataclasses import replace
from typing import Any

from procserver.errors import ProcserverError
from procserver.lifecycle.admission import Admission
from procserver.lifecycle.boot import Master, master
from procserver.lifecycle.cores import available_cores, core_set
from procserver.lifecycle.http import HttpWorker, honour_close
from procserver.lifecycle.process import die_with_parent, keep_memory
from procserver.lifecycle.settings import FRONT_THREADS

# gunicorn halts the master on exit code 3 of a worker; any other code means
# "start another one".
EXIT_HALT_SERVICE = 3
EXIT_RESTART_WORKER = 1


class Worker(HttpWorker):
    """gthread with a model replica, pinned to its cores."""

    slot: int
    workers: int
    cores: list[int]

    def init_process(self) -> None:
        self.request_seconds = master().service.rpc.keepalive_ms / 1000
        super().init_process()

    def get_thread_pool(self) -> futures.ThreadPoolExecutor:
        return futures.ThreadPoolExecutor(
            max_workers=self.cfg.threads, initializer=self._start_thread
        )

    def _start_thread(self) -> None:
        # NOTE: OpenMP keeps the number of threads per calling thread.
        import torch

        torch.set_num_threads(len(self.cores))

    def _admission(self, state: Master) -> Admission:
        rpc = state.service.rpc
        return Admission(
            state.counts,
            self.slot,
            rate=rpc.rate_limit,
            most=rpc.worker_threads + rpc.max_queue_size,
            most_here=max(1, self.cfg.threads - FRONT_THREADS),
            turns=state.settings.turns,
        )

    def load_wsgi(self) -> None:
        """Builds the app instead of importing one: model, FG, cache, warm-up."""
        # The master has imported these already, for all workers at once.
        from procserver.app import create_app
        from procserver.lifecycle.service import build_service

        state = master()
        try:
            self._start_thread()
            devices = state.service.host.device
            service = build_service(
                state.service, state.control_name, devices[self.slot % len(devices)]
            )
            service = replace(service, admission=self._admission(state))
            self.wsgi = honour_close(create_app(service))
        except ProcserverError as error:
            self.log.error("worker %s cannot start: %s", self.pid, error)
            # SAFETY: once the service has been ready, a worker that fails must
            # not take it down.
            sys.exit(EXIT_RESTART_WORKER if state.has_been_ready else EXIT_HALT_SERVICE)


def post_fork(server: Any, worker: Worker) -> None:
    """Gunicorn hook: in the worker, first of all."""
    die_with_parent(worker.ppid)
    keep_memory()
    state = master()
    for age, reports in state.reports.items():
        if age != worker.age:
            reports.close()
    worker.cores = available_cores()
    if state.service.host.pin_cores and state.service.host.device == ("cpu",):
        worker.cores = core_set(worker.cores, worker.slot, worker.workers)
        os.sched_setaffinity(0, worker.cores)


def post_worker_init(worker: Worker) -> None:
    """Gunicorn hook: in the worker, loaded and warm, before it accepts."""
    worker.reports.in_child().send("ready", pid=os.getpid())
