"""Generating features ahead, and taking them back as tensors.

:class:`Pregenerator` runs where the item cache is built and :class:`Pregenerated`
where requests are answered; neither knows how columns are stored in between.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cython_ext.column import Column, Kind, Shape, shape_of, value_kind
from cython_ext.fg_pregenerated import column_of, restore
from procserver.errors import BadFeature
from procserver.fg.generator import FeatureGenerator
from procserver.fg.split import Part, part_of, pregenerable, remainder_of

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from cython_ext.fg_pregenerated import Restored
    from procserver.fg.suitability import TableSuitability

Tensors = dict[str, NDArray[Any]]
LIST_OF = {
    Kind.INT32: Kind.LIST_INT32,
    Kind.INT64: Kind.LIST_INT64,
    Kind.FLOAT32: Kind.LIST_FLOAT32,
}
# How often values that do not fit make a feature's form wider before all features
# get the widest one: each time, the build starts again.
CHOICES = 2
INT32 = np.iinfo(np.int32)


def _tensor_names(
    generator: FeatureGenerator, names: Collection[str]
) -> list[tuple[str, ...]]:
    """Tensors of each feature in the order that ``restore`` takes."""
    return [f.tensors for f in generator.plan.features if f.spec.name in names]


def _needed(tensors: Tensors, names: tuple[str, ...]) -> tuple[bool, bool]:
    """Whether some row has several values, and whether some id is no int32."""
    values = tensors[names[0]]
    if len(names) == 1:
        return values.shape[1] != 1, False
    large = values.size and (values.min() < INT32.min or values.max() > INT32.max)
    return bool((tensors[names[1]] > 1).any()), bool(large)


class Pregenerator:
    """Generates the item-side features of one ``fg.json`` for an item table.

    To be used for one build at a time: :meth:`inputs`, then :meth:`sample` with
    some rows, then :meth:`generate` with all of them, batch by batch. Whenever that
    answers None, ``kinds`` has changed and the build starts again with the first
    batch.
    """

    def __init__(self, generator: FeatureGenerator) -> None:
        self.digest = generator.digest
        self.kinds: dict[str, Kind] = {}
        self._generator = generator
        self._names: tuple[str, ...] = ()
        self._part = part_of(generator.plan, ())
        self._choices = 0
        self._continues = False
        # Of each feature, by its values: some row has several, some id is large.
        self._forms: dict[str, tuple[bool, bool]] = {}

    @cached_property
    def reader(self) -> "TableSuitability":
        """What all features of the ``fg.json`` need of an item table."""
        # NOTE: it needs Arrow, which workers must not import.
        from procserver.fg.suitability import TableSuitability

        return TableSuitability(self._generator)

    def fresh(self) -> "Pregenerator":
        """Another one for the same ``fg.json``, which is not read again."""
        return Pregenerator(self._generator)

    @property
    def features(self) -> tuple[str, ...]:
        """The features that this build generates."""
        return self._names

    def inputs(self, schema: Collection[str]) -> tuple[str, ...]:
        """Columns to read of an item table; none: nothing can be generated."""
        if not self._continues:
            self._choose(pregenerable(self._generator.plan, schema))
        return self._part.item_inputs

    def sample(self, columns: Mapping[str, Column], rows: int) -> None:
        """Chooses the ``kinds`` of columns by some rows of the table."""
        self.kinds = {}
        self._choices = 0
        tensors = self._run(columns, rows)
        while tensors is None:
            tensors = self._run(columns, rows)
        self._forms = {
            names[0]: _needed(tensors, names) for names in self._tensor_names()
        }
        self._set_kinds()

    def continued(self, kinds: Mapping[str, Kind]) -> "Pregenerator | None":
        """One that goes on with what another of the same digest began.

        :param kinds: what the columns are already; batches that do not fit are not
            generated. None: these are no columns of this generator
        """
        names = tuple(
            feature.spec.name
            for feature in self._generator.plan.features
            if f"{feature.spec.name}.values" in kinds
        )
        other = Pregenerator(self._generator)
        other._continues = True
        other._choose(names)
        for values, *_ in other._tensor_names():
            several = shape_of(kinds[values]) == Shape.LIST
            large = value_kind(kinds[values]) == Kind.INT64
            other._forms[values] = (several, large)
        other._set_kinds()
        return other if other.kinds == dict(kinds) else None

    def generate(
        self, columns: Mapping[str, Column], rows: int
    ) -> dict[str, Column] | None:
        """The columns of a batch, named and typed as in ``kinds``.

        None: they do not fit, and ``kinds`` has been changed.
        """
        tensors = self._run(columns, rows)
        if tensors is None:
            return None
        forms = {}
        for names in self._tensor_names():
            known, needed = self._forms[names[0]], _needed(tensors, names)
            forms[names[0]] = (known[0] or needed[0], known[1] or needed[1])
        if forms != self._forms:
            self._choices += 1
            if self._choices > CHOICES:
                forms = dict.fromkeys(forms, (True, True))
            self._forms = forms
            self._set_kinds()
            return None
        made: dict[str, Column] = {}
        for values, *others in self._tensor_names():
            lengths = tensors[others[0]] if others else None
            for name in (values, *others[1:]):
                column = column_of(tensors[name], lengths, self.kinds[name])
                assert column is not None, "the form was chosen so that it fits"
                made[name] = column
        return made

    def _tensor_names(self) -> list[tuple[str, ...]]:
        return _tensor_names(self._generator, self._names)

    def _set_kinds(self) -> None:
        """``kinds`` by the forms of features."""
        self.kinds = {}
        for values, *others in self._tensor_names():
            several, large = self._forms[values]
            ids = Kind.INT64 if large else Kind.INT32
            for name in (values, *others[1:]):
                kind = ids if others and name == values else Kind.FLOAT32
                self.kinds[name] = LIST_OF[kind] if several else kind

    def _choose(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._part = part_of(self._generator.plan, names)
        if self.kinds:
            self._set_kinds()

    def _run(self, columns: Mapping[str, Column], rows: int) -> Tensors | None:
        """The tensors; None: a feature refused an item and is left out now.

        Requests for such an item are refused as well; all others shall go on.
        """
        try:
            return self._generate(columns, rows, self._part)
        except BadFeature:
            refused = {
                name: error
                for name in self._names
                if (error := self._refusal(columns, rows, name)) is not None
            }
            if not refused:
                raise
        for name, error in refused.items():
            logger.warning("feature %r is not generated ahead: %s", name, error)
        self._choose(tuple(name for name in self._names if name not in refused))
        return None

    def _refusal(
        self, columns: Mapping[str, Column], rows: int, name: str
    ) -> BadFeature | None:
        try:
            part = part_of(self._generator.plan, (name,))
            self._generate(columns, rows, part)
        except BadFeature as error:
            return error
        return None

    def _generate(
        self, columns: Mapping[str, Column], rows: int, part: Part
    ) -> Tensors:
        return self._generator.generate({}, columns, {}, rows, tile=False, part=part)


@dataclass(frozen=True)
class Served:
    """What one request takes from the cache, and the part of the plan it runs."""

    part: Part
    columns: tuple[str, ...]
    restored: "list[Restored]"

    def tensors(self, rows: NDArray[np.int64], columns: dict[str, Column]) -> Tensors:
        """Tensors out of the gathered ``columns`` of ``rows`` (-1: no such item).

        The columns are given up: tensors share their memory.
        """
        return restore(rows, self.restored, columns)


class Pregenerated:
    """The features that were generated ahead for one state of an item table.

    :param stored: names of the stored columns
    :param schema: names of the item table's columns
    :param gather_missing: the named item columns of one row that is in no table
    :raises BadFeature: if ``stored`` is not of this generator and table
    """

    MOST_SERVED = 64

    def __init__(
        self,
        generator: FeatureGenerator,
        stored: Collection[str],
        schema: Collection[str],
        gather_missing: Callable[[tuple[str, ...]], Mapping[str, Column]],
    ) -> None:
        self._generator = generator
        self.features = tuple(
            name
            for name in pregenerable(generator.plan, schema)
            if f"{name}.values" in stored
        )
        part = part_of(generator.plan, self.features)
        self._missing: Tensors = generator.generate(
            {}, gather_missing(part.item_inputs), {}, 1, tile=False, part=part
        )
        if not set(stored) <= set(self._missing):
            raise BadFeature("stored features are not those of this fg.json")
        self._inputs = {
            name: frozenset(part_of(generator.plan, (name,)).item_inputs)
            for name in self.features
        }
        self.inputs = frozenset(part.item_inputs)
        self._served: dict[frozenset[str], Served] = {}

    def served(self, given: Collection[str]) -> Served:
        """What a request takes that brings the item columns ``given`` itself."""
        key = self.inputs.intersection(given)
        served = self._served.get(key)
        if served is None:
            served = self._serve(key)
            if len(self._served) >= self.MOST_SERVED:
                # SAFETY: clients choose what they send; this is rare in earnest.
                self._served.clear()
            self._served[key] = served
        return served

    def _serve(self, given: frozenset[str]) -> Served:
        plan = self._generator.plan
        names = {name for name in self.features if not self._inputs[name] & given}
        restored: list[Restored] = []
        for tensors in _tensor_names(self._generator, names):
            values = self._missing[tensors[0]]
            weights = self._missing[tensors[2]] if len(tensors) > 2 else None
            restored.append((tensors, values.reshape(-1), weights))
        return Served(
            part=remainder_of(plan, names),
            columns=tuple(
                name for tensors, _, _ in restored for name in tensors[:1] + tensors[2:]
            ),
            restored=restored,
        )
