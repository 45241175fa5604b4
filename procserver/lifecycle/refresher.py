"""The refresher seen from the master: forked, waited for, restarted.

One child process is the only writer of the item feature cache
(``procserver.itemcache.refresh`` is what it runs). It reports what it does over a
pipe (``news``) and takes commands over another; a refresher that dies is started
again with growing pauses while workers go on reading what is published, and the next
one goes on from there.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Sequence

from procserver.config import ServiceConfig, SourceConfig
from procserver.errors import ProcserverError, SourceError
from procserver.itemcache.adoption import Adopted, keep
from procserver.itemcache.commands import (
    BUILD,
    FIRST,
    FORCE,
    keep_command,
    make_command,
)
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reports import EMPTY
from procserver.itemcache.schedule import Plan
from procserver.lifecycle.inheriting import digest_of
from procserver.lifecycle.news import (
    News,
    log_companion,
    message_of,
    without_credentials,
)
from procserver.lifecycle.process import (
    Closable,
    close_sockets,
    die_with_parent,
    rather_kill_me,
    reopen_logs,
)
from procserver.lifecycle.reports import Message, Reporter, Reports
from procserver.model.package import ModelPackage
from procserver.observe import metrics

log = logging.getLogger("procserver.lifecycle")

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
# Workers go first: a new one is ready in a moment, a generation is not.
OOM_SCORE = 200
# How often the control segment is told that its owner lives.
BEAT = 60.0
# Of a table of a source that does not say.
DEFAULT_KEY = "item_id"


class Refresher:
    """Owns the control segment and the child that writes generations."""

    def __init__(
        self,
        service: ServiceConfig,
        source: SourceConfig,
        package: ModelPackage,
        adopted: Adopted | None = None,
    ) -> None:
        self._service = service
        self._package = package
        self._source = source
        self._control = ControlSegment.create(service.name)
        self._control.source = digest_of(source)
        self.control_name = self._control.name
        self._pid = 0
        self._reports: Reports | None = None
        self._commands = -1
        self._pause = FIRST_PAUSE
        self._start_at = 0.0
        self._beat_at = 0.0
        self._started = 0.0
        self._answered: set[str] = set()
        # The load that was asked for; the one that the refresher has not begun yet.
        self._asked = self._awaited = b""
        self._news = News()
        self._label = FIRST
        # What was taken over counts once the refresher has compared its checksum.
        self.published = False
        self._is_adopted = adopted is not None
        if adopted is not None:
            adopted.hand_over(self._control)
            self._note_adopted(adopted)

    def start(self, listeners: Sequence[Closable]) -> None:
        """Forks the refresher, which closes ``listeners`` on its side."""
        reports = Reports.open()
        reader, self._commands = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(self._commands)
                _run_child(
                    self._service,
                    self._package,
                    self._source,
                    self._control,
                    reports.in_child(),
                    reader,
                    parent,
                    listeners,
                    # Nobody has looked at the source since its owner died.
                    reload=self._is_adopted,
                )
                status = 0
            except Exception:
                log.exception("refresher failed")
            finally:
                # Nothing of the master's may run at this process's end.
                os._exit(status)
        self._pid, self._label = pid, FIRST
        self._started = time.monotonic()
        os.close(reader)
        os.set_blocking(self._commands, False)
        reports.in_master()
        self._reports = reports
        metrics.REFRESHER_STARTS.add()
        log.info("refresher started (pid %d)", pid)
        self._is_adopted = False

    def in_worker(self) -> None:
        """Called in a worker, which has nothing to write here."""
        self._control.protect()

    def wait_for_first_generation(self) -> None:
        """Blocks until a generation is published: an empty one, if the first build
        fails and the source is not required.

        :raises SourceError: if the first build fails or the refresher dies
        """
        assert self._reports is not None
        is_required = self._service.host.source_required
        while not self.published:
            for message in self._reports.wait(60.0):
                self._note(message)
                if message["event"] != "failed" or self.published:
                    continue
                if is_required or message["kind"] == EMPTY:
                    raise SourceError(message["reason"])
            if self._reports.closed and not self.published:
                raise SourceError("the refresher died while it built the item cache")

    def prepare(
        self, label: str, service: ServiceConfig, package: ModelPackage
    ) -> None:
        """Has features generated ahead for another package too.

        :meth:`has_prepared` tells when that is done. What is served already stays.
        """
        self._send(make_command(label, _what_to_make(service, package)))

    def has_prepared(self, label: str) -> bool:
        """Whether there is nothing to wait for (any more).

        A refresher that died while it did so will not: workers generate themselves
        what was not generated ahead.
        """
        if self._reports is not None and not self._reports.closed:
            for message in self._reports.poll():
                self._note(message)
        closed = self._reports is None or self._reports.closed
        return closed or label in self._answered

    def adopt(self, label: str, service: ServiceConfig, package: ModelPackage) -> None:
        """That package is served from now on, and no other."""
        self._service, self._package, self._label = service, package, label
        # A refresher that was started since knows nothing of it.
        self._send(make_command(label, _what_to_make(service, package)))
        self.drop_others()

    def drop_others(self) -> None:
        """What was prepared will not be served."""
        self._answered.clear()
        self._send(keep_command(self._label))

    def ask_for_build(self, *, force: bool = False) -> None:
        """Has everything loaded from the source again, as soon as possible.

        :param force: also if the table has lost most of its items
        """
        if force or not self._asked:
            self._asked = FORCE if force else BUILD

    @property
    def readers(self) -> list[int]:
        """Descriptors that become readable when there is something to hear."""
        if self._reports is None or self._reports.closed:
            return []
        return [self._reports.reader]

    def _send(self, command: bytes) -> None:
        if self._reports is None or self._reports.closed:
            return
        try:
            os.write(self._commands, command)
        except OSError as error:
            log.warning("the refresher cannot be reached: %s", error)

    def supervise(self, listeners: Sequence[Closable]) -> None:
        """Notes reports; starts the refresher again when its pause is over."""
        if self._reports is None:
            return
        if time.monotonic() >= self._beat_at:
            self._control.beat()
            self._beat_at = time.monotonic() + BEAT
        if not self._reports.closed:
            for message in self._reports.poll():
                self._note(message)
            if self._asked:
                self._awaited, self._asked = self._asked, b""
                self._send(self._awaited)
            if self._reports.closed:
                self._news.died()
                # The next one shall do what this one did not hear.
                self._asked = self._asked or self._awaited
                if time.monotonic() > self._started + LONGEST_PAUSE:
                    self._pause = FIRST_PAUSE
                log.warning(
                    "refresher (pid %d) died; next start in %.0f s; "
                    "generation stays as it is",
                    self._pid,
                    self._pause,
                )
                os.close(self._commands)
                self._start_at = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
        elif time.monotonic() >= self._start_at:
            self.start(listeners)

    def reopen_logs(self) -> None:
        """Has the child go on in new log files, if it runs."""
        if self._reports is not None and not self._reports.closed:
            os.kill(self._pid, signal.SIGUSR1)

    def stop(self) -> None:
        """Ends the child and removes the service's shared memory."""
        if self._reports is not None and not self._reports.closed:
            os.kill(self._pid, signal.SIGKILL)
            # The pipe's end says that it is gone; gunicorn reaps it, or nobody
            # needs to.
            while not self._reports.closed:
                self._reports.wait(1.0)
        if self._service.host.keep_item_cache and self.published:
            kept = keep(self._control)
            log.info("%d segments of the item cache are kept for the next start", kept)
        else:
            self._control.unlink()

    def _note_adopted(self, adopted: Adopted) -> None:
        # By the wall clock, which may have been set meanwhile.
        age = max(0.0, time.time() - adopted.built_at)
        size = adopted.bytes + adopted.companion_bytes
        self._news.adopted(adopted.generation, adopted.items, size)
        metrics.CACHE_AGE.mark(ago=age)
        log.info(
            "item cache generation %d taken over: %d items, %.1f MB, %.0f s old",
            adopted.generation,
            adopted.items,
            adopted.bytes / 1e6,
            age,
        )

    def _note(self, message: Message) -> None:
        event = message["event"]
        if event == "began":
            self._awaited = b""
        if event == "prepared":
            self._answered.add(message["label"])
            log_companion(message)
        elif event == "plain":
            log.warning("no features are generated ahead: %s", message["reason"])
        else:
            if event in ("published", "changed"):
                self._pause = FIRST_PAUSE
            self.published = self._news.note(message) or self.published


def _what_to_make(service: ServiceConfig, package: ModelPackage) -> str:
    """What ``companion.open_told`` reads."""
    has_features = service.model.fg_mode == "normal" and package.fg_json is not None
    told = {
        "fg_json": str(package.fg_json) if has_features else None,
        "farm_hash": service.envs.farm_hash,
    }
    return json.dumps(told)


def plan_of(service: ServiceConfig, source: SourceConfig) -> Plan:
    """How the service JSON has the items kept fresh."""
    minutes = source.period_minutes
    return Plan(
        period=None if minutes is None else 60.0 * minutes,
        required=service.host.source_required,
        key=source.tables[0].key if source.tables else DEFAULT_KEY,
        ttl=None if source.item_ttl_minutes is None else 60.0 * source.item_ttl_minutes,
    )


def _run_child(
    service: ServiceConfig,
    package: ModelPackage,
    source: SourceConfig,
    control: ControlSegment,
    reporter: Reporter,
    commands: int,
    parent: int,
    listeners: Sequence[Closable],
    *,
    reload: bool,
) -> None:
    die_with_parent(parent)
    rather_kill_me(OOM_SCORE)
    metrics.join(metrics.REFRESHER)
    close_sockets(listeners)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        # The master ends its refresher itself, after the workers.
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda signum, frame: reopen_logs())
    # NOTE: these import pyarrow, which starts threads: never in the master.
    from procserver.itemcache.guards import Limits
    from procserver.itemcache.loading import give_memory_back
    from procserver.itemcache.refresh import run
    from procserver.itemcache.sources import open_source
    from procserver.lifecycle.companion import open_maker, open_told

    give_memory_back()
    try:
        maker = open_maker(service, package)
    except ProcserverError as error:
        # The workers will refuse this export themselves, if need be.
        maker = None
        reporter.send("plain", reason=without_credentials(str(error)))
    run(
        lambda: open_source(source),
        control,
        lambda report: reporter.send(**message_of(report)),
        commands,
        plan=plan_of(service, source),
        parent=parent,
        companion=maker,
        open_maker=open_told,
        reload=reload,
        limits=Limits(
            max_row_drop=service.host.max_row_drop,
            max_bad_rows=service.host.max_bad_rows,
            max_cell_bytes=service.host.max_cell_bytes,
            max_cache_bytes=service.host.max_cache_bytes,
        ),
    )
