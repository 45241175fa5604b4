"""Which of the tensors that a model refused is unlike what it takes.

Scripts fail with the line of an operator, not with the name of an input. So a
refused request is compared with one that was answered, and with the shapes of the
tensor contract (spec/export.md section 2): ids are integers of one dimension,
numbers are float32 of two, features agree on the number of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import torch

Tensors = Mapping[str, torch.Tensor]
# Floats by their dtype, integers of all sizes as one; and the shape of a row.
Form = tuple[str, tuple[int, ...]]

_MOST_NAMED = 4


class Answered:
    """The forms of the first request that the model answered."""

    def __init__(self) -> None:
        self._forms: dict[str, Form] | None = None

    def learn(self, tensors: Tensors) -> None:
        if self._forms is None:
            self._forms = {name: _form(tensor) for name, tensor in tensors.items()}

    def odd(self, tensors: Tensors) -> Iterator[tuple[str, str]]:
        """Name of each tensor of another form, and what had been answered."""
        for name, tensor in tensors.items():
            form = (self._forms or {}).get(name)
            # One number comes with and without a dimension.
            if form is None or form == _form(tensor) or tensor.numel() == 1:
                continue
            kind, widths = form
            shape = ", ".join(["n", *map(str, widths)])
            yield name, f"expected {kind}[{shape}]"


def suspects(tensors: Tensors, answered: Answered) -> str | None:
    """The tensors to look at, described, or None if all look alike."""
    found: dict[str, str] = {}
    # The most certain first: what only might be odd is not named beside it.
    for reason in (answered.odd, _doubles, _unlike_contract, _outliers):
        found = found or dict(reason(tensors))
    if not found:
        return None
    told = [
        f"{name}: {described(tensors[name])}, {expected}"
        for name, expected in list(found.items())[:_MOST_NAMED]
    ]
    more = len(found) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


def described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _form(tensor: torch.Tensor) -> Form:
    if not tensor.dtype.is_floating_point:
        return "integers", tuple(tensor.shape[1:])
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape[1:])


def _doubles(tensors: Tensors) -> Iterator[tuple[str, str]]:
    for name, tensor in tensors.items():
        if tensor.dtype == torch.float64:
            yield name, "expected float32"


def _unlike_contract(tensors: Tensors) -> Iterator[tuple[str, str]]:
    if not any(name.endswith(".lengths") for name in tensors):
        return  # Names of another making.
    for name, tensor in tensors.items():
        base, _, part = name.rpartition(".")
        dimensions, floats = tensor.dim(), tensor.dtype.is_floating_point
        if part == "weights" and (dimensions != 1 or not floats):
            yield name, "expected floats of one dimension"
        elif part in ("lengths", "key_lengths") and (dimensions != 1 or floats):
            yield name, "expected integers of one dimension"
        elif part != "values":
            continue
        elif f"{base}.lengths" not in tensors:
            if dimensions != 2 or not floats:
                yield name, "expected floats of two dimensions, one row an item"
        elif dimensions != (2 if floats else 1):
            yield name, "expected integers of one dimension or floats of two"


def wrong_batch_size(tensors: Tensors) -> str | None:
    """What is wrong with the number of items that an INPUT_TILE export was told.

    Such a request fails in many ways: lengths of one feature end up as another's.
    """
    size = tensors.get("batch_size")
    if size is None or size.numel() != 1:
        return None
    _, usual = _rows(tensors)
    if usual is None or int(size) == usual:
        return None
    return f"batch_size: {int(size)}, but most features have {usual} rows"


def _outliers(tensors: Tensors) -> Iterator[tuple[str, str]]:
    """Features whose number of rows is not that of most others.

    One row is what the user's features have in an INPUT_TILE export.
    """
    rows, usual = _rows(tensors)
    for name, given in rows.items():
        if given != usual and not (given == 1 and "batch_size" in tensors):
            yield name, f"most features have {usual} rows"


def _rows(tensors: Tensors) -> tuple[dict[str, int], int | None]:
    """Rows of each feature, and how many most of them have."""
    rows = {
        name: tensor.size(0)
        for name, tensor in tensors.items()
        if tensor.dim() and _has_rows(name, tensors)
    }
    if not rows:
        return rows, None
    counts = Counter(rows.values())
    one_allowed = "batch_size" in tensors
    usual = max(
        (n for n in counts if n != 1 or not one_allowed),
        key=counts.__getitem__,
        default=1,
    )
    return rows, usual


def _has_rows(name: str, tensors: Tensors) -> bool:
    base, _, part = name.rpartition(".")
    return part == "lengths" or (part == "values" and f"{base}.lengths" not in tensors)
