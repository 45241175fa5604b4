"""Whether an item table can be read: which columns, of which kinds, which cells.

All answers come from the kernels themselves: a feature is run on a null cell of a
kind, and on the cells of a batch. Needs Arrow, so it runs where tables are loaded,
never in a process that answers requests.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cython_ext.column import Column, Kind, Shape, arrow_type, shape_of
from procserver.errors import BadFeature
from procserver.fg.generator import FeatureGenerator
from procserver.fg.plan import PlannedFeature
from procserver.fg.split import Part, part_of

# Operators that refuse single cells, by their number of values.
COUNTING = ("raw",)
SHAPES = {
    Shape.SCALAR: "single values",
    Shape.LIST: "lists",
    Shape.LISTS: "lists of lists",
    Shape.MAP: "maps",
}


@dataclass(frozen=True)
class Use:
    """One feature that reads an item column: directly, or joined to a sequence.

    ``given``: the name under which the feature takes it; ``joined``: as one list
    of the cells of several items.
    """

    feature: PlannedFeature
    part: Part
    column: str
    given: str
    joined: bool

    @property
    def name(self) -> str:
        """The feature's name."""
        return self.feature.spec.name

    @property
    def most_elements(self) -> int:
        """Cells of a sequence that are read; 0: all."""
        sequence = self.feature.spec.sequence
        return sequence.length if self.joined and sequence is not None else 0

    def may_refuse(self, kind: Kind) -> bool:
        """Whether cells of a kind can have a wrong number of values."""
        if kind == Kind.ABSENT:
            return False
        is_number = shape_of(kind) == Shape.SCALAR and kind != Kind.STRING
        return not is_number or self.feature.spec.value_dim != 1


class TableSuitability:
    """What the features of one ``fg.json`` make of an item table's columns."""

    def __init__(self, generator: FeatureGenerator) -> None:
        self._generator = generator
        self._uses = tuple(_uses(generator))
        self._reads: dict[str, list[str]] = {}
        for use in self._uses:
            self._reads.setdefault(use.column, []).append(use.name)

    @property
    def reads(self) -> Mapping[str, list[str]]:
        """Item columns that features read, with the features' names."""
        return self._reads

    def unfit(self, schema: Mapping[str, Kind]) -> list[str]:
        """A sentence for each column of a kind that some feature cannot take."""
        found: dict[str, str] = {}
        for use in self._uses:
            kind = schema.get(use.column, Kind.ABSENT)
            if kind == Kind.ABSENT or use.column in found:
                continue
            cell = Column.from_arrow(pa.nulls(1, arrow_type(kind)))
            problem = self._problem(use, cell)
            if problem is not None:
                found[use.column] = (
                    f"column {use.column!r} holds {SHAPES[shape_of(kind)]} "
                    f"({kind.name.lower()}), which feature {use.name!r} cannot take"
                )
        return list(found.values())

    def refused(
        self, columns: Mapping[str, Column], rows: int
    ) -> dict[str, NDArray[np.bool_]]:
        """Cells of a batch that some feature refuses: vectors of a wrong width.

        A request for such an item would be refused as a whole.
        """
        found: dict[str, NDArray[np.bool_]] = {}
        for use in self._uses:
            column = columns.get(use.column)
            if use.feature.spec.operator not in COUNTING or column is None:
                continue
            if not use.may_refuse(column.kind):
                continue
            bad = found.get(use.column)
            if bad is None:
                bad = np.zeros(rows, dtype=np.bool_)
            step = use.most_elements or max(rows, 1)
            for start in range(0, rows, step):
                self._mark(use, column, start, min(start + step, rows), bad)
            if bad.any():
                found[use.column] = bad
        return found

    def _mark(
        self, use: Use, column: Column, start: int, stop: int, bad: NDArray[np.bool_]
    ) -> None:
        # PERF: halves: a few bad cells cost a few runs over their neighbours.
        if self._problem(use, column.slice(start, stop - start)) is None:
            return
        if stop - start == 1:
            bad[start] = True
            return
        middle = (start + stop) // 2
        self._mark(use, column, start, middle, bad)
        self._mark(use, column, middle, stop, bad)

    def _problem(self, use: Use, cells: Column) -> Exception | None:
        user, item = {}, {}
        rows = len(cells)
        try:
            if use.joined:
                user[use.given] = cells.nest()
                rows = 1
            else:
                item[use.given] = cells
            self._generator.generate(user, item, {}, rows, tile=False, part=use.part)
        except (BadFeature, TypeError) as error:
            # The latter: cells that do not nest.
            return error
        return None


def _uses(generator: FeatureGenerator) -> Iterator[Use]:
    """Each feature for each item column that it reads; stubs too, others read them."""
    joined = {
        given: column
        for join in generator.sequence_joins
        for column, given in join.inputs.items()
    }
    plan = generator.plan
    for feature in plan.features:
        part = _part_of(generator, feature)
        for one in feature.inputs:
            if part is None or one.origin != "slot":
                continue
            slot = plan.slots[one.index]
            if slot.side == "item":
                yield Use(feature, part, slot.name, slot.name, joined=False)
            elif slot.side == "user" and slot.name in joined:
                yield Use(feature, part, joined[slot.name], slot.name, joined=True)


def _part_of(generator: FeatureGenerator, feature: PlannedFeature) -> Part | None:
    """What runs a feature; for a stub, all that a reader of it runs."""
    plan = generator.plan
    if feature.emitted:
        return part_of(plan, (feature.spec.name,))
    number = plan.features.index(feature)
    for other in plan.features:
        if other.emitted:
            part = part_of(plan, (other.spec.name,))
            if part.mask[number]:
                return part
    return None
