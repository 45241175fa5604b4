"""What is published and what is appended to it; how one state takes over from another.

Three threads of the refresher meet here: the one that follows the source's changes,
the one that builds, and the one that obeys commands. Whoever appends to what is
published or replaces it holds the :attr:`Live.gate`, and never asks the source or
generates a whole table meanwhile.

A successor is made beside the state that is served. Readers must not go back in
time when it takes over, so it needs every change that they have seen. It reads
changes from its own cursor until a call that began after the :class:`Tee` was put
in says that there is no more; what was applied to the old state since then is in the
tee and is applied to the successor last, in the same order.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from procserver import shm
from procserver.errors import ServiceError
from procserver.itemcache.companion import CompanionMaker
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.cursors import NONE, Cursors
from procserver.itemcache.delta import Applied, DeltaWriter
from procserver.itemcache.expiry import Expiry
from procserver.itemcache.reader import Generation
from procserver.itemcache.reports import FULL
from procserver.itemcache.sources import Delete, Upsert
from procserver.itemcache.writer import GenerationWriter

log = logging.getLogger(__name__)

Step = Upsert | Delete

# PERF: rows that become visible by one publication; more would keep the gate, and
# with it a successor that is ready, waiting.
SLICE_ROWS = 16_384
# And bytes of them, as the source brought them.
SLICE_BYTES = 32 << 20
# What a tee may hold; beyond it the successor reads from the source again.
TEE_BYTES = 256 << 20
# A tee that holds less than this is emptied while the gate is held.
LAST_ROWS = 16_384


def sliced(steps: Sequence[Step]) -> Iterator[Step]:
    """The steps in pieces of at most ``SLICE_ROWS`` rows, and some bytes."""
    for step in steps:
        rows = step_rows(step)
        pieces = max(-(-rows // SLICE_ROWS), -(-_step_bytes(step) // SLICE_BYTES))
        each = max(1, -(-rows // max(1, pieces)))
        for start in range(0, rows, each):
            part = slice(start, start + each)
            times = None if step.times is None else step.times[part]
            if isinstance(step, Delete):
                yield Delete(step.keys[part], times)
            else:
                yield Upsert(step.batch.slice(start, each), times)


def step_rows(step: Step) -> int:
    """Rows of a step."""
    return len(step.keys) if isinstance(step, Delete) else step.batch.num_rows


def _step_bytes(step: Step) -> int:
    data = step.keys if isinstance(step, Delete) else step.batch
    return int(data.nbytes) + (0 if step.times is None else step.times.nbytes)


@dataclass
class Tee:
    """What was applied to a state since its successor needs to be told."""

    steps: list[Step] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    used: bool = False
    overflowed: bool = False

    def add(self, step: Step, *, is_own: bool = False) -> None:
        """``is_own``: it is not the source's, whose cursor stays where it was."""
        self.used |= not is_own
        self.bytes += _step_bytes(step)
        if self.bytes > TEE_BYTES:
            self.overflow()
        if not self.overflowed:
            self.steps.append(step)
            self.rows += step_rows(step)

    def overflow(self) -> None:
        """It tells nothing any more."""
        self.overflowed = True
        self.steps.clear()

    def take(self) -> list[Step]:
        """Empties it."""
        steps, self.steps = self.steps, []
        self.rows = self.bytes = 0
        return steps


class State:
    """A generation, what is appended to it, and where the source's changes go on.

    ``cursor`` is ``NONE`` where they do not: a full build is due. ``makers``: who
    generates ahead, by digest, each with a companion of this generation; ``refused``:
    digests of which there is none, since it could not be made. ``follows``: whether
    the source is to be asked for changes all the time (None: it was not asked yet).
    ``since``: when it was loaded from the source (CLOCK_MONOTONIC); ``is_full``:
    nothing can be appended before it is folded; ``is_folding``: that was asked for.
    ``repeats``: some of what comes after the cursor may have been applied already, so
    all of it is shown at once, or readers would see it go back and come again.
    ``loaded_at``: when that was begun (microseconds since 1970); None: it was not
    loaded but folded, or nobody needs to know.
    """

    def __init__(
        self,
        control: ControlSegment,
        generation: Generation,
        cursor: object,
        *,
        follows: bool | None = None,
        loaded_at: int | None = None,
        expiry: Expiry | None = None,
    ) -> None:
        self.generation = generation
        self.cursor = cursor
        self.follows = follows
        self.since = time.monotonic()
        self.is_full = False
        self.is_folding = False
        self.repeats = False
        self._counted = (0, generation.item_count)
        self.makers: dict[str, CompanionMaker] = {}
        self.refused: set[str] = set()
        self.loaded_at = loaded_at
        self._control = control
        self._expiry = expiry
        self._delta: DeltaWriter | None = None

    @property
    def delta_rows(self) -> int:
        return 0 if self._delta is None else self._delta.rows

    @property
    def delta_bytes(self) -> int:
        return 0 if self._delta is None else self._delta.nbytes

    @property
    def items(self) -> int:
        """Items that there are, with what was appended."""
        if self._counted[0] != self.delta_rows:
            self._counted = (self.delta_rows, self.view().count_items())
        return self._counted[1]

    def delta(self) -> DeltaWriter:
        """The writer of the delta; a source without changes never needs one."""
        if self._delta is None:
            self._delta = DeltaWriter(
                self._control,
                self.generation,
                table=self.generation.table,
                makers=list(self.makers.values()),
                expiry=self._expiry,
            )
        return self._delta

    def view(self) -> Generation:
        """The generation with what was appended so far; with the gate held, if it is
        published.
        """
        return self.generation if self._delta is None else self._delta.view()

    def inherit(self, before: "State") -> None:
        """An older event shall not bring back what was deleted in ``before``. Called
        first of all, with the gate held.
        """
        if before.delta_rows:
            self.delta().inherit(before.view())

    def add_maker(self, maker: CompanionMaker) -> None:
        """Its companion of the generation is there; its delta's follows."""
        if self._delta is not None:
            self._delta.add_maker(maker)
        self.makers[maker.digest] = maker

    def drop_maker(self, digest: str) -> None:
        """Workers that read it keep what they have mapped."""
        self.makers.pop(digest, None)
        if self._delta is not None:
            self._delta.keep_makers(self.makers)
        self._control.unlink_companion(self.generation.number, digest)

    def show(self) -> None:
        """Publishes what was appended, if it is this one that is published."""
        self.repeats = False
        if self._delta is not None:
            self._delta.publish()

    def release(self) -> int:
        """Changes that are to be published with the generation."""
        return 0 if self._delta is None else self._delta.release()

    def forget(self) -> None:
        """Takes back what was appended and not shown."""
        if self._delta is not None:
            self._delta.forget()

    def close(self) -> None:
        if self._delta is not None:
            self._delta.close()


class Live:
    """The published state of one table. Readers of memory see it too, whole."""

    def __init__(
        self, control: ControlSegment, table: int = 0, expiry: Expiry | None = None
    ) -> None:
        self.gate = threading.Condition()
        self.control = control
        self.table = table
        self.expiry = expiry
        self._cursors = Cursors(control)
        self._state: State | None = None
        self._tee: Tee | None = None
        self._current_at = 0.0

    @property
    def state(self) -> State | None:
        return self._state

    def attach(self) -> State | None:
        """Takes over what a refresher before this one has published, if it is sound.

        Its checksum is compared too (1 to 10 GB/s): nobody else does that again.
        """
        number, deltas = self.control.state(self.table)
        if not number:
            return None
        try:
            mapping = shm.attach(self.control.generation_name(number))
            generation = Generation(mapping)
            generation.verify()
            cursor = self._cursors.load(number)
            state = State(self.control, generation, cursor, expiry=self.expiry)
            if self.expiry is not None:
                self.expiry.attached(self._cursors.loaded_at)
            # By the wall clock, as another process has seen it.
            state.since -= max(0.0, time.time() - generation.built_at)
            state.repeats = True
            if deltas:
                state.delta()
            with self.gate:
                self._state = state
        except (FileNotFoundError, ServiceError) as error:
            log.warning("item cache generation %d cannot be used: %s", number, error)
        return self._state

    def wait(self, state: State | None, seconds: float) -> State | None:
        """The state that is published; waits until it is another one than ``state``."""
        with self.gate:
            self.gate.wait_for(lambda: self._state is not state, seconds)
            return self._state

    def apply(
        self, state: State, step: Step, *, is_own: bool = False
    ) -> Applied | None:
        """Appends to ``state`` and publishes, what is repeated with :meth:`advance`;
        None: another one has taken over.

        :param is_own: it does not come from the source
        :raises DeltaFull: if it must be folded first
        """
        with self.gate:
            if self._state is not state:
                return None
            applied = state.delta().apply([step], publish=not state.repeats)
            if self._tee is not None:
                self._tee.add(step, is_own=is_own)
            return applied

    def advance(self, state: State, cursor: object) -> bool:
        """All changes before ``cursor`` have been applied to ``state``.

        False: another one has taken over.
        """
        with self.gate:
            if self._state is not state:
                return False
            if state.repeats:
                state.show()
            if cursor != state.cursor:
                state.cursor = cursor
                self._cursors.save({state.generation.number: cursor})
            return True

    def forget(self, state: State) -> None:
        """Takes back what was appended and not published."""
        with self.gate:
            if self._state is state:
                state.forget()

    def note_current(self, at: float) -> None:
        """All that the source had at that time (CLOCK_MONOTONIC) has been applied."""
        with self.gate:
            self._current_at = max(self._current_at, at)
            self.gate.notify_all()

    def wait_current(self, since: float, seconds: float) -> bool:
        """Waits until all that the source had at a time has been applied, or nothing
        will be before another state takes over.
        """
        with self.gate:
            return self.gate.wait_for(
                lambda: (
                    self._current_at > since
                    or self._state is None
                    or self._state.cursor is NONE
                ),
                seconds,
            )

    def lose(self, state: State) -> None:
        """The changes since its cursor cannot be had any more."""
        with self.gate:
            state.cursor = NONE
            self._cursors.save({})
            if self._tee is not None:
                # There is no telling what came behind what it holds.
                self._tee.overflow()

    def start_tee(self) -> Tee:
        """From now on, what is applied to the published state is kept too."""
        with self.gate:
            self._tee = Tee()
            return self._tee

    def end_tee(self) -> None:
        with self.gate:
            self._tee = None

    def publish(
        self,
        writer: GenerationWriter,
        state: State,
        tee: Tee | None,
        is_equipped: Callable[[State], bool] = lambda state: True,
    ) -> bool:
        """Lets ``state``, sealed by ``writer``, take over; both numbers at once.

        False: the tee has overflowed, or ``state`` lacks something by now.

        :param is_equipped: asked while the gate is held

        :raises DeltaFull: if what is in the tee does not fit
        """
        try:
            return self._publish(writer, state, tee, is_equipped)
        except BaseException:
            if tee is not None:
                # What was taken out of it may not have been applied.
                with self.gate:
                    tee.overflow()
            raise

    def _publish(
        self,
        writer: GenerationWriter,
        state: State,
        tee: Tee | None,
        is_equipped: Callable[[State], bool],
    ) -> bool:
        while tee is not None and tee.rows > LAST_ROWS:
            with self.gate:
                steps = tee.take()
            state.delta().apply(steps, publish=False)
        with self.gate:
            before = self._state
            if not is_equipped(state):
                return False
            if tee is not None:
                if tee.overflowed:
                    return False
                if tee.steps:
                    state.delta().apply(tee.take(), publish=False)
                if tee.used and before is not None:
                    # What is applied next follows what the old state has seen.
                    state.cursor = before.cursor
            self._take_over(writer, state, before)
        return True

    def _take_over(
        self, writer: GenerationWriter, state: State, before: State | None
    ) -> None:
        cursors = {state.generation.number: state.cursor}
        if before is not None:
            state.repeats = before.repeats and state.cursor == before.cursor
            cursors[before.generation.number] = before.cursor
        if self.expiry is not None and state.loaded_at is not None:
            self._cursors.loaded_at = state.loaded_at
            self.expiry.loaded(state.loaded_at, FULL, follows=bool(state.follows))
            # What is folded from it was not loaded again.
            state.loaded_at = None
        self._cursors.save({n: c for n, c in cursors.items() if c is not NONE})
        writer.publish(state.release())
        self._state, self._tee = state, None
        if before is not None:
            before.close()
        self.gate.notify_all()
