"""The thread that applies the source's changes to what is published."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from procserver.faults import hit
from procserver.itemcache.building import OpenSource, as_error, is_foldable
from procserver.itemcache.cursors import NONE
from procserver.itemcache.delta import Applied, DeltaFull
from procserver.itemcache.expiry import Sweeper
from procserver.itemcache.live import Live, State, Step, sliced
from procserver.itemcache.reports import (
    CHANGES,
    COMPACTION,
    FULL,
    GAP,
    ChangesReport,
    FailureReport,
    Report,
)
from procserver.itemcache.schedule import BackOff, Plan, Schedule
from procserver.itemcache.sources import Changes, CursorLost, ItemSource

log = logging.getLogger(__name__)

# Longest time for which a source is asked to wait for a change.
WAIT = 1.0
# Between two calls of a source that does not wait.
SHORTEST = 0.1
# Between two reports while changes come.
REPORT_EVERY = 0.5


# A step without its bad rows, and why they are left out.
Sift = Callable[[Step, State], tuple[Step, Counter[str]]]


def _all(step: Step, state: State) -> tuple[Step, Counter[str]]:
    return step, Counter()


class Follower:
    """Asks the source what has changed; :meth:`run` is its thread.

    A source that is one to follow is asked all the time, any other one once a period.
    One that knows no changes, or lost them, has a full build instead; with one that
    is followed this is a gap.

    :param sift: what of a step may be applied
    """

    def __init__(
        self,
        live: Live,
        schedule: Schedule,
        plan: Plan,
        open_source: OpenSource,
        report: Callable[[Report], None],
        sift: Sift = _all,
    ) -> None:
        self._sift = sift
        self._live = live
        self._schedule = schedule
        self._plan = plan
        self._open_source = open_source
        self._report = report
        self._pauses = BackOff(plan)
        self._ended = threading.Event()
        self._source: ItemSource | None = None
        # Rows that it has left out, as far as they were reported.
        self._left_out: Counter[str] = Counter()
        self._tally = _Tally()
        self._expiry = live.expiry
        self._sweeper = None if live.expiry is None else Sweeper(live.expiry)
        # When the source is asked next, if it is not followed.
        self._polled: tuple[State, float] | None = None

    def end(self) -> None:
        """Returns at once; a source that hangs is left alone."""
        self._ended.set()

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                state = self._live.state
                if state is None or state.cursor is NONE:
                    self._live.wait(state, WAIT)
                else:
                    self._try(state)
        finally:
            self._close()

    def _try(self, state: State) -> None:
        try:
            self._turn(state)
            self._sweep()
        except CursorLost as error:
            self._live.lose(state)
            self._schedule.want(FULL)
            self._failed(FULL)
            if state.follows:
                self._report(FailureReport(GAP, error))
        except Exception as error:
            self._close()
            # Some of what was told may have been applied; it is told again.
            now = self._live.state
            if now is not None:
                now.repeats = True
            pause = self._pauses.failed()
            self._failed(CHANGES)
            self._report(FailureReport(CHANGES, as_error(error), pause))
            log.debug("changes failed", exc_info=error)
            self._ended.wait(pause)
        else:
            self._pauses.worked()

    def _failed(self, kind: str) -> None:
        if self._expiry is not None:
            self._expiry.failed(kind)

    def _close(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            try:
                source.close()
            except Exception as error:
                log.debug("the source cannot be closed", exc_info=error)

    def _turn(self, state: State) -> None:
        """Asks once, or waits for a second."""
        if state.follows is None:
            # A refresher before this one has built it.
            state.follows = self._opened().describe().follows
            if state.follows and self._plan.period is not None:
                left = state.since + self._plan.period - time.monotonic()
                self._schedule.want(FULL, max(0.0, left))
        if not state.follows:
            left = self._left(state)
            if left > 0:
                self._live.wait(state, min(left, WAIT))
                return
        if state.repeats and state.is_folding:
            # What is folded is what has been shown.
            self._live.wait(state, WAIT)
            return
        began = time.monotonic()
        at = 0 if self._expiry is None else self._expiry.now()
        hit("source.read")
        changes = self._opened().changes(state.cursor, WAIT if state.follows else 0.0)
        if changes is None:
            if not state.follows:
                self._schedule.want(FULL)
            state.follows = False
            self._polled = (state, time.monotonic())
            return
        before, self._left_out = self._left_out, Counter(self._opened().skipped)
        if not self._apply(state, changes):
            return
        self._tally.skip(self._left_out - before)
        if changes.more is False or not changes.steps:
            self._live.note_current(began)
        self._note_asked(changes, at, follows=state.follows)
        if not changes.more:
            self._polled = (state, time.monotonic())
            if state.follows and not changes.steps:
                self._ended.wait(max(0.0, began + SHORTEST - time.monotonic()))

    def _note_asked(self, changes: Changes, at: int, *, follows: bool) -> None:
        """Up to when all is known; what is only asked now and then says all it has."""
        if self._expiry is None:
            return
        if not changes.whole:
            self._expiry.failed(CHANGES)
        elif changes.more is False or not changes.steps or not follows:
            self._expiry.asked(at, CHANGES, follows=follows)

    def _sweep(self) -> None:
        """Deletes what nothing was heard of for too long, if it is time."""
        state = self._live.state
        if self._sweeper is None or state is None or not self._sweeper.is_due():
            return
        if state.repeats:
            # What it has is not all shown yet.
            return
        with self._live.gate:
            view = state.view()
        for step in self._sweeper.find(view):
            applied = self._append(state, step, is_own=True)
            if applied is None:
                self._sweeper.again()
                return
            self._tally.expire(applied)
            self._fold_if_large(state)
            self._tell(state, at_once=True, current=False)

    def _opened(self) -> ItemSource:
        if self._source is None:
            self._source = self._open_source()
            self._left_out.clear()
        return self._source

    def _left(self, state: State) -> float:
        """Seconds until a source that is not followed is asked again."""
        period = self._plan.period
        if period is None:
            return WAIT
        if self._polled is None or self._polled[0] is not state:
            return state.since + period - time.monotonic()
        return self._polled[1] + period - time.monotonic()

    def _apply(self, state: State, changes: Changes) -> bool:
        """Applies all of it, also to a state that takes over meanwhile, if that goes
        on from the same place; else (False) what is left is read again from there.
        """
        cursor: object = state.cursor
        now: State | None = state
        for given in sliced(changes.steps):
            step, skipped = self._sift(given, state)
            self._tally.skip(skipped)
            applied = None
            while applied is None:
                if now is None or now.cursor != cursor or self._ended.is_set():
                    return False
                repeats = now.repeats
                applied = self._append(now, step)
                if applied is None and repeats:
                    return False
                state, now = now, self._live.state if applied is None else now
            self._tally.add(applied)
            self._fold_if_large(state)
        while now is not None and now.cursor == cursor:
            if self._live.advance(now, changes.next_cursor):
                break
            now = self._live.state
        self._fold_if_large(state)
        self._tally.newest = max(changes.newest or 0.0, self._tally.newest)
        self._tell(state, at_once=not changes.steps)
        return True

    def _append(
        self, state: State, step: Step, *, is_own: bool = False
    ) -> Applied | None:
        """None: another state is to be tried; from the cursor, if it repeats."""
        try:
            return self._live.apply(state, step, is_own=is_own)
        except DeltaFull:
            if state.repeats:
                # All of it does not fit behind what was shown.
                self._live.forget(state)
                state.repeats = bool(state.delta_rows)
            elif not state.delta_rows:
                # It never fits: nothing but a full load brings it in.
                raise CursorLost("a change is larger than a delta can be") from None
            if not state.delta_rows:
                return None
            state.is_full = True
            self._want_folded(state)
            self._live.wait(state, WAIT)
            return None

    def _fold_if_large(self, state: State) -> None:
        # NOTE: not while there is something in it that is not to be shown yet.
        if not state.repeats and is_foldable(state, self._plan):
            self._want_folded(state)

    def _want_folded(self, state: State) -> None:
        if not state.is_folding:
            state.is_folding = True
            self._schedule.want(COMPACTION)

    def _tell(self, state: State, *, at_once: bool, current: bool = True) -> None:
        tally = self._tally
        if at_once or time.monotonic() >= tally.told + REPORT_EVERY:
            self._report(tally.report(state, current))
            self._tally = _Tally(tally.newest, time.monotonic())


class _Tally:
    """What was applied since the last report."""

    def __init__(self, newest: float = 0.0, told: float = 0.0) -> None:
        self.newest = newest
        self.told = told
        self._upserted = self._deleted = self._stale = self._expired = 0
        self._skipped: Counter[str] = Counter()

    def add(self, applied: Applied) -> None:
        self._upserted += applied.upserted
        self._deleted += applied.deleted
        self._stale += applied.stale
        self.skip(applied.skipped)

    def expire(self, applied: Applied) -> None:
        self._expired += applied.deleted

    def skip(self, skipped: Counter[str]) -> None:
        self._skipped.update(skipped)

    def report(self, state: State, current: bool) -> ChangesReport:
        return ChangesReport(
            generation=state.generation.number,
            upserted=self._upserted,
            deleted=self._deleted,
            stale=self._stale,
            expired=self._expired,
            skipped={reason: n for reason, n in self._skipped.items() if n},
            delta_rows=state.delta_rows,
            delta_bytes=state.delta_bytes,
            newest=self.newest or None,
            rows=state.items,
            current=current,
        )
