"""Folding: a generation and its delta become a new generation, without the source.

Records are copied as they are, event times included. What is left of deleted items
is the time of their deletion, so that an older event does not bring them back: it
goes on in the delta of the new generation, see :meth:`DeltaWriter.inherit`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cython_ext.cache_copy import RecordCopier
from cython_ext.cache_overlay import NEWEST
from procserver import shm
from procserver.errors import SourceError
from procserver.itemcache import layout
from procserver.itemcache.companion import CompanionReport
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import Companion, Delta, Generation
from procserver.itemcache.writer import CompanionWriter, GenerationWriter

# Rows that are looked at together.
BATCH = 1 << layout.BLOCK_SHIFT


def compact(control: ControlSegment, generation: Generation) -> GenerationWriter:
    """Copies what is alive in ``generation`` into a new one, sealed, not published.

    ``generation`` is the view of one count; what comes later is the caller's, to be
    applied to the new generation's delta. Memory beside the new segment: one byte for
    each row and some for each record of the delta.

    :return: to be published or closed
    :raises SourceError: if shared memory does not suffice or a record is damaged
    """
    writer = GenerationWriter(
        control,
        generation.key,
        generation.schema,
        table=generation.table,
        expected_rows=generation.row_count,
    )
    delta = None if generation.delta is None else generation.delta.records
    try:
        for rows in live_rows(generation):
            copier = RecordCopier(generation.records, rows, delta, generation.count)
            writer.append_records(copier, len(rows))
        writer.seal()
    except ValueError as error:
        writer.close()
        raise SourceError(f"generation {generation.number}: {error}") from error
    except BaseException:
        writer.close()
        raise
    return writer


def fold_companion(
    control: ControlSegment, generation: Generation, made: Generation, digest: str
) -> CompanionReport | None:
    """Copies the companion that ``digest`` made of ``generation`` and its delta.

    :param made: what :func:`compact` made of the same view
    :return: None: it does not reach to the end of the delta, or there is none; it is
        to be generated anew
    :raises SourceError: if shared memory does not suffice or a record is damaged
    """
    companion = _companion(control, generation, digest)
    if companion is None:
        return None
    delta = None if companion.delta is None else companion.delta.records
    with CompanionWriter(control, made, digest, companion.schema) as writer:
        start = 0
        for rows in live_rows(generation):
            copier = RecordCopier(
                companion.records, rows, delta, companion.count, start
            )
            writer.append_records(copier, len(rows))
            start += len(rows)
        writer.keep()
        return CompanionReport(len(companion.schema), writer.nbytes)


def _companion(
    control: ControlSegment, generation: Generation, digest: str
) -> Companion | None:
    number, count = generation.number, generation.count
    try:
        companion = Companion(shm.attach(control.companion_name(number, digest)))
        if count:
            name = control.delta_name(number, digest)
            flags = layout.DELTA | layout.COMPANION
            companion.attach_delta(Delta(shm.attach(name), flags))
    except FileNotFoundError:
        return None
    companion = companion.at(count)
    return companion if companion.count == count else None


def live_rows(generation: Generation) -> Iterator[NDArray[np.int64]]:
    """Numbers of the rows that ids lead to, ascending; the delta's last."""
    alive = np.frombuffer(generation.index.reachable(), np.uint8)
    changed = np.empty(0, np.int64)
    if generation.delta is not None and generation.delta.overlay is not None:
        overlay, count = generation.delta.overlay, generation.count
        covered = generation.index.covered(overlay, 0, count)
        alive[covered[covered >= 0]] = 0
        newest = np.frombuffer(overlay.newest(count), np.uint8)
        changed = generation.row_count + np.flatnonzero(newest == NEWEST)
    for start in range(0, generation.row_count, BATCH):
        yield start + np.flatnonzero(alive[start : start + BATCH])
    for start in range(0, len(changed), BATCH):
        yield changed[start : start + BATCH]
