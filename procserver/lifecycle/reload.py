"""A reload: ``kill -HUP`` of the master, in the order in which things happen.

::

    HUP -> read the service JSON, find the model      files are only looked at
        -> copy what is remote                        a child of the master
        -> features ahead for a new fg.json           the refresher
        -> one new worker, the canary                 verifies, loads, publishes the
                                                      weights, warms up, is examined
        -> the others, one by one                     new one ready, old one drains

Until the canary says that it is ready, nothing changes for clients: a reload that
is *refused* leaves the old workers alone. Should a new worker fail after that, the
reload is *rolled back*: old workers take over again, one by one. The arbiter's loop
is never held up: each of its turns takes a reload one step further.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from procserver.errors import ConfigError, ServiceError
from procserver.faults import hit
from procserver.lifecycle import crew
from procserver.lifecycle.fetching import fetch_copies
from procserver.lifecycle.master import Member, Release, master
from procserver.lifecycle.process import Job
from procserver.lifecycle.settings import Settings, read_settings
from procserver.model.package import open_served
from procserver.observe import metrics

log = logging.getLogger("procserver.lifecycle")

DONE, REFUSED, ROLLED_BACK = "done", "refused", "rolled_back"


@dataclass(eq=False)
class Attempt:
    """One reload under way. ``step`` is what its next turn does."""

    number: int
    old: Release
    step: Callable[[Any], None]
    new: Release | None = None
    job: Job | None = None
    canary: Member | None = None
    fresh: list[Member] = field(default_factory=list)
    reason: str = ""
    began: float = field(default_factory=time.monotonic)


class Reloads:
    """The reloads of one master: at most one runs, and at most one waits."""

    def __init__(self) -> None:
        self._wanted = False
        self._is_over = False
        self._numbers = 0
        self._attempt: Attempt | None = None

    @property
    def is_running(self) -> bool:
        return self._attempt is not None

    def ask(self) -> None:
        """Takes a HUP: one before the service is ready, or while another one waits,
        is not lost and not counted twice.
        """
        if self._is_over:
            log.info("reload: not begun, the service is being stopped")
            return
        if self._wanted:
            log.info("reload: one is waiting already")
        elif self._attempt is not None:
            log.info("reload: another one follows this one")
        elif not master().has_been_ready:
            log.info("reload: begins when the service is ready")
        self._wanted = True

    def give_up(self, server: Any, reason: str) -> None:
        """Ends the reload that is under way, if one is, and begins no other."""
        self._is_over = True
        attempt = self._attempt
        if attempt is None:
            return
        for member in attempt.fresh:
            if not member.ready and member.going is None:
                crew.dismiss(server, member)
        attempt.reason = reason
        # Old workers and new ones go on as they are; the refresher need not know.
        attempt.new = None
        self._conclude(attempt, REFUSED)

    def turn(self, server: Any) -> None:
        """One turn of the arbiter's loop, instead of gunicorn's ``manage_workers``."""
        state = master()
        is_time = state.has_been_ready and not self._is_over
        if self._attempt is None and self._wanted and is_time:
            self._wanted = False
            self._begin()
        if self._attempt is None:
            crew.keep_up(server)
        step = None
        # A step that is over is followed by the next one at once.
        while self._attempt is not None and self._attempt.step != step:
            step = self._attempt.step
            self._take(self._attempt, server)

    def _take(self, attempt: Attempt, server: Any) -> None:
        try:
            attempt.step(server)
        except ServiceError as error:
            self._refuse(attempt, _reason(error))
        except Exception as error:
            log.exception("reload %d failed", attempt.number)
            self._refuse(attempt, f"{type(error).__name__}: {error}")

    def readers(self) -> list[int]:
        """What to listen to beside workers, until the next turn."""
        refresher, attempt = master().refresher, self._attempt
        readers = [] if refresher is None else refresher.readers
        if attempt is not None and attempt.job is not None:
            reports = attempt.job.reports
            readers = readers + [reports.reader] * (not reports.closed)
        return readers

    def _begin(self) -> None:
        self._numbers += 1
        self._attempt = Attempt(self._numbers, master().release, self._read)
        metrics.RELOAD_STARTS.add()
        log.info("reload %d: begins", self._numbers)

    # What a reload does until its canary is ready; old workers are kept up.

    def _read(self, server: Any) -> None:
        attempt = self._running
        crew.keep_up(server)
        hit("reload.check")
        settings = read_settings()
        for remark in settings.remarks:
            log.info("config: %s", remark)
        _check_changes(attempt.old.settings, settings)
        if not settings.service.copies:
            self._find(settings)
            return
        service = settings.service
        attempt.job = Job(lambda: fetch_copies(service), server.LISTENERS)
        attempt.step = lambda server: self._fetch(server, settings)

    def _fetch(self, server: Any, settings: Settings) -> None:
        crew.keep_up(server)
        job = self._running.job
        assert job is not None
        if job.is_done():
            self._find(settings)

    def _find(self, settings: Settings) -> None:
        attempt, state = self._running, master()
        package = open_served(settings.service)
        for notice in package.notices:
            log.info("model: %s", notice)
        # The first start made release 1. A number is never used again.
        number = attempt.number + 1
        attempt.new = Release.of(number, settings, package)
        state.releases.append(attempt.new)
        if state.refresher is not None:
            state.refresher.prepare(str(number), settings.service, package)
        attempt.step = self._prepare

    def _prepare(self, server: Any) -> None:
        attempt, state = self._running, master()
        crew.keep_up(server)
        assert attempt.new is not None
        label = str(attempt.new.number)
        if state.refresher is not None and not state.refresher.has_prepared(label):
            return
        stale = [m for m in state.serving() if m.release is not attempt.new]
        place = stale[0].place if stale else None
        hit("reload.spawn")
        attempt.canary = crew.spawn(server, attempt.new, place=place, gentle=True)
        attempt.fresh.append(attempt.canary)
        attempt.step = self._watch

    def _watch(self, server: Any) -> None:
        attempt, state = self._running, master()
        canary, new = attempt.canary, attempt.new
        assert canary is not None
        assert new is not None
        crew.keep_up(server, but=new)
        if canary.age not in state.members:
            self._refuse(attempt, _end_of(canary))
        elif canary.ready:
            log.info(
                "reload %d: version %s is good (worker %d, %.1f s), the others follow",
                attempt.number,
                new.package.version,
                canary.pid,
                time.monotonic() - attempt.began,
            )
            state.release = new
            attempt.step = self._roll

    # After that: worker by worker, to the new release or back to the old one.

    def _roll(self, server: Any) -> None:
        attempt, state = self._running, master()
        if state.release is attempt.new:
            lost = [m for m in attempt.fresh if _is_lost(m)]
            if lost:
                self._turn_back(attempt, _end_of(lost[0]))
        elif self._wanted:
            # Whatever keeps the old release from coming back: here is another one.
            self._conclude(attempt, ROLLED_BACK)
            return
        members = state.serving()
        stale = [m for m in members if m.release is not state.release]
        is_busy = any(m.going is not None for m in state.members.values()) or any(
            not m.ready for m in members if m.release is state.release
        )
        if is_busy or time.monotonic() < state.fork_at:
            return
        if stale and len(members) > server.num_workers:
            crew.dismiss(server, _replaced(members, stale))
        elif stale or len(members) < server.num_workers:
            place = stale[0].place if stale else None
            hit("reload.spawn")
            member = crew.spawn(server, state.release, place=place, gentle=bool(stale))
            attempt.fresh.append(member)
        else:
            self._conclude(attempt, ROLLED_BACK if attempt.reason else DONE)

    def _turn_back(self, attempt: Attempt, reason: str) -> None:
        state = master()
        log.error(
            "reload %d: going back to version %s: %s",
            attempt.number,
            attempt.old.package.version,
            reason,
        )
        attempt.reason = reason
        state.release = attempt.old
        state.pause = state.fork_at = 0.0

    def _refuse(self, attempt: Attempt, reason: str) -> None:
        if attempt.step in (self._roll, self._clear):
            # Only a bug of ours leads here; the next turn tries again.
            return
        attempt.reason = reason
        attempt.step = self._clear

    def _clear(self, server: Any) -> None:
        """Ends the canary; then nothing is left of a refused release."""
        attempt, state = self._running, master()
        crew.keep_up(server, but=attempt.new)
        left = [m for m in state.members.values() if m.release is attempt.new]
        for member in left:
            if member.going is None:
                crew.dismiss(server, member)
        if not left:
            self._conclude(attempt, REFUSED)

    def _conclude(self, attempt: Attempt, outcome: str) -> None:
        state = master()
        self._attempt = None
        forget_releases()
        refresher, served = state.refresher, state.release
        if refresher is not None and attempt.new is not None:
            if outcome == DONE:
                label = str(served.number)
                refresher.adopt(label, served.settings.service, served.package)
            else:
                refresher.drop_others()
        metrics.SHARED_WEIGHTS_BYTES.set(served.weights.bytes)
        number, version = attempt.number, served.package.version
        seconds = time.monotonic() - attempt.began
        if outcome == DONE:
            log.info("reload %d: done, version %s, %.1f s", number, version, seconds)
        else:
            log.error(
                "reload %d: %s, version %s stays: %s",
                number,
                outcome.replace("_", " "),
                version,
                attempt.reason,
            )
        at = datetime.now(UTC).isoformat(timespec="seconds")
        metrics.LAST_RELOAD_REASON.set(attempt.reason)
        metrics.LAST_RELOAD.set(str(number), outcome, version, at)
        metrics.RELOADS.add(1, outcome)

    @property
    def _running(self) -> Attempt:
        assert self._attempt is not None
        return self._attempt


def forget_releases() -> None:
    """Removes the weights of releases that no worker has any more."""
    state = master()
    used = {m.release.number for m in state.members.values()} | {state.release.number}
    for release in state.releases:
        if release.number not in used:
            release.weights.remove()
    state.releases = [r for r in state.releases if r.number in used]


def _check_changes(old: Settings, new: Settings) -> None:
    """:raises ServiceError: for a change that needs a restart"""
    before, now = old.service, new.service
    if now.name != before.name:
        raise ServiceError(
            f"metadata.name: changed from {before.name!r} to {now.name!r}, which needs "
            "a restart"
        )
    if now.engine != before.engine:
        raise ServiceError(f"processor: {now.processor} needs a restart")
    if now.item_source != before.item_source:
        raise ServiceError("model_config: another item source needs a restart")
    for name in ("workers", "threads", "graceful_timeout"):
        if getattr(old, name) != getattr(new, name):
            log.warning(
                "reload: %s is %s in the service JSON now, which needs a restart",
                name,
                getattr(new, name),
            )


def _replaced(members: list[Member], stale: list[Member]) -> Member:
    """The old worker whose place a new one has taken."""
    taken = {m.place for m in members if m not in stale}
    return next((m for m in stale if m.place in taken), stale[0])


def _is_lost(member: Member) -> bool:
    return member.going is None and member.age not in master().members


def _end_of(member: Member) -> str:
    """Why a new worker is gone."""
    if member.failure is not None:
        return member.failure
    if member.ready:
        return f"the new worker {member.pid} died while it served"
    seconds = member.release.settings.service.host.boot_seconds
    if time.monotonic() - member.forked >= seconds:
        return f"the new worker was not ready in {seconds:g} s; the log tells its stack"
    return f"the new worker {member.pid} died before it was ready, see the log"


def _reason(error: ServiceError) -> str:
    return "; ".join(error.problems) if isinstance(error, ConfigError) else str(error)
