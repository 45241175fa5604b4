"""The refresher: reads the source, builds generations, follows what changes.

Three threads: commands are obeyed on the one that calls :func:`run`, whatever the
source does; one builds (``building``), one applies changes (``following``).
"""

import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from procserver.itemcache.building import Builder, OpenSource
from procserver.itemcache.commands import BUILD, FORCE, STOP
from procserver.itemcache.companion import CompanionMaker, make_companion
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.cursors import NONE
from procserver.itemcache.expiry import Expiry
from procserver.itemcache.following import Follower
from procserver.itemcache.guards import Guard, Limits, sifted
from procserver.itemcache.live import Live, State
from procserver.itemcache.loading import load
from procserver.itemcache.making import Makers, OpenMaker
from procserver.itemcache.reader import Generation
from procserver.itemcache.reports import (
    FULL,
    AttachReport,
    BuildBegan,
    BuildReport,
    ChangesReport,
    CompanionReport,
    FailureReport,
    Report,
)
from procserver.itemcache.schedule import Plan, Schedule
from procserver.itemcache.sources import ItemSource
from procserver.shm import attach, reclaim

__all__ = [
    "BUILD",
    "STOP",
    "AttachReport",
    "BuildBegan",
    "BuildReport",
    "ChangesReport",
    "CompanionReport",
    "FailureReport",
    "Plan",
    "Report",
    "build",
    "reclaim",
    "run",
]

# How often the refresher looks whether its parent is still the same, in seconds.
PARENT_CHECK = 1.0
# For how long a thread may take to see that the refresher ends.
JOIN = 2.0


def build(
    source: ItemSource,
    control: ControlSegment,
    *,
    table: int = 0,
    companion: CompanionMaker | None = None,
    others: Sequence[CompanionMaker] = (),
    guard: Guard | None = None,
) -> BuildReport:
    """Builds a generation from everything in ``source`` and publishes it, once and
    without a refresher.

    What ``companion`` and ``others`` make of it is published with it; if that fails,
    the generation goes without. The report is about ``companion``.

    On failure nothing changes for readers and no segment is left. What an earlier
    build left when it was killed is removed first. pyarrow starts its threads
    here, so this never runs in a process that will fork.

    :param guard: what it must pass; None: anything goes
    :raises Refused: if it does not
    :raises SourceError: if the source cannot be read or memory does not suffice
    """
    began = time.monotonic()
    control.sweep()
    writer = load(source, control, table=table, guard=guard).writer
    with closing(writer):
        made = _make_companion(writer.name, control, companion)
        for other in others:
            _make_companion(writer.name, control, other)
        number = writer.publish()
        skipped = Counter(writer.skipped)
    skipped.update(source.skipped)
    return BuildReport(
        generation=number,
        rows=writer.items,
        bytes=writer.nbytes,
        seconds=time.monotonic() - began,
        skipped={reason: count for reason, count in skipped.items() if count},
        **made,
    )


def _make_companion(
    generation: str, control: ControlSegment, maker: CompanionMaker | None
) -> dict[str, Any]:
    """The fields of the report about the companion."""
    if maker is None:
        return {}
    began = time.monotonic()
    try:
        made = make_companion(Generation(attach(generation)), control, maker)
    except Exception as error:
        # Whatever it is (no memory, a plug-in's error): items can be served.
        return {"companion_problem": f"{type(error).__name__}: {error}"}
    return {
        "pregenerated": made.features,
        "companion_bytes": made.bytes,
        "companion_seconds": time.monotonic() - began,
    }


def run(
    open_source: OpenSource,
    control: ControlSegment,
    report: Callable[[Report], None],
    commands: int,
    *,
    plan: Plan = Plan(),  # noqa: B008
    parent: int | None = None,
    table: int = 0,
    companion: CompanionMaker | None = None,
    open_maker: OpenMaker | None = None,
    limits: Limits | None = None,
    reload: bool = False,
) -> None:
    """The main loop of the refresher process; returns when it shall end.

    Takes over what a refresher before it has published, or builds; then follows the
    source as ``plan`` says. ``BUILD`` on the descriptor ``commands`` builds (several
    waiting ones count as one), ``FORCE`` even what has lost its items, ``STOP`` or its
    end ends the loop, as does the death of the process ``parent`` (the end of the pipe
    says so too where nobody else holds it). Whatever fails is reported and tried again;
    what is published stays.

    :param report: called by several threads, one at a time
    :param companion: the maker ``FIRST``
    :param open_maker: opens another one of what :func:`commands.make_command` tells
    :param limits: of what is published; None: anything is
    :param reload: load everything, whatever can be gone on from
    """
    one_at_a_time = threading.Lock()

    def tell(about: Report) -> None:
        with one_at_a_time:
            report(about)

    control.sweep()
    expiry = None if plan.ttl is None else Expiry(plan.ttl, plan.period)
    live = Live(control, table, expiry)
    makers = Makers(live, companion, open_maker)
    schedule = Schedule()
    if reload:
        _want_load(live, schedule)
    _begin(live, makers, schedule, tell)
    builder = Builder(live, makers, schedule, plan, open_source, tell, limits)
    follower = Follower(
        live,
        schedule,
        plan,
        open_source,
        tell,
        lambda step, state: sifted(step, state.generation, limits, makers.reader),
    )
    threads = [
        threading.Thread(target=part.run, name=name, daemon=True)
        for name, part in (("builder", builder), ("follower", follower))
    ]
    for thread in threads:
        thread.start()
    try:
        _obey(_Lines(commands, parent), makers, schedule, tell)
    finally:
        schedule.end()
        follower.end()
        for thread in threads:
            # One that waits for a source that hangs goes with the process.
            thread.join(JOIN)


def _begin(
    live: Live, makers: Makers, schedule: Schedule, report: Callable[[Report], None]
) -> None:
    """Takes over what is there; what cannot be gone on from is built anew."""
    state = live.attach()
    if state is None:
        _want_load(live, schedule)
        return
    makers.equip(state)
    continues = state.cursor is not NONE
    if not continues:
        _want_load(live, schedule)
    report(_about(state, continues))


def _want_load(live: Live, schedule: Schedule) -> None:
    """Until then nobody knows which items the source still has."""
    schedule.want(FULL)
    if live.expiry is not None:
        live.expiry.failed(FULL)


def _about(state: State, continues: bool) -> AttachReport:
    return AttachReport(
        generation=state.generation.number,
        rows=state.items,
        bytes=state.generation.nbytes,
        delta_rows=state.delta_rows,
        delta_bytes=state.delta_bytes,
        continues=continues,
    )


def _obey(
    lines: "_Lines",
    makers: Makers,
    schedule: Schedule,
    report: Callable[[Report], None],
) -> None:
    """Follows commands until the end."""
    while True:
        waiting = lines.wait()
        if not waiting or STOP in waiting:
            return
        for line in waiting:
            makers.obey(line, report)
        if FORCE in waiting:
            schedule.force()
        elif BUILD in waiting:
            schedule.want(FULL)


class _Lines:
    """Commands as they come in on a pipe."""

    def __init__(self, descriptor: int, parent: int | None) -> None:
        self._descriptor = descriptor
        self._parent = parent
        self._rest = b""

    def wait(self) -> list[bytes]:
        """The lines that have come; none: the other side or the parent is gone."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while True:
            while not poll.poll(PARENT_CHECK * 1000):
                if self._parent is not None and os.getppid() != self._parent:
                    return []
            chunk = os.read(self._descriptor, 4096)
            if not chunk:
                return []
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if lines:
                return [line + b"\n" for line in lines]
