"""What a build must pass before it is published.

A build that does not pass is refused with one sentence; the generation before stays.
In order: columns and memory before anything is read, memory again after the first
rows, bad rows while they come, then rows, and the checksum of what was sealed.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from cython_ext.column import Kind
from procserver.errors import Refused, ServiceError
from procserver.itemcache import budget
from procserver.itemcache.cells import LONGEST_CELL, Sieve, TableReader
from procserver.itemcache.compaction import live_rows
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.sources import ROW_TIME, Delete, Description, Upsert
from procserver.itemcache.writer import EXPIRED, LEFT_OUT, GenerationWriter
from procserver.shm import attach, total_size

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What is refused: the settings of the same names, see ``config.host``."""

    max_row_drop: float = 0.5
    max_bad_rows: float = 0.1
    max_cell_bytes: int = LONGEST_CELL
    max_cache_bytes: int | None = None


class Guard:
    """Watches one build of a table, which each method may refuse.

    :param reader: who reads the table; None: nobody knows
    """

    def __init__(
        self,
        limits: Limits,
        control: ControlSegment,
        *,
        table: int = 0,
        reader: TableReader | None = None,
    ) -> None:
        self._limits = limits
        self._control, self._table = control, table
        self._before = published(control, table)
        self._companions = 0
        if self._before is not None:
            name = control.generation_name(self._before.number)
            self._companions = total_size(f"{name}-")
        self._reader = reader
        self._expected: int | None = None
        self._measured = False
        self.sieve = Sieve(limits.max_cell_bytes, reader)

    def admit(self, about: Description) -> None:
        """Before anything is read: columns, and memory by the build before.

        :raises Refused: naming column and feature, or needed and free bytes
        """
        self._check_columns(about.schema)
        self._expected = about.rows
        if self._before is not None:
            rows = self._before.row_count if about.rows is None else about.rows
            size = budget.expected_bytes(self._before, self._companions, rows)
            budget.check(rows, size, 0, self._limits.max_cache_bytes)

    def watch(self, writer: GenerationWriter) -> None:
        """After each batch: memory by the first rows, and bad rows as they come.

        :raises Refused: if it is certain already
        """
        if self._expected is None:
            return
        if writer.rows and not self._measured:
            self._measured = True
            rows = max(self._expected, writer.rows)
            size = budget.sampled_bytes(writer.nbytes, writer.rows, rows)
            most = self._limits.max_cache_bytes
            budget.check(rows, size, writer.nbytes, most)
        self._check_rows(writer.skipped, max(self._expected, writer.seen))

    def release(self, writer: GenerationWriter) -> None:
        """When it is sealed: rows, and that its name leads to what was written.

        :raises Refused: with both numbers of items
        """
        self._check_rows(writer.skipped, writer.seen)
        self._check_items(writer.items, writer.skipped[EXPIRED])
        try:
            Generation(attach(writer.name)).verify()
        except FileNotFoundError as error:
            raise Refused(f"{error}: somebody removed it") from error

    def _check_columns(self, schema: Mapping[str, Kind]) -> None:
        before = {} if self._before is None else self._before.schema
        reads = {} if self._reader is None else self._reader.reads
        for name, kind in before.items():
            if name in schema:
                if schema[name] != kind:
                    now = schema[name].name.lower()
                    log.info("item column %r: %s is %s", name, kind.name.lower(), now)
            elif name in reads:
                features = ", ".join(repr(feature) for feature in reads[name])
                raise Refused(
                    f"item column {name!r}, which {features} read, is in no item"
                    " table any more"
                )
            else:
                log.info("item column %r is in no item table any more", name)
        for name in schema.keys() - before.keys() if before else ():
            log.info("item column %r is new", name)
        problems = [] if self._reader is None else self._reader.unfit(schema)
        if problems:
            raise Refused(f"item table: {'; '.join(problems)}")

    def _check_rows(self, skipped: Counter[str], seen: int) -> None:
        """Bad rows: those left out, and for each column its bad cells."""
        most = self._limits.max_bad_rows
        left = {why: skipped[why] for why in LEFT_OUT if skipped[why]}
        if sum(left.values()) > most * seen:
            told = ", ".join(f"{count} {why}" for why, count in left.items())
            raise Refused(
                f"{sum(left.values())} of {seen} rows are bad ({told}), more than"
                f" procserver.max_bad_rows ({most:g}) allows"
            )
        for (name, reason), count in self.sieve.cells.items():
            if count > most * seen:
                raise Refused(
                    f"item column {name!r}: {count} of {seen} cells are bad"
                    f" ({self._why(name, reason)}), more than procserver.max_bad_rows"
                    f" ({most:g}) allows"
                )

    def _why(self, name: str, reason: str) -> str:
        reads = {} if self._reader is None else self._reader.reads
        if reason != "refused_cell" or name not in reads:
            return reason
        features = ", ".join(repr(feature) for feature in reads[name])
        return f"{reason}: not as many values as {features} take"

    def _held(self) -> int:
        """Items before; those that have ended by their age do not count."""
        if self._before is None or ROW_TIME not in self._before.schema:
            return 0 if self._before is None else self._before.item_count
        view = CacheReader(self._control.name, table=self._table).current()
        return sum(len(rows) for rows in live_rows(view))

    def _check_items(self, items: int, expired: int) -> None:
        """What the source has and is too old is not lost."""
        held, most = self._held(), self._limits.max_row_drop
        if not items and expired:
            log.warning("all %d items of the source are older than item_ttl", expired)
            return
        if not held:
            if not items:
                log.warning("the item cache is empty: its source has no items")
            return
        if not items:
            raise Refused(f"the source has no items, the item cache holds {held}")
        if items + expired < held * (1 - most):
            raise Refused(
                f"{items} items instead of {held}: a loss of"
                f" {1 - items / held:.0%}, more than procserver.max_row_drop"
                f" ({most:g}) allows; if it is right, `procserver refresh --force`"
            )


def sifted(
    step: Upsert | Delete,
    generation: Generation,
    limits: Limits | None,
    reader: TableReader | None,
) -> tuple[Upsert | Delete, Counter[str]]:
    """A step without the rows that have bad cells, and why they are left out."""
    if limits is None or isinstance(step, Delete):
        return step, Counter()
    sieve = Sieve(limits.max_cell_bytes, reader)
    bad = sieve.bad_rows(generation.schema, step.batch, generation.key)
    if not bad.any():
        return step, Counter()
    times = None if step.times is None else step.times[~bad]
    return Upsert(step.batch.filter(pa.array(~bad)), times), sieve.skipped


def published(control: ControlSegment, table: int = 0) -> Generation | None:
    """What is published, if it is sound; None: nothing."""
    number, _ = control.state(table)
    if not number:
        return None
    try:
        return Generation(attach(control.generation_name(number)))
    except (FileNotFoundError, ServiceError) as error:
        log.warning("item cache generation %d: %s", number, error)
        return None
