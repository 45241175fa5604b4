"""The thread that builds generations: from the source, or from what is served."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

from cython_ext.cache_known import KnownTimes
from cython_ext.column import Column, Kind
from procserver.errors import ProcserverError, SourceError
from procserver.faults import hit
from procserver.itemcache.compaction import compact, fold_companion
from procserver.itemcache.cursors import NONE
from procserver.itemcache.delta import DeltaFull
from procserver.itemcache.expiry import FOREVER, deletions, too_old
from procserver.itemcache.guards import Guard, Limits, sifted
from procserver.itemcache.intake import Past
from procserver.itemcache.live import Live, State, Step, Tee, sliced, step_rows
from procserver.itemcache.loading import load
from procserver.itemcache.making import Makers
from procserver.itemcache.reader import Generation
from procserver.itemcache.reports import (
    COMPACTION,
    EMPTY,
    FULL,
    BuildBegan,
    BuildReport,
    FailureReport,
    Report,
)
from procserver.itemcache.schedule import BackOff, Plan, Schedule
from procserver.itemcache.sources import Changes, ItemSource
from procserver.itemcache.writer import GenerationWriter
from procserver.shm import attach

log = logging.getLogger(__name__)

OpenSource = Callable[[], ItemSource]

# For how long changes of a source that does not tell whether there are more are read
# before a generation is published.
CATCH_UP = 30.0
# For how long a load waits for changes that are older than it to be applied.
PATIENCE = 5.0
# The same before it reads its first row.
SHORT = 2.0
# Between two looks whether the refresher ends.
LOOK = 0.5


class Ended(Exception):
    """The refresher ends; nobody waits for what is being made."""


def as_error(error: Exception) -> ProcserverError:
    """What a report can carry; a source of a third party may raise anything."""
    if isinstance(error, ProcserverError):
        return error
    failure = SourceError(f"{type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


class Builder:
    """Takes work from the schedule until that ends; :meth:`run` is its thread."""

    def __init__(
        self,
        live: Live,
        makers: Makers,
        schedule: Schedule,
        plan: Plan,
        open_source: OpenSource,
        report: Callable[[Report], None],
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits
        self._live = live
        self._makers = makers
        self._schedule = schedule
        self._plan = plan
        self._open_source = open_source
        self._report = report
        # How many changes were known when what is being loaded was begun.
        self._known = FOREVER
        self._pauses = {kind: BackOff(plan) for kind in (FULL, COMPACTION)}

    def run(self) -> None:
        while (kind := self._schedule.take()) is not None:
            self._work(kind)

    def _work(self, kind: str) -> None:
        began = time.monotonic()
        pauses = self._pauses[kind]
        try:
            made = self._full() if kind == FULL else self._compact()
        except Ended:
            return
        except Exception as error:
            # A load that takes minutes is not begun again after one second.
            pause = pauses.failed(time.monotonic() - began)
            self._schedule.want(kind, pause)
            if kind == FULL and self._live.expiry is not None:
                self._live.expiry.failed(FULL)
            self._report(FailureReport(kind, as_error(error), pause))
            log.debug("%s build failed", kind, exc_info=error)
            if self._live.state is None and not self._plan.required:
                self._publish_empty()
            return
        pauses.worked()
        if made is not None:
            self._report(made)

    def _full(self) -> BuildReport:
        """Loads everything; changes that came meanwhile are published with it."""
        began = time.monotonic()
        self._report(BuildBegan())
        with ExitStack() as stack:
            source = stack.enter_context(closing(self._open_source()))
            loaded = load(
                source,
                self._live.control,
                table=self._live.table,
                go_on=self._go_on,
                guard=self._guard(),
                expiry=self._live.expiry,
                before=self._before,
            )
            made = _Made(stack, self._live, loaded.cursor, loaded.follows)
            made.began = loaded.began
            made.take(loaded.writer, loaded.at)
            self._remember(made)
            told = self._makers.equip(made.state)
            self._hand_over(made, source)
            if loaded.follows and self._plan.period is not None:
                self._schedule.restart(FULL, self._plan.period)
            return made.report(FULL, began, source.skipped, told)

    def _before(self, follows: bool, since: float) -> Generation | None:
        """What is served, with all that came before ``since``: what comes after that
        is applied to its successor too, so nothing of its times is lost.
        """
        is_all = follows and self._wait_current(since, SHORT)
        with self._live.gate:
            state = self._live.state
            if state is None:
                self._known = FOREVER
                return None
            self._known = FOREVER if is_all else state.delta_rows
            return state.view()

    def _remember(self, made: "_Made") -> None:
        """What ended in what is served, and what is known of times there but was not
        yet when the load began.
        """
        with self._live.gate:
            state = self._live.state
            if state is None:
                return
            made.state.inherit(state)
            view = state.view()
        if self._known < view.count:
            past = Past(view, made.state.generation.schema)
            for ids, known in past.since(self._known):
                made.remember(ids, known)

    def _wait_current(self, since: float, seconds: float) -> bool:
        """Waits until what came before ``since`` is applied; a source that fails just
        now brings nothing older either.
        """
        end = time.monotonic() + seconds
        while not self._live.wait_current(since, LOOK):
            self._go_on()
            if time.monotonic() > end:
                return False
        return True

    def _guard(self) -> Guard | None:
        forced = self._schedule.take_force()
        if self._limits is None:
            return None
        limits = replace(self._limits, max_row_drop=1.0) if forced else self._limits
        control, table = self._live.control, self._live.table
        reader = self._makers.reader
        return Guard(limits, control, table=table, reader=reader)

    def _compact(self) -> BuildReport | None:
        """Folds the delta into a generation; changes go on meanwhile."""
        began = time.monotonic()
        state = self._live.state
        if state is None or state.cursor is NONE or not is_foldable(state, self._plan):
            return None
        with ExitStack() as stack:
            stack.callback(self._live.end_tee)
            with self._live.gate:
                tee = self._live.start_tee()
                made = _Made(stack, self._live, state.cursor, state.follows)
                view = state.view()
            made.fold(state, view, made.cursor)
            told = self._makers.equip(made.state)
            self._hand_over(made, None, tee)
            return made.report(COMPACTION, began, {}, told)

    def _hand_over(
        self, made: "_Made", source: ItemSource | None, tee: Tee | None = None
    ) -> None:
        """Publishes what was made as soon as it knows all that readers have seen.

        :param source: to read changes from; None: opened if it is needed
        :param tee: in place since before it was made
        """
        with ExitStack() as stack:
            stack.callback(self._live.end_tee)
            while True:
                try:
                    if tee is None:
                        if source is None:
                            source = stack.enter_context(closing(self._open_source()))
                        tee = self._catch_up(made, source)
                    if self._live.publish(
                        made.writer, made.state, tee, self._makers.is_equipped
                    ):
                        return
                except DeltaFull:
                    made.make_room()
                if tee is not None and tee.overflowed:
                    tee = None
                self._makers.equip(made.state)

    def _catch_up(self, made: "_Made", source: ItemSource) -> Tee | None:
        """Reads up to the newest change twice: what comes after the second time has
        begun is in the tee. None: nobody has seen changes.
        """
        if self._live.state is None:
            return None
        is_told = self._read_changes(made, source)
        if is_told and made.follows:
            # What is in the tee is applied over what was loaded, so none of it may be
            # older.
            self._wait_current(made.began, PATIENCE)
        if not is_told and self._live.expiry is None:
            return None
        tee = self._live.start_tee()
        if is_told:
            self._read_changes(made, source)
        self._end_old_items(made)
        return tee

    def _end_old_items(self, made: "_Made") -> None:
        """What has ended in the meantime; from now on the tee tells."""
        if self._live.expiry is not None:
            view = made.state.view()
            rows, _ = too_old(view, self._live.expiry.horizon)
            for step in deletions(view, rows):
                made.apply(step)

    def _read_changes(self, made: "_Made", source: ItemSource) -> bool:
        """Applies changes until there are none; False: the source knows no changes."""
        end = time.monotonic() + CATCH_UP
        while True:
            self._go_on()
            hit("source.read")
            changes = source.changes(made.state.cursor, 0.0)
            if changes is None:
                return False
            for step in sliced(changes.steps):
                good, why = sifted(
                    step, made.state.generation, self._limits, self._makers.reader
                )
                made.skipped.update(why)
                made.apply(good)
            known, made.state.cursor = made.state.cursor, changes.next_cursor
            if _is_all(changes, known) or time.monotonic() > end:
                return True

    def _go_on(self) -> None:
        if self._schedule.ended:
            raise Ended

    def _publish_empty(self) -> None:
        """Something to serve: requests bring what they know of their items."""
        control = self._live.control
        schema = {self._plan.key: Kind.STRING}
        try:
            with GenerationWriter(
                control, self._plan.key, schema, table=self._live.table
            ) as writer:
                writer.seal()
                state = State(control, Generation(attach(writer.name)), NONE)
                self._live.publish(writer, state, None)
        except ProcserverError as error:
            self._report(FailureReport(EMPTY, error))
            return
        self._report(BuildReport(writer.number, 0, writer.nbytes, 0.0, {}, kind=EMPTY))


def _is_all(changes: Changes, known: object) -> bool:
    """Whether nothing was left when the source answered."""
    if changes.more is not None:
        return not changes.more
    return not changes.steps or bool(changes.next_cursor == known)


def is_foldable(state: State, plan: Plan) -> bool:
    """Whether the delta has become so large that it is worth while."""
    most = max(plan.delta_rows, state.generation.row_count // plan.share)
    return state.is_full or state.delta_rows > most


class _Made:
    """A sealed generation on its way, and what is known of it."""

    def __init__(
        self,
        stack: ExitStack,
        live: Live,
        cursor: object,
        follows: bool | None,
    ) -> None:
        self._stack = stack
        self._control = live.control
        self._expiry = live.expiry
        self.cursor = cursor
        self.follows = follows
        self.began = time.monotonic()
        self.replayed = 0
        self.skipped: Counter[str] = Counter()
        self.companion_bytes = 0

    def take(self, writer: GenerationWriter, at: int | None = None) -> None:
        """The generation that ``writer`` has sealed, loaded at that time."""
        self.writer = self._stack.enter_context(closing(writer))
        generation = Generation(attach(writer.name))
        self.state = State(
            self._control,
            generation,
            self.cursor,
            follows=self.follows,
            loaded_at=at,
            expiry=self._expiry,
        )

    def apply(self, step: Step) -> None:
        """Appends to it; nobody sees it yet."""
        try:
            self.state.delta().apply([step], publish=False)
        except DeltaFull:
            # NOTE: going on behind what was applied, and not from the cursor again,
            # makes this come to an end however much one answer holds.
            self.make_room()
            self.state.delta().apply([step], publish=False)
        self.replayed += step_rows(step)

    def remember(self, ids: Column, known: KnownTimes) -> None:
        """Times of events that are known of its items."""
        try:
            self.state.delta().remember(ids, known)
        except DeltaFull:
            self.make_room()
            self.state.delta().remember(ids, known)

    def make_room(self) -> None:
        """So much has changed while it was made that the delta is full."""
        before, writer = self.state, self.writer
        self.fold(before, before.view(), before.cursor)
        before.close()
        writer.close()

    def fold(self, before: State, view: Generation, cursor: object) -> None:
        """Makes a generation of ``before`` as ``view`` has it, companions included.

        :param cursor: where changes went on when that was taken
        """
        self.cursor = cursor
        self.take(compact(self._control, view), before.loaded_at)
        self.state.since = before.since
        if before.delta_rows:
            self.state.delta().inherit(view)
        for digest in before.makers:
            folded = fold_companion(self._control, view, self.state.generation, digest)
            self.companion_bytes += 0 if folded is None else folded.bytes

    def report(
        self, kind: str, began: float, skipped: Mapping[str, int], told: dict[str, Any]
    ) -> BuildReport:
        """About what was published."""
        counted = Counter(self.writer.skipped)
        counted.update(skipped)
        counted.update(self.skipped)
        return BuildReport(
            generation=self.writer.number,
            rows=self.state.items,
            bytes=self.writer.nbytes,
            seconds=time.monotonic() - began,
            skipped={reason: count for reason, count in counted.items() if count},
            kind=kind,
            replayed=self.replayed,
            delta_rows=self.state.delta_rows,
            delta_bytes=self.state.delta_bytes,
            **({"companion_bytes": self.companion_bytes} | told),
        )
