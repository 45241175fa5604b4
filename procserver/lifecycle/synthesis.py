"""Requests of our own making: what ``fg.json`` says a service may be sent.

They serve to warm up, not to test: values are small numbers, which are ids, texts
and numbers at once, so that hardly any feature refuses them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from procserver.fg import FeatureGenerator
from procserver.fg.feature import FeatureSpec, InputRef
from procserver.itemcache.reader import CacheReader, Generation
from procserver.wire import torchrec as torchrec_wire
from procserver.wire.pb import torch_predict_pb2 as wire
from procserver.wire.pb.torchrec_predict_pb2 import (
    ContextFeatures,
    PBFeature,
    PBRequest,
)

# What engines send at once, a number that no vector width divides, and one.
TYPICAL_ROWS = 100
ODD_ROWS = 37
ELEMENTS = 3
UNKNOWN_ITEM = "procserver-warm-up"
# Types whose inputs are text, whatever is made of it.
_TEXT = frozenset(("called", "edit_distance", "overlap", "match"))
# Each so many rows one has no value, as in real life.
_MISSING_EACH = 7


class Synthesis(Protocol):
    """Makes requests for one kind of service.

    ``is_binding``: a model that fails on all of them cannot be served.
    """

    @property
    def is_binding(self) -> bool: ...

    @property
    def shapes(self) -> tuple[int, ...]:
        """Numbers of rows worth a request, the most typical one first."""

    def body(self, rows: int, *, filled: bool) -> bytes:
        """A request of ``rows`` rows; without ``filled``, all features are empty.

        :raises BadFeature: if the features refuse what was made up
        """


@dataclass(frozen=True)
class _Cells:
    """How the cells of one input column look.

    ``form``: text, texts (a list), number, numbers or map; ``width`` numbers each.
    In a ``sequence`` a cell has :data:`ELEMENTS` of these.
    """

    form: str
    width: int
    sequence: bool

    def put(self, feature: PBFeature, row: int) -> None:
        """Writes the value for ``row`` into a wire feature."""
        n = row % 10 + 1
        if self.form == "map":
            pairs = feature.string_float_map.map_field
            pairs.update({str(n): 1.0, str(n + 1): 0.5})
        elif self.sequence and self.form == "numbers":
            for i in range(ELEMENTS):
                one = feature.float_lists.lists.add()
                one.features.extend([float(n + i)] * self.width)
        elif self.sequence and self.form == "number":
            feature.float_list.features.extend(float(n + i) for i in range(ELEMENTS))
        elif self.sequence:
            feature.string_list.features.extend(str(n + i) for i in range(ELEMENTS))
        elif self.form == "numbers":
            feature.float_list.features.extend([float(n)] * self.width)
        elif self.form == "number":
            feature.float_feature = float(n)
        elif self.form == "texts":
            feature.string_list.features.extend((str(n), str(n + 1)))
        else:
            feature.string_feature = str(n)


@dataclass(frozen=True)
class FeatureRequests:
    """``PBRequest`` messages for a service with feature generation.

    Item ids and the ids in sequences are taken from the item cache, and one is
    unknown; without a cache all item features come with the request.
    """

    fg: FeatureGenerator
    cache: CacheReader | None = None
    max_items: int = TYPICAL_ROWS

    @property
    def is_binding(self) -> bool:
        return True

    @property
    def shapes(self) -> tuple[int, ...]:
        wanted = (min(rows, self.max_items) for rows in (TYPICAL_ROWS, ODD_ROWS, 1))
        return tuple(dict.fromkeys(wanted))

    def body(self, rows: int, *, filled: bool) -> bytes:
        generation = None if self.cache is None else self.cache.current()
        message = PBRequest()
        # A user tower is called without items.
        if rows > 1 or self.fg.item_inputs or self.fg.context_inputs:
            message.item_ids.extend(_item_ids(generation, rows))
        joined = self._joined(generation)
        for (side, name), cells in self._cells.items():
            if side == "user" and name not in joined:
                feature = message.user_features[name]
                if filled:
                    cells.put(feature, 0)
            elif side == "context":
                _put_rows(message.context_features[name], cells, rows, filled)
            elif side == "item" and (
                generation is None or name not in generation.schema
            ):
                _put_rows(message.item_features[name], cells, rows, filled)
        for join in self.fg.sequence_joins:
            ids = message.user_features[join.pk_name]
            ids.Clear()
            if filled and join.pk_side == "user":
                ids.string_list.features.extend(_item_ids(generation, ELEMENTS))
        return bytes(message.SerializeToString())

    def _joined(self, generation: Generation | None) -> set[str]:
        """Sequence columns that the item cache has, so that nobody sends them."""
        if generation is None:
            return set()
        return {
            name
            for join in self.fg.sequence_joins
            for column, name in join.inputs.items()
            if column in generation.schema
        }

    @cached_property
    def _cells(self) -> Mapping[tuple[str, str], _Cells]:
        readers: dict[int, list[tuple[FeatureSpec, InputRef]]] = {}
        for feature in self.fg.plan.features:
            for source in feature.inputs:
                if source.origin == "slot":
                    pair = (feature.spec, source.ref)
                    readers.setdefault(source.index, []).append(pair)
        slots = self.fg.plan.slots
        return {
            (slots[index].side, slots[index].name): _cells_for(pairs)
            for index, pairs in readers.items()
        }


@dataclass(frozen=True)
class TensorRequests:
    """``PredictRequest`` messages in the tensor contract of an ``fg.json``.

    What a client generates that calls a model of ours in ``bypass`` mode.
    """

    fg: FeatureGenerator
    tile: bool

    @property
    def is_binding(self) -> bool:
        # The file may be another model's: in this mode nothing else needs it.
        return False

    @cached_property
    def _features(self) -> FeatureRequests:
        return FeatureRequests(self.fg)

    @property
    def shapes(self) -> tuple[int, ...]:
        return self._features.shapes

    def body(self, rows: int, *, filled: bool) -> bytes:
        features = torchrec_wire.decode(self._features.body(rows, filled=filled))
        tensors = self.fg.generate(
            features.user, features.item, features.context, rows, tile=self.tile
        )
        message = wire.PredictRequest()
        for name, array in tensors.items():
            _put_array(message.map_inputs[name], array)
        return bytes(message.SerializeToString())


def _cells_for(readers: list[tuple[FeatureSpec, InputRef]]) -> _Cells:
    """Cells that every feature which reads the column understands."""
    specs = [spec for spec, _ in readers]
    sequence = any(
        spec.sequence is not None and ref.sequence and not ref.spread
        for spec, ref in readers
    )
    width = max(spec.width for spec in specs)
    if any(spec.operator in _TEXT for spec in specs):
        form = "text"
    elif all(spec.type.maps(spec.details, ref, spec.weighted) for spec, ref in readers):
        form = "text" if sequence else "map"
    elif any(spec.numeric for spec in specs):
        form = "numbers" if width > 1 else "number"
    elif all(spec.operator == "id" and spec.value_dim != 1 for spec in specs):
        form = "texts"
    else:
        form = "text"
    return _Cells(form, width, sequence)


def _item_ids(generation: Generation | None, rows: int) -> Iterator[str]:
    """Ids of real items over and over; the last of several is of none."""
    known = 0 if generation is None else generation.row_count
    for row in range(rows):
        if rows > 1 and row == rows - 1:
            yield UNKNOWN_ITEM
        elif generation is not None and known:
            yield str(generation.item_id(row % known))
        else:
            yield str(row + 1)


def _put_rows(column: ContextFeatures, cells: _Cells, rows: int, filled: bool) -> None:
    for row in range(rows):
        feature = column.features.add()
        if filled and row % _MISSING_EACH != _MISSING_EACH - 1:
            cells.put(feature, row)


_FIELDS = {
    np.dtype(np.float32): (wire.DT_FLOAT, "float_val"),
    np.dtype(np.float64): (wire.DT_DOUBLE, "double_val"),
    np.dtype(np.int64): (wire.DT_INT64, "int64_val"),
    np.dtype(np.int32): (wire.DT_INT32, "int_val"),
}


def _put_array(tensor: wire.ArrayProto, array: np.ndarray) -> None:
    tensor.dtype, field = _FIELDS[array.dtype]
    tensor.array_shape.dim.extend(array.shape)
    getattr(tensor, field).extend(array.reshape(-1).tolist())
