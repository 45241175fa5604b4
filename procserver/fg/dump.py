"""The debug dump: generated tensors as one line of text per row (spec section 5)."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cython_ext.column import Column, Kind, value_kind
from procserver.fg.plan import FeatureSide, Plan, PlannedFeature

Texts = list[str]


def dump_rows(
    plan: Plan,
    tensors: Mapping[str, NDArray[Any]],
    sides: Collection[FeatureSide] = ("user", "item", "crossing"),
) -> Texts:
    """Lines to compare with those of another Feature Generator.

    ``name:value`` joined by `` | ``, in the order of ``fg.json``. Several ids or
    numbers are joined by ``,``, elements of a sequence by its delimiter; weighted
    ids are ``id:weight``, sorted as text because their order is not specified.
    Numbers are written as numpy writes float32. Features that have one row while
    others have more are repeated. Features of other sides than ``sides`` are left out.
    """
    cells = {
        feature.spec.name: _cells(feature, tensors)
        for feature in plan.features
        if feature.emitted and feature.side in sides
    }
    rows = max((len(texts) for texts in cells.values()), default=0)
    if any(not texts for texts in cells.values()):
        rows = 0
    return [
        " | ".join(
            f"{name}:{texts[row if len(texts) > 1 else 0]}"
            for name, texts in cells.items()
        )
        for row in range(rows)
    ]


def _cells(feature: PlannedFeature, tensors: Mapping[str, NDArray[Any]]) -> Texts:
    spec = feature.spec
    values = tensors[f"{spec.name}.values"]
    if feature.form == "numbers":
        texts = [",".join(row) for row in values.astype(str).tolist()]
    else:
        texts = values.astype(str).tolist()
    lengths = tensors.get(f"{spec.name}.lengths")
    if lengths is None:
        return texts
    keys = tensors.get(f"{spec.name}.key_lengths")
    if keys is not None:
        texts = _joined(texts, keys, ",")
    if spec.sequence is not None:
        return _joined(texts, lengths, spec.sequence.delim.decode())
    if spec.weighted:
        weights = tensors[f"{spec.name}.weights"].astype(str).tolist()
        pairs = [f"{i}:{w}" for i, w in zip(texts, weights, strict=True)]
        return _joined(pairs, lengths, ",", ordered=True)
    return _joined(texts, lengths, ",")


def _joined(
    texts: Texts, lengths: NDArray[Any], joint: str, *, ordered: bool = False
) -> Texts:
    ends = np.cumsum(lengths).tolist()
    spans = zip([0, *ends[:-1]], ends, strict=True) if ends else ()
    parts = (texts[start:end] for start, end in spans)
    return [joint.join(sorted(part) if ordered else part) for part in parts]


def dump_columns(columns: Mapping[str, Column], rows: int) -> Texts:
    """Input columns in the same form: what features are made of, a line a row.

    Lists are joined by ``,``, lists of lists by ``;`` and ``,``, maps are
    ``key:value`` joined by ``,``; a null is empty. A column of one row is repeated.
    """
    cells = {}
    for name, column in columns.items():
        single = value_kind(column.kind) == Kind.FLOAT32
        values = column.to_pylist() or [None]
        cells[name] = [_raw(value, single=single) for value in values]
    return [
        " | ".join(
            f"{name}:{texts[row] if len(texts) > 1 else texts[0]}"
            for name, texts in cells.items()
        )
        for row in range(rows)
    ]


def _raw(value: Any, *, single: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        value = list(value.items())
    if isinstance(value, tuple):
        key, inner = value
        return f"{key}:{_raw(inner, single=single)}"
    if isinstance(value, list):
        nested = any(isinstance(one, list) for one in value)
        return (";" if nested else ",").join(_raw(v, single=single) for v in value)
    return str(np.float32(value)) if single else str(value)
