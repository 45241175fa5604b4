"""The refresher: reads the source, builds generations, publishes them."""

import os
import select
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from procserver.errors import ProcserverError, SourceError
from procserver.itemcache.companion import CompanionMaker, make_companion
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import Generation
from procserver.itemcache.sources import ItemSource
from procserver.itemcache.writer import GenerationWriter
from procserver.shm import attach, reclaim

__all__ = ["BUILD", "STOP", "BuildReport", "build", "reclaim", "run"]

# Commands, one byte each on the descriptor that the refresher waits for.
BUILD = b"b"
STOP = b"q"
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


def build(
    source: ItemSource,
    control: ControlSegment,
    *,
    table: int = 0,
    companion: CompanionMaker | None = None,
) -> BuildReport:
    """Builds a generation from everything in ``source`` and publishes it.

    What ``companion`` makes of it is published with it; if that fails, the
    generation goes without.

    On failure nothing changes for readers and no segment is left. What an earlier
    build left when it was killed is removed first. pyarrow starts its threads
    here, so this runs in the refresher only, never in a process that will fork.

    :raises SourceError: if the source cannot be read or memory does not suffice
    """
    began = time.monotonic()
    control.sweep()
    about = source.describe()
    _, batches = source.snapshot()
    with GenerationWriter(
        control, about.key, about.schema, table=table, expected_rows=about.rows
    ) as writer:
        for batch in batches:
            writer.append(batch)
        writer.seal()
        made = _make_companion(writer, control, companion)
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
    writer: GenerationWriter, control: ControlSegment, maker: CompanionMaker | None
) -> dict[str, Any]:
    """The fields of the report about the companion."""
    if maker is None:
        return {}
    began = time.monotonic()
    try:
        made = make_companion(Generation(attach(writer.name)), control, maker)
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
    report: Callable[[BuildReport | ProcserverError], None],
    commands: int,
    *,
    parent: int | None = None,
    table: int = 0,
    companion: CompanionMaker | None = None,
) -> None:
    """The main loop of the refresher process; returns when it shall end.

    Builds once, reports, then waits: ``BUILD`` on the descriptor ``commands``
    builds again (several waiting ones count as one), ``STOP`` or its end ends the
    loop, as does the death of the process ``parent`` (the end of the pipe says so
    too where nobody else holds it). A build that fails is reported as the error;
    the generation before stays.
    """
    source: ItemSource | None = None
    try:
        due = True
        while True:
            if due:
                source = _build_once(
                    source, open_source, control, report, table, companion
                )
            waiting = _commands(commands, parent)
            if not waiting or STOP in waiting:
                return
            due = BUILD in waiting
    finally:
        if source is not None:
            source.close()


def _build_once(
    source: ItemSource | None,
    open_source: Callable[[], ItemSource],
    control: ControlSegment,
    report: Callable[[BuildReport | ProcserverError], None],
    table: int,
    companion: CompanionMaker | None,
) -> ItemSource | None:
    """Builds and reports; opens the source where that has not worked yet."""
    try:
        source = source or open_source()
        report(build(source, control, table=table, companion=companion))
    except ProcserverError as error:
        report(error)
    except Exception as error:
        # A source of a third party may raise anything; the service goes on.
        failure = SourceError(f"{type(error).__name__}: {error}")
        failure.__cause__ = error
        report(failure)
    return source


def _commands(descriptor: int, parent: int | None) -> bytes:
    """The bytes waiting; none: the other side or the parent is gone."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while not poll.poll(PARENT_CHECK * 1000):
        if parent is not None and os.getppid() != parent:
            return b""
    return os.read(descriptor, 4096)
