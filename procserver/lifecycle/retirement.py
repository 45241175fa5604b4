"""Workers over ``procserver.max_rss_bytes`` are replaced: a new one ready first."""

from __future__ import annotations

import logging
import time
from typing import Any

from procserver.lifecycle import crew, memory
from procserver.lifecycle.master import Member, master
from procserver.lifecycle.process import be_normal

log = logging.getLogger("procserver.lifecycle")

LOOK_SECONDS = 1.0
# Exact numbers cost the worker something.
EXACT_SECONDS = 5.0
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0
# For so long the new worker is in nobody's way.
GENTLE_SECONDS = 10.0
# A worker that has served that long was worth its start.
LONG_SERVICE = 600.0


class Retirements:
    """The replacements of one master: one worker at a time, none during a reload."""

    def __init__(self) -> None:
        self._old: Member | None = None
        self._new: Member | None = None
        self._look_at = 0.0
        self._exact_at: dict[int, float] = {}
        self._pause = 0.0
        self._not_before = 0.0

    def turn(self, server: Any, *, may_begin: bool) -> None:
        """One turn of the arbiter's loop in which no reload runs."""
        if self._old is not None:
            self._go_on(server, self._old)
        if self._old is None:
            crew.keep_up(server)
            if may_begin:
                self._begin(server)

    def give_up(self, server: Any) -> None:
        """A reload replaces all workers anyway, and so does an end."""
        new = self._new
        self._old = self._new = None
        if new is not None and not new.ready and new.going is None:
            crew.dismiss(server, new)

    def _begin(self, server: Any) -> None:
        state, now = master(), time.monotonic()
        if now < max(self._look_at, self._not_before, state.fork_at):
            return
        self._look_at = now + LOOK_SECONDS
        members = state.serving()
        if state.ready() != server.num_workers or len(members) != len(state.members):
            return
        for member in members:
            limit = member.release.settings.service.host.max_rss_bytes
            used = self._over(member, limit) if limit else None
            if used is None:
                continue
            log.warning(
                "worker %d has %d bytes for itself, over max_rss_bytes %d; "
                "another one takes its place",
                member.pid,
                used,
                limit,
            )
            self._old = member
            if state.service.host.reload_mode == "in_place":
                self._dismiss(server, member)
            else:
                self._new = crew.spawn(
                    server, state.release, place=member.place, gentle=True
                )
            return

    def _dismiss(self, server: Any, old: Member) -> None:
        old.retired = True
        crew.dismiss(server, old)

    def _over(self, member: Member, limit: int) -> int | None:
        """What the worker has for itself, if that is over the limit."""
        now = time.monotonic()
        used = memory.own_at_most(member.pid)
        if used is None or used <= limit or now < self._exact_at.get(member.age, 0.0):
            return None
        self._exact_at = {
            age: at for age, at in self._exact_at.items() if age in master().members
        }
        self._exact_at[member.age] = now + EXACT_SECONDS
        used = memory.own(member.pid)
        return used if used is not None and used > limit else None

    def _go_on(self, server: Any, old: Member) -> None:
        state, new = master(), self._new
        if new is None:
            # In place: the old one goes before the new one comes.
            if old.age not in state.members:
                self._end(time.monotonic() - old.forked)
            else:
                crew.keep_up(server, missing=1)
        elif new.age not in state.members or old.age not in state.members:
            # One of the two has died: what is missing comes back the usual way.
            self._end(time.monotonic() - old.forked)
        elif new.ready:
            self._dismiss(server, old)
            self._end(time.monotonic() - old.forked)
        else:
            crew.keep_up(server, extra=new)
            if new.gentle and time.monotonic() > new.forked + GENTLE_SECONDS:
                # The old one goes on growing.
                new.gentle = False
                be_normal(new.pid)

    def _end(self, served: float) -> None:
        """A limit below what a worker needs at all must not keep us busy."""
        self._old = self._new = None
        if served >= LONG_SERVICE:
            self._pause = 0.0
        else:
            self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        self._not_before = time.monotonic() + self._pause
