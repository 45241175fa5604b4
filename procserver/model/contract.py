"""The shapes of the tensor contract (spec/export.md section 2), by tensor names.

``x.lengths`` has one entry a row. Next to it ``x.values`` and ``x.weights`` are
ragged, with as many entries as the lengths sum up to; with ``x.key_lengths`` the
lengths count its entries, and these count the values. Any other tensor has one
entry a row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch

from procserver.errors import BadTensor

# Name, dtype and shape without rows, of each tensor.
Kind: TypeAlias = tuple[object, ...]


def check_ragged(arrays: Mapping[str, np.ndarray]) -> None:
    """Compares lengths with what they count; some operators do not.

    :raises BadTensor: naming the tensor
    """
    for name, lengths in arrays.items():
        if not name.endswith(".lengths"):
            continue
        base = name.removesuffix(".lengths")
        counted = arrays.get(f"{base}.key_lengths")
        if counted is not None:
            _check_count(name, lengths, f"{base}.key_lengths", counted)
            name, lengths = f"{base}.key_lengths", counted
        values = arrays.get(f"{base}.values")
        if values is not None:
            _check_count(name, lengths, f"{base}.values", values)
            weights = arrays.get(f"{base}.weights")
            if weights is not None and weights.shape[:1] != values.shape[:1]:
                raise BadTensor(
                    f"{base}.weights: {_entries(weights)}, but {base}.values has "
                    f"{_entries(values)}"
                )


def check_batch_size(arrays: Mapping[str, np.ndarray]) -> None:
    """Bounds the number of items that an INPUT_TILE export is told.

    SAFETY: the export makes so many rows of the user's one, whatever the number is.

    :raises BadTensor: if it is no number of rows that could be
    """
    size = arrays.get("batch_size")
    if size is None:
        return
    if size.size != 1 or size.dtype.kind not in "iu":
        raise BadTensor(
            f"batch_size: expected one integer, got {size.dtype}{list(size.shape)}"
        )
    most = max((array.shape[0] for array in arrays.values() if array.ndim), default=0)
    if not 0 <= int(size.item()) <= max(most, 1):
        raise BadTensor(f"batch_size: {size.item()}, but no tensor has so many rows")


def _check_count(
    name: str, lengths: np.ndarray, counted_name: str, counted: np.ndarray
) -> None:
    hint = ""
    if name.endswith(".lengths") and counted_name.endswith(".values"):
        base = name.removesuffix(".lengths")
        hint = f"; a sequence of several values a step needs {base}.key_lengths"
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise BadTensor(
            f"{name}: expected integers in one dimension, got "
            f"{lengths.dtype}{list(lengths.shape)}"
        )
    if lengths.size and lengths.min() < 0:
        position = int(lengths.argmin())
        raise BadTensor(f"{name}[{position}]: length {lengths[position]}")
    # NOTE: a float sum of huge lengths cannot wrap around to the right number.
    total = int(lengths.sum(dtype=np.float64)) if lengths.size else 0
    if counted.ndim == 0 or total != counted.shape[0]:
        raise BadTensor(
            f"{name}: the lengths sum up to {total}, but {counted_name} has "
            f"{_entries(counted)}" + hint
        )


def _entries(array: np.ndarray) -> str:
    return f"{array.shape[0]} entries" if array.ndim else "no dimension"


def kind_of(tensors: Mapping[str, torch.Tensor]) -> tuple[int, Kind | None]:
    """The rows that all tensors agree on, and what requests to join must share.

    ``0, None`` stands for tensors that cannot be joined with another request's. A
    tensor of one number, such as ``batch_size`` of INPUT_TILE exports, is one of
    these.
    """
    kind: list[object] = []
    rows = -1
    for name, ragged in _sorted(tuple(tensors)):
        tensor = tensors[name]
        shape = tensor.shape
        if not shape:
            return 0, None
        if not ragged:
            if shape[0] != rows and rows != -1:
                return 0, None
            rows = shape[0]
        kind += (name, tensor.dtype, shape[1:])
    return (rows, tuple(kind)) if rows > 0 else (0, None)


@lru_cache(maxsize=256)
def _sorted(names: tuple[str, ...]) -> tuple[tuple[str, bool], ...]:
    """Each name and whether its tensor is ragged.

    PERF: names are looked at once; a service's requests bring the same ones.
    """
    return tuple((name, _is_ragged(name, names)) for name in sorted(names))


def _is_ragged(name: str, names: Collection[str]) -> bool:
    # ``<f>__lengths`` belongs to looked-up embeddings ``<f>`` of distributed exports.
    base, dot, part = name.rpartition(".")
    if dot and part in ("values", "weights", "key_lengths"):
        return f"{base}.lengths" in names
    return f"{name}__lengths" in names
