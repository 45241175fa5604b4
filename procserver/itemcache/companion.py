"""Companions: what is generated ahead from a generation, row by row."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cython_ext.column import Column, Kind
from procserver.errors import SourceError
from procserver.itemcache import layout
from procserver.itemcache.cells import TableReader
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import Generation
from procserver.itemcache.writer import CompanionWriter

BATCH = 1 << layout.BLOCK_SHIFT
# Rows by which a maker chooses its kinds, spread over the table.
SAMPLE = 1 << 14
# How often a maker may change its kinds while it generates.
TRIES = 16


class CompanionMaker(Protocol):
    """Who generates: the cache knows neither what nor why.

    For each build :meth:`inputs`, :meth:`sample`, then :meth:`generate` for all
    rows in order; again from the first row whenever that answers None.
    """

    @property
    def digest(self) -> str:
        """Hexadecimal digits that tell this maker's companions from others."""

    @property
    def kinds(self) -> dict[str, Kind]:
        """The companion's columns."""

    @property
    def features(self) -> Collection[str]:
        """What is generated, for reports."""

    @property
    def reader(self) -> TableReader | None:
        """What the features need of a table, if that is known."""

    def inputs(self, schema: Collection[str]) -> tuple[str, ...]:
        """Columns that it reads of a table with the columns ``schema``."""

    def sample(self, columns: Mapping[str, Column], rows: int) -> None:
        """Chooses ``kinds`` by some rows."""

    def generate(
        self, columns: Mapping[str, Column], rows: int
    ) -> dict[str, Column] | None:
        """The columns of a batch; None: ``kinds`` has changed."""


@dataclass(frozen=True)
class CompanionReport:
    """What was made: number of features, and bytes of the segment."""

    features: int
    bytes: int


def make_companion(
    generation: Generation, control: ControlSegment, maker: CompanionMaker
) -> CompanionReport:
    """Writes the companion of a sealed generation, published or not yet.

    NOTE: its inputs are gathered from the generation, as requests gather them, not
    taken from the source's batches: what is generated from is the same by
    construction, types and nulls included, and row numbers cannot differ.

    :raises SourceError: if it cannot be written; nothing is left of it then
    """
    inputs = maker.inputs(generation.schema)
    if not inputs:
        return CompanionReport(0, 0)
    count = generation.row_count
    spread = np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.int64)
    maker.sample(generation.gather(spread, inputs), len(spread))
    for _ in range(TRIES):
        if not maker.kinds:
            return CompanionReport(0, 0)
        with CompanionWriter(control, generation, maker.digest, maker.kinds) as writer:
            if _fill(writer, generation, maker, inputs):
                writer.keep()
                return CompanionReport(len(maker.features), writer.nbytes)
    raise SourceError("what is generated ahead fits no kind of column")


def _fill(
    writer: CompanionWriter,
    generation: Generation,
    maker: CompanionMaker,
    inputs: tuple[str, ...],
) -> bool:
    """Generates all rows; False: the maker has changed its kinds."""
    for start in range(0, generation.row_count, BATCH):
        stop = min(start + BATCH, generation.row_count)
        rows = np.arange(start, stop, dtype=np.int64)
        columns = maker.generate(generation.gather(rows, inputs), stop - start)
        if columns is None:
            return False
        writer.append_columns(columns)
    return True
