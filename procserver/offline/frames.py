"""Tensors as Arrow columns: one row per row, named by feature."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from procserver.fg.plan import Plan, PlannedFeature

Tensors = Mapping[str, NDArray[Any]]


def column_types(plan: Plan) -> dict[str, pa.DataType]:
    """The columns of a plan's features and their types.

    ========================  ==========================================
    ids                       ``list<int64>``
    weighted ids              ``map<int64, float>``
    numbers                   ``float``, or ``list<float>`` if several
    sequence of ids           ``list<int64>``, or ``list<list<int64>>``
                              if an element may have several
    sequence of numbers       ``list<float>`` or ``list<list<float>>``
    ========================  ==========================================

    They are what TorchEasyRec reads as features that were generated before
    (``fg_mode: FG_NONE``).
    """
    return {
        feature.spec.name: _type(feature)
        for feature in plan.features
        if feature.emitted
    }


def feature_columns(plan: Plan, tensors: Tensors) -> list[pa.Array]:
    """The columns of :func:`column_types` for a batch; values are not copied.

    ``tensors`` are a parser's: with ``key_lengths`` of every id sequence.
    """
    return [_column(feature, tensors) for feature in plan.features if feature.emitted]


def _type(feature: PlannedFeature) -> pa.DataType:
    spec = feature.spec
    if spec.weighted:
        return pa.map_(pa.int64(), pa.float32())
    if feature.form == "ids":
        cell = pa.list_(pa.int64())
        nested = feature.has_keys
    else:
        nested = spec.width != 1
        cell = pa.list_(pa.float32()) if nested else pa.float32()
    if spec.sequence is None:
        return cell
    return pa.list_(cell) if nested or feature.form != "ids" else cell


def _column(feature: PlannedFeature, tensors: Tensors) -> pa.Array:
    spec = feature.spec
    values = tensors[f"{spec.name}.values"]
    lengths = tensors.get(f"{spec.name}.lengths")
    if feature.form == "numbers":
        flat = pa.array(values.reshape(-1))
        if spec.width != 1:
            steps = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            flat = pa.ListArray.from_arrays(pa.array(steps), flat)
        return flat if lengths is None else _listed(flat, lengths)
    assert lengths is not None
    ids = pa.array(values)
    if spec.weighted:
        weights = pa.array(tensors[f"{spec.name}.weights"])
        return pa.MapArray.from_arrays(_offsets(lengths), ids, weights)
    if feature.has_keys:
        ids = _listed(ids, tensors[f"{spec.name}.key_lengths"])
    elif spec.sequence is not None:
        lengths = _ids_per_row(lengths, tensors[f"{spec.name}.key_lengths"])
    return _listed(ids, lengths)


def _ids_per_row(lengths: NDArray[Any], keys: NDArray[Any]) -> NDArray[Any]:
    """Ids of each row where the contract has one id per element.

    NOTE(5): a lookup may give an element several; a list holds them all.
    """
    ends = np.concatenate(([0], np.cumsum(keys)))
    bounds = ends[np.concatenate(([0], np.cumsum(lengths)))]
    return np.diff(bounds).astype(np.int32)


def _listed(values: pa.Array, lengths: NDArray[Any]) -> pa.Array:
    return pa.ListArray.from_arrays(_offsets(lengths), values)


def _offsets(lengths: NDArray[Any]) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.array(offsets)
