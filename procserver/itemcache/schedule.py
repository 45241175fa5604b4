"""When the refresher builds, and how long it waits after a failure."""

import random
import threading
import time
from dataclasses import dataclass

from procserver.itemcache.reports import COMPACTION, FULL


@dataclass(frozen=True)
class Plan:
    """How a table is kept fresh; times in seconds.

    ``period``: between full loads, or between polls of a source that knows changes
    but does not follow them; None: never. ``required``: without a source there is
    nothing to serve; else an empty table with the id column ``key`` is, until there is
    one. ``share``: a delta
    of more than one row in so many of the base is folded into it; smaller ones than
    ``delta_rows`` are not. ``ttl``: after so long an item ends of which nothing was
    heard; None: none does.
    """

    period: float | None = None
    required: bool = True
    key: str = "item_id"
    first_pause: float = 1.0
    longest_pause: float = 60.0
    share: int = 8
    delta_rows: int = 65_536
    ttl: float | None = None


class BackOff:
    """Pauses after failures: 1, 2, 4 ... 60 s, each up to a quarter longer or less."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._pause = plan.first_pause

    def failed(self, at_least: float = 0.0) -> float:
        """How long to wait now."""
        pause = max(self._pause, at_least) * random.uniform(0.75, 1.25)
        self._pause = min(2 * self._pause, self._plan.longest_pause)
        return pause

    def worked(self) -> None:
        """The next failure is a first one."""
        self._pause = self._plan.first_pause


class Schedule:
    """What the builder does next: any thread asks, one takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # Kind of work -> not before (CLOCK_MONOTONIC).
        self._wanted: dict[str, float] = {}
        self._ended = False
        self._forced = False

    def force(self) -> None:
        """Asks for a full build that a loss of items does not stop."""
        self._forced = True
        self.want(FULL)

    def take_force(self) -> bool:
        """Whether this full build is that one; no later one is."""
        forced, self._forced = self._forced, False
        return forced

    def want(self, kind: str, pause: float = 0.0) -> None:
        """Asks for work in ``pause`` seconds, or earlier if that was asked before."""
        at = time.monotonic() + pause
        with self._changed:
            self._wanted[kind] = min(self._wanted.get(kind, at), at)
            self._changed.notify_all()

    def restart(self, kind: str, period: float) -> None:
        """The next one in ``period`` seconds, unless one is due that was asked for."""
        now = time.monotonic()
        with self._changed:
            if self._wanted.get(kind, now + 1) > now:
                self._wanted[kind] = now + period
                self._changed.notify_all()

    def end(self) -> None:
        """Nothing more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        return self._ended

    def take(self) -> str | None:
        """Waits for work that is due; None: the end. A full build comes first, since
        it leaves nothing to fold.
        """
        with self._changed:
            while not self._ended:
                now = time.monotonic()
                for kind in (FULL, COMPACTION):
                    if self._wanted.get(kind, now + 1) <= now:
                        del self._wanted[kind]
                        return kind
                due = min(self._wanted.values(), default=None)
                self._changed.wait(None if due is None else due - now)
        return None
