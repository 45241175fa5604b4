"""One worker process: from fork to answers."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import time
from concurrent import futures
from contextlib import suppress
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

from procserver.errors import ProcserverError, ServiceError
from procserver.lifecycle.admission import Admission
from procserver.lifecycle.arrival import may_wait
from procserver.lifecycle.backlog import LastAccepts
from procserver.lifecycle.breaker import FOLDER, Keeper
from procserver.lifecycle.candidate import Contract, Examination
from procserver.lifecycle.cores import allowance, core_set
from procserver.lifecycle.http import Wsgi, honour_close
from procserver.lifecycle.line import Line, waiting
from procserver.lifecycle.master import Master, Member, master
from procserver.lifecycle.process import (
    be_idle,
    be_normal,
    die_with_parent,
    keep_memory,
    rather_kill_me,
    reopen_logs,
)
from procserver.lifecycle.reports import Reporter
from procserver.lifecycle.settings import FRONT_THREADS
from procserver.lifecycle.sharing import Sharing, SharingWorker
from procserver.lifecycle.watch import Watch
from procserver.observe import metrics
from procserver.observe.accesslog import AccessLog, log_access
from procserver.observe.reqlog import Logs
from procserver.wire.auth import Authenticator

if TYPE_CHECKING:
    from procserver.model.loading import LoadedModel
    from procserver.model.package import ModelPackage
    from procserver.pipeline import Pipeline

# gunicorn halts the master on exit code 3 of a worker; any other code means
# "start another one".
EXIT_HALT_SERVICE = 3
EXIT_RESTART_WORKER = 1
# How long a worker that ends goes on writing the request log.
LOG_SECONDS = 2.0
OOM_SCORE = 300


class Worker(LastAccepts, SharingWorker):
    """gthread with a model replica, pinned to its cores."""

    member: Member
    # How many there are, and what the model that they serve by now keeps to.
    workers: int
    before: Contract | None
    cores: list[int]
    # From which it takes requests that wait: its release's, and earlier ones.
    lines: list[Line]
    reporter: Reporter
    examination: Examination
    is_idle: bool = False
    logs: Logs | None = None
    access_log: AccessLog | None = None
    pipeline: Pipeline | None = None

    def init_process(self) -> None:
        self.request_seconds = master().service.rpc.keepalive_ms / 1000
        super().init_process()

    def notify(self) -> None:
        """Called each turn of the loop, which takes a second at most."""
        super().notify()
        if self.pipeline is not None:
            # Requests are told why, should there be nothing to take up.
            with suppress(ServiceError):
                self.pipeline.keep_up()

    def get_thread_pool(self) -> futures.ThreadPoolExecutor:
        return futures.ThreadPoolExecutor(
            max_workers=self.cfg.threads, initializer=self._start_thread
        )

    def _start_thread(self) -> None:
        # NOTE: OpenMP keeps the number of threads per calling thread.
        import torch

        given = master().service.model.intra_op_parallelism_threads
        torch.set_num_threads(threads_of(given, len(self.cores)))

    def _start_operators(self) -> None:
        """Threads between operators, which a script forks with ``torch.jit.fork``."""
        import torch

        given = master().service.model.inter_op_parallelism_threads
        # NOTE: torch takes this once in a process, before anything runs.
        torch.set_num_interop_threads(threads_of(given, len(self.cores)))

    def init_signals(self) -> None:
        super().init_signals()
        # NOTE: gunicorn's own handler waits for the main thread to run Python again.
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        self._write_stacks_to_log()

    def _write_stacks_to_log(self) -> None:
        """The stacks of all threads, when the process crashes or is aborted."""
        faulthandler.enable(log_stream(self.log))

    def retire(self) -> None:
        """Answers what is under way, then ends; the master starts another worker."""
        self.log.error("worker %s gives way to a new one", self.pid)
        self.handle_exit(None, None)

    @property
    def is_canary(self) -> bool:
        """Whether this worker introduces a model version."""
        return bool(self.age == self.member.release.canary)

    def _logged(self, app: Wsgi) -> Wsgi:
        target = master().service.host.access_log
        if target is None:
            return app
        try:
            self.access_log = AccessLog(target)
        except OSError as error:
            raise ServiceError(f"procserver.access_log: {error}") from error
        return log_access(app, self.access_log)

    def handle_usr1(self, sig: int, frame: object) -> None:
        if self.cfg.capture_output:
            super().handle_usr1(sig, frame)
        reopen_logs()
        if self.access_log is not None:
            self.access_log.reopen()
        # The log may have another stream now.
        self._write_stacks_to_log()

    def is_leaving(self) -> bool:
        """Whether the whole service is being stopped."""
        return master().counts.draining

    def _why_leaving(self) -> str | None:
        return "the service is being stopped" if self.is_leaving() else None

    def _obtain_model(self, package: ModelPackage, device: str) -> LoadedModel:
        state = master()
        return state.weights.obtain(
            package,
            device,
            is_canary=self.is_canary,
            report=self.reporter.send,
            farm_hash=state.service.envs.farm_hash,
            strict=self.examination.strict,
        )

    def _admission(self, state: Master) -> Admission:
        rpc = state.service.rpc
        return Admission(
            state.counts,
            self.member.slot,
            rate=rpc.rate_limit,
            most=rpc.worker_threads + rpc.max_queue_size,
            most_here=max(1, self.cfg.threads - FRONT_THREADS),
            turns=state.settings.turns,
            waiting=lambda: waiting(self.lines),
        )

    def _share_with_others(self, state: Master, admission: Admission) -> None:
        """Has requests that find this worker busy wait for any worker."""
        service = state.service
        token = service.token.reveal() if service.token is not None else None
        auth, most_bytes = Authenticator(token), service.host.max_body_bytes
        self.wanted = lambda head: (
            not admission.is_full and may_wait(head, auth, most_bytes)
        )
        one_by_one = (
            service.host.device == ("cpu",)
            and len(self.cores) == 1
            and not service.rpc.batching
        )
        self.share(
            Sharing(
                state.counts,
                self.member.slot,
                self.lines,
                admission,
                # On one core a second request would only slow the first one down.
                # Elsewhere it is prepared meanwhile, or joins a batch.
                capacity=1 if one_by_one else state.settings.turns,
            )
        )

    def load_wsgi(self) -> None:
        """Builds the app instead of importing one: model, FG, cache, warm-up."""
        # The master has imported these already, for all workers at once.
        from procserver.app import create_app
        from procserver.lifecycle.service import build_service

        state = master()
        try:
            self._start_operators()
            self._start_thread()
            devices = state.service.host.device
            service = build_service(
                state.service,
                state.package,
                state.control_name,
                devices[self.member.place % len(devices)],
                self._obtain_model,
                on_device_lost=self.retire,
                workers=self.workers,
                examination=self.examination,
            )
            self.logs = service.logs
            self.pipeline = service.pipeline
            admission = self._admission(state)
            self._share_with_others(state, admission)
            service = replace(
                service,
                admission=admission,
                readiness=(*service.readiness, self._why_leaving),
                watch=Watch(
                    state.desks,
                    self.member.slot,
                    Keeper(state.service.state_dir / FOLDER),
                ),
            )
            self.wsgi = honour_close(self._logged(create_app(service)), self.is_leaving)
        except ProcserverError as error:
            self.log.error("worker %s cannot start: %s", self.pid, error)
            self._fail(str(error))
        except Exception as error:
            self.log.exception("worker %s cannot start", self.pid)
            self._fail(f"{type(error).__name__}: {error}")

    def _fail(self, reason: str) -> NoReturn:
        self.reporter.send("failed", reason=reason)
        # SAFETY: once the service has been ready, a worker that fails must not take
        # it down.
        is_ready = master().has_been_ready
        sys.exit(EXIT_RESTART_WORKER if is_ready else EXIT_HALT_SERVICE)


def log_stream(log: Any) -> IO[str]:
    """Where gunicorn's error log goes, as a file."""
    for handler in log.error_log.handlers:
        stream = getattr(handler, "stream", None)
        if stream is not None:
            with suppress(OSError, ValueError, AttributeError):
                stream.fileno()
                return cast("IO[str]", stream)
    return sys.stderr


def threads_of(given: int | None, cores: int) -> int:
    """A number of threads that a service JSON asks for, within a worker's cores.

    The keys are meant for one process on a whole machine; 0 and none mean all.
    """
    return min(given, cores) if given else cores


def post_fork(server: Any, worker: Worker) -> None:
    """Gunicorn hook: in the worker, first of all."""
    member = worker.member
    die_with_parent(worker.ppid)
    rather_kill_me(OOM_SCORE)
    keep_memory()
    worker.reporter = member.reports.in_child()
    metrics.join(metrics.worker_row(member.slot))
    state = master()
    for other in state.members.values():
        if other is not member:
            other.reports.close()
    if state.refresher is not None:
        state.refresher.in_worker()
    state.release = member.release
    worker.lines = _lines(state)
    host = state.service.host
    # NOTE: the stacks of all threads go to the log, then the process ends.
    stream = log_stream(worker.log)
    faulthandler.dump_traceback_later(host.boot_seconds, exit=True, file=stream)
    os.environ.update(state.service.envs.raw)
    worker.examination = Examination(
        strict=state.has_been_ready and worker.is_canary,
        before=worker.before,
        allow_nan=host.allow_nan,
    )
    worker.is_idle = member.gentle and be_idle()
    allowed = allowance()
    worker.cores = allowed.cores
    if host.pin_cores and host.device == ("cpu",):
        worker.cores = core_set(worker.cores, member.place, worker.workers)
        if allowed.exclusive:
            os.sched_setaffinity(0, worker.cores)


def _lines(state: Master) -> list[Line]:
    """Closes the lines of later releases than the worker's."""
    lines = []
    for release in state.releases:
        if release.number > state.release.number:
            release.line.close()
        else:
            lines.append(release.line)
    return lines


def post_worker_init(worker: Worker) -> None:
    """Gunicorn hook: in the worker, loaded and warm, before it accepts."""
    faulthandler.cancel_dump_traceback_later()
    if worker.is_idle:
        be_normal()
    # From now on gunicorn counts how long the main loop is silent.
    worker.notify()
    contract = worker.examination.contract
    worker.reporter.send(
        "ready",
        pid=os.getpid(),
        contract=None if contract is None else contract.as_message(),
    )
    seconds = time.monotonic() - worker.member.forked
    worker.log.info("worker %d is ready %.2f s after its fork", worker.pid, seconds)


def worker_exit(server: Any, worker: Worker) -> None:
    """Gunicorn hook: in the worker, last of all, unless a signal killed it."""
    if os.getpid() == worker.ppid:
        # The master calls it for a worker that somebody else reaped.
        return
    if worker.logs is not None:
        worker.logs.close(LOG_SECONDS)
    worker.reporter.send("leaving")
    ends = sys.exc_info()[1]
    if worker.booted and isinstance(ends, SystemExit) and ends.code in (0, None):
        # PERF: taking torch down costs half a second of CPU, just when another
        # worker takes over, and nobody has anything of it.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(0)
