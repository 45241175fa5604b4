"""What a model takes and gives, in the words of the KServe v2 protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from procserver.model.package import ModelPackage

PLATFORM = "pytorch_torchscript"

_DATATYPES = {
    "bool": "BOOL",
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}

Signature = list[dict[str, object]]


def signature(
    tensors: Mapping[str, np.ndarray], names: Iterable[str] = ()
) -> Signature:
    """One entry per tensor: name, datatype, shape (-1: rows or ids of a request).

    :param tensors: examples, whose dtypes and inner dimensions count
    :param names: tensors to list first; those without an example by name only
    """
    ordered = dict.fromkeys((*names, *tensors))
    return [_entry(name, tensors.get(name)) for name in ordered]


def facts(package: ModelPackage, *, shared: bool) -> dict[str, object]:
    """What is ours to add to the metadata: version, kind, part, tile, weights."""
    return {
        "model_version": package.version,
        "kind": package.kind.value,
        "part": package.part,
        "input_tile": package.input_tile,
        "weights": "shared" if shared else "own",
    }


def _entry(name: str, example: np.ndarray | None) -> dict[str, object]:
    if example is None:
        return {"name": name}
    shape = [-1, *example.shape[1:]] if example.ndim else []
    entry: dict[str, object] = {"name": name, "shape": shape}
    datatype = _DATATYPES.get(example.dtype.name)
    return entry if datatype is None else {**entry, "datatype": datatype}
