"""Everything in a source, as one generation that is not published yet."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa

from cython_ext.column import Kind
from procserver.faults import hit
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.expiry import Expiry
from procserver.itemcache.guards import Guard
from procserver.itemcache.intake import Intake, Past
from procserver.itemcache.reader import Generation
from procserver.itemcache.sources import ROW_TIME, ItemSource
from procserver.itemcache.writer import GenerationWriter

# For so long Arrow keeps what it has freed.
DECAY_MS = 100


@dataclass(frozen=True)
class Load:
    """A sealed generation that is not published: ``writer`` is the caller's to close.

    ``cursor``: where changes go on; ``follows``: whether the source is one to follow;
    ``began``: before the snapshot was taken (CLOCK_MONOTONIC); ``at``: the same in
    microseconds since 1970, where items end by their age.
    """

    writer: GenerationWriter
    cursor: object
    follows: bool
    began: float
    at: int | None


def load(
    source: ItemSource,
    control: ControlSegment,
    *,
    table: int = 0,
    go_on: Callable[[], None] = lambda: None,
    guard: Guard | None = None,
    expiry: Expiry | None = None,
    before: Callable[[bool, float], Generation | None] = lambda follows, at: None,
) -> Load:
    """Everything in ``source`` as a sealed generation that is not published.

    :param go_on: called for each batch; what it raises ends the load
    :param guard: what it must pass, or it is ``Refused``; None: anything goes
    :param expiry: what tells which items are too old; None: none is
    :param before: asked, once the snapshot is taken, for what is served: the times of
        events that it knows are kept. Told whether the source is one to follow, and
        when the load began
    """
    hit("source.read")
    about = source.describe()
    if expiry is not None:
        about = replace(about, schema={**about.schema, ROW_TIME: Kind.INT64})
    if guard is not None:
        guard.admit(about)
    began, at = time.monotonic(), None if expiry is None else expiry.now()
    cursor, batches = source.snapshot()
    view = before(about.follows, time.monotonic())
    past = None if view is None else Past(view, about.schema)
    writer = GenerationWriter(
        control,
        about.key,
        about.schema,
        table=table,
        expected_rows=about.rows,
        sieve=None if guard is None else guard.sieve,
        intake=Intake.of(past, expiry, at),
    )
    try:
        for batch in batches:
            go_on()
            hit("source.read")
            writer.append(batch)
            if guard is not None:
                guard.watch(writer)
        writer.seal()
        if guard is not None:
            guard.release(writer)
    except BaseException:
        writer.close()
        raise
    finally:
        # Arrow keeps what it has freed, as if the next load came at once.
        pa.default_memory_pool().release_unused()
    return Load(writer, cursor, about.follows, began, at)


def give_memory_back() -> None:
    """Has Arrow return to the system soon what loads have freed, for the whole process.

    Its usual allocator keeps some 150 MB more. ``ARROW_DEFAULT_MEMORY_POOL`` wins.
    """
    if "ARROW_DEFAULT_MEMORY_POOL" not in os.environ:
        # Not every build of Arrow has it.
        with suppress(NotImplementedError):
            pa.set_memory_pool(pa.jemalloc_memory_pool())
            pa.jemalloc_set_decay_ms(DECAY_MS)
