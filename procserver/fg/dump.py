"""The debug dump: generated tensors as one line of text per row (spec section 5)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from procserver.fg.plan import Plan, PlannedFeature

Texts = list[str]


def dump_rows(plan: Plan, tensors: Mapping[str, NDArray[Any]]) -> Texts:
    """Lines to compare with those of another Feature Generator.

    ``name:value`` joined by `` | ``, in the order of ``fg.json``. Several ids or
    numbers are joined by ``,``, elements of a sequence by its delimiter; weighted
    ids are ``id:weight``, sorted as text because their order is not specified.
    Numbers are written as numpy writes float32. Features that have one row while
    others have more are repeated.
    """
    cells = {
        feature.spec.name: _cells(feature, tensors)
        for feature in plan.features
        if feature.emitted
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
