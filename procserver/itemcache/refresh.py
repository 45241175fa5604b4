"""The refresher: reads the source, builds generations, publishes them."""

import os
import select
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from procserver.errors import ProcserverError, SourceError
from procserver.faults import hit
from procserver.itemcache.cells import TableReader
from procserver.itemcache.commands import BUILD, FIRST, KEEP, MAKE, STOP
from procserver.itemcache.companion import CompanionMaker, make_companion
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.guards import Guard, Limits
from procserver.itemcache.reader import Generation
from procserver.itemcache.sources import ItemSource
from procserver.itemcache.writer import GenerationWriter
from procserver.shm import attach, reclaim, unlink

__all__ = ["BUILD", "STOP", "BuildReport", "CompanionReport", "build", "reclaim", "run"]

# How often the refresher looks whether its parent is still the same, in seconds.
PARENT_CHECK = 1.0


@dataclass(frozen=True)
class BuildReport:
    """What a build did; ``skipped`` counts rows left out, by reason.

    ``pregenerated``: features generated ahead, which took ``companion_bytes`` and
    ``companion_seconds``; ``companion_problem`` tells why there are none.
    """

    generation: int
    rows: int
    bytes: int
    seconds: float
    skipped: dict[str, int]
    pregenerated: int = 0
    companion_bytes: int = 0
    companion_seconds: float = 0.0
    companion_problem: str = ""


@dataclass(frozen=True)
class CompanionReport:
    """What became of the companion that a ``make`` command asked for.

    ``problem`` tells why there is none; without inputs there is none either.
    """

    label: str
    generation: int
    pregenerated: int = 0
    companion_bytes: int = 0
    companion_seconds: float = 0.0
    companion_problem: str = ""


Report = BuildReport | CompanionReport | ProcserverError
OpenMaker = Callable[[str], CompanionMaker | None]


def build(
    source: ItemSource,
    control: ControlSegment,
    *,
    table: int = 0,
    companion: CompanionMaker | None = None,
    others: Sequence[CompanionMaker] = (),
    guard: Guard | None = None,
) -> BuildReport:
    """Builds a generation from everything in ``source`` and publishes it.

    What ``companion`` and ``others`` make of it is published with it; if that fails,
    the generation goes without. The report is about ``companion``.

    On failure nothing changes for readers and no segment is left. What an earlier
    build left when it was killed is removed first. pyarrow starts its threads
    here, so this runs in the refresher only, never in a process that will fork.

    :param guard: what it must pass; None: anything goes
    :raises Refused: if it does not
    :raises SourceError: if the source cannot be read or memory does not suffice
    """
    began = time.monotonic()
    control.sweep()
    hit("source.read")
    about = source.describe()
    if guard is not None:
        guard.admit(about)
    _, batches = source.snapshot()
    with GenerationWriter(
        control,
        about.key,
        about.schema,
        table=table,
        expected_rows=about.rows,
        sieve=None if guard is None else guard.sieve,
    ) as writer:
        for batch in batches:
            hit("source.read")
            writer.append(batch)
            if guard is not None:
                guard.watch(writer)
        writer.seal()
        if guard is not None:
            guard.release(writer)
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
    open_source: Callable[[], ItemSource],
    control: ControlSegment,
    report: Callable[[Report], None],
    commands: int,
    *,
    parent: int | None = None,
    table: int = 0,
    companion: CompanionMaker | None = None,
    open_maker: OpenMaker | None = None,
    limits: Limits | None = None,
) -> None:
    """The main loop of the refresher process; returns when it shall end.

    Builds once, reports, then waits: ``BUILD`` on the descriptor ``commands``
    builds again (several waiting ones count as one), ``STOP`` or its end ends the
    loop, as does the death of the process ``parent`` (the end of the pipe says so
    too where nobody else holds it). A build that fails is reported as the error;
    the generation before stays.

    :param companion: the maker ``FIRST``
    :param open_maker: makes another one of what :func:`commands.make_command` tells
    :param limits: of what is published; None: anything is
    """
    makers: dict[str, CompanionMaker | None] = {FIRST: companion}
    crew = _Makers(control, table, makers, open_maker)
    lines = _Lines(commands, parent)
    source: ItemSource | None = None
    try:
        due = True
        while True:
            if due:
                source = _build_once(source, open_source, control, report, crew, limits)
            waiting = lines.wait()
            if not waiting or STOP in waiting:
                return
            for line in waiting:
                crew.obey(line, report)
            due = BUILD in waiting
    finally:
        if source is not None:
            source.close()


@dataclass
class _Makers:
    """Who generates ahead, by label; None: that one has nothing to generate."""

    control: ControlSegment
    table: int
    makers: dict[str, CompanionMaker | None]
    open_maker: OpenMaker | None

    def distinct(self) -> list[CompanionMaker]:
        """One for each digest, the latest first."""
        found = {m.digest: m for m in self.makers.values() if m is not None}
        return list(reversed(found.values()))

    @property
    def reader(self) -> TableReader | None:
        """What is served, that is the maker before any that is prepared."""
        served = next(iter(self.makers.values()), None)
        return None if served is None else served.reader

    def obey(self, line: bytes, report: Callable[[Report], None]) -> None:
        """Follows a ``make`` or ``keep`` command."""
        word, _, rest = line.rstrip(b"\n").partition(b" ")
        label, _, what = rest.decode().partition(" ")
        if word == MAKE:
            report(self._add(label, what))
        elif word == KEEP and label in self.makers:
            self._keep(label)

    def _add(self, label: str, what: str) -> CompanionReport:
        number, _ = self.control.state(self.table)
        if label in self.makers:
            return CompanionReport(label, number)
        try:
            maker = None if self.open_maker is None else self.open_maker(what)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            return CompanionReport(label, number, companion_problem=problem)
        known = {m.digest for m in self.makers.values() if m is not None}
        self.makers[label] = maker
        if maker is None or maker.digest in known or not number:
            return CompanionReport(label, number)
        name = self.control.generation_name(number)
        made = _make_companion(name, self.control, maker)
        return CompanionReport(label, number, **made)

    def _keep(self, label: str) -> None:
        dropped = {m.digest for m in self.makers.values() if m is not None}
        self.makers = {label: self.makers[label]}
        number, _ = self.control.state(self.table)
        for digest in dropped - {m.digest for m in self.distinct()}:
            # Workers that read it keep what they have mapped.
            unlink(self.control.companion_name(number, digest))


def _build_once(
    source: ItemSource | None,
    open_source: Callable[[], ItemSource],
    control: ControlSegment,
    report: Callable[[Report], None],
    crew: _Makers,
    limits: Limits | None,
) -> ItemSource | None:
    """Builds and reports; opens the source where that has not worked yet."""
    makers = crew.distinct()
    try:
        guard = None
        if limits is not None:
            guard = Guard(limits, control, table=crew.table, reader=crew.reader)
        source = source or open_source()
        report(
            build(
                source,
                control,
                table=crew.table,
                companion=makers[0] if makers else None,
                others=makers[1:],
                guard=guard,
            )
        )
    except ProcserverError as error:
        report(error)
    except Exception as error:
        # A source of a third party may raise anything; the service goes on.
        failure = SourceError(f"{type(error).__name__}: {error}")
        failure.__cause__ = error
        report(failure)
    return source


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
