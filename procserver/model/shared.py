"""One copy of a model's weights for all workers of a machine.

:func:`publish` moves parameters, buffers and sparse tables of a loaded model to a
shared segment (``procserver.model.segment`` draws it); :func:`attach` makes a
model that uses them where they lie. Between the two there is an archive of the
module without its weights, the *skeleton*: some hundred kilobytes.

What the directory in the segment says::

    {"model":   version of the model,
     "tensors": [{"name": "tower.0.weight", "dtype": "float32",
                  "shape": [64, 32], "strides": [32, 1], "first": 0,
                  "storage": [offset, bytes]}, ...],
     "tables":  [{"name": ..., "dtype": "<f4", "shape": [...], "offset": ...}, ...]}

Whole storages are written, so that tensors which share one (tied weights,
overlapping views) still do after :func:`attach`. Strides and ``first`` count
elements.

Workers map the segment copy-on-write. A module that writes to its buffers, or a
fault, changes what that one worker sees, never a neighbour's scores. The map lives
as long as any tensor of it, also when the segment's name is gone.

What stays out and is private to each worker: tensors that are neither parameters
nor buffers (attributes, constants of a frozen module, packed parameters), those
without plain memory (sparse, quantised), and empty ones.
"""

from __future__ import annotations

import io
import logging
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from procserver import shm
from procserver.errors import (
    ModelError,
    NotShareable,
    ProcserverError,
    SharedMemoryError,
)
from procserver.model import segment
from procserver.model.loading import LoadedModel, read_script
from procserver.model.package import ModelPackage

log = logging.getLogger("procserver.model")

# One forward pass on a fixed batch: output name -> array.
Probe = Callable[[LoadedModel], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Published:
    """Weights in shared memory, and the publisher's own model attached to them.

    ``private`` names what every worker still keeps for itself, with the reason.
    """

    name: str
    model: LoadedModel
    bytes: int
    seconds: float
    private: Mapping[str, str]


@dataclass
class _Plan:
    """What of a module goes where."""

    slots: dict[str, torch.Tensor]
    tensors: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    arrays: list[tuple[int, np.ndarray]] = field(default_factory=list)
    private: dict[str, str] = field(default_factory=dict)


def publish(
    model: LoadedModel, name: str, owner: shm.Owner, *, probe: Probe | None = None
) -> Published:
    """Writes the weights of ``model`` to a new segment and attaches to it.

    Nothing is published before it was proven: every parameter, buffer and table
    of the attached model has the bytes of the original, and a forward pass gives
    the same bytes out. ``model``, which must be on the CPU, stays as it was.

    :param name: the segment's name
    :param owner: the process that will unlink it: the master
    :param probe: runs one batch through a model
    :raises NotShareable: with the tensor and the reason
    :raises SharedMemoryError: if there is no memory for it
    """
    started = time.monotonic()
    plan = _plan(model)
    skeleton = _skeleton(model, plan)
    directory = {
        "model": model.package.version,
        "tensors": plan.tensors,
        "tables": plan.tables,
    }
    size = segment.write(name, owner, directory, skeleton, plan.arrays)
    try:
        attached = _attached_like(model, name)
        if probe is not None:
            _compare_outputs(model, attached, probe)
    except BaseException:
        shm.unlink(name)
        raise
    for tensor, reason in plan.private.items():
        log.warning("tensor %r stays private to each worker: %s", tensor, reason)
    seconds = time.monotonic() - started
    log.info(
        "weights of model %s shared: %.1f MB in %s, %.2f s",
        model.package.version,
        size / 1e6,
        name,
        seconds,
    )
    return Published(name, attached, size, seconds, plan.private)


def attach(package: ModelPackage, name: str, *, device: str = "cpu") -> LoadedModel:
    """A model on the weights that somebody has published.

    :param device: where the weights are to be; anything but ``cpu`` takes a copy
    :raises FileNotFoundError: if there is no segment of that name
    :raises SharedMemoryError: if it is damaged or holds another model
    :raises ModelError: if its skeleton cannot be loaded
    """
    started = time.monotonic()
    contents = segment.read(name)
    directory = contents.directory
    if directory["model"] != package.version:
        raise SharedMemoryError(
            f"{name} holds model {directory['model']}, not {package.version}"
        )
    target = torch.device(device)
    module = read_script(package, target, io.BytesIO(contents.skeleton))
    slots = dict(_slots(module))
    storages: dict[int, torch.UntypedStorage] = {}
    for entry in directory["tensors"]:
        if entry["name"] not in slots:
            raise SharedMemoryError(f"{name}: the skeleton lacks {entry['name']!r}")
        slots[entry["name"]].data = _tensor(contents, entry, target, storages)
    tables = {entry["name"]: _table(contents, entry) for entry in directory["tables"]}
    log.info(
        "model %s attached to shared weights on %s in %.2f s",
        package.version,
        device,
        time.monotonic() - started,
    )
    return LoadedModel(package, module, tables, shared=target.type == "cpu")


def _slots(module: torch.jit.ScriptModule) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer, under each of its names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _plan(model: LoadedModel) -> _Plan:
    """Decides what is shared and where it will lie.

    :raises NotShareable: if nothing would be
    """
    plan = _Plan(dict(_slots(model.module)))
    plan.private.update(
        (name, reason)
        for name, tensor in plan.slots.items()
        if (reason := _why_private(tensor))
    )
    # A storage goes as a whole or not at all.
    tied = {
        _key(plan.slots[name]) for name in plan.private if _has_memory(plan.slots[name])
    }
    storages: dict[int, torch.UntypedStorage] = {}
    for name, tensor in plan.slots.items():
        if name in plan.private or not _has_memory(tensor):
            continue
        if _key(tensor) in tied:
            plan.private[name] = "it shares memory with one that stays private"
        elif tensor.untyped_storage().nbytes():
            storages[_key(tensor)] = tensor.untyped_storage()
    for name, table in model.tables.items():
        if table.dtype.hasobject or table.dtype.fields is not None:
            raise NotShareable(f"table {name!r} has dtype {table.dtype}")
    if not storages and not model.tables:
        raise NotShareable(_why_nothing(plan))
    memory = [_bytes_of(storage) for storage in storages.values()]
    memory += [_flat(table) for table in model.tables.values()]
    offsets, _ = segment.place([data.nbytes for data in memory])
    plan.arrays = list(zip(offsets, memory, strict=True))
    where = dict(zip(storages, offsets, strict=False))
    for name, tensor in plan.slots.items():
        if name not in plan.private and _has_memory(tensor) and _key(tensor) in where:
            plan.tensors.append(_entry(name, tensor, where[_key(tensor)]))
    for (name, table), offset in zip(
        model.tables.items(), offsets[len(storages) :], strict=True
    ):
        plan.tables.append(
            {
                "name": name,
                "dtype": table.dtype.str,
                "shape": list(table.shape),
                "offset": offset,
            }
        )
    return plan


def _why_private(tensor: torch.Tensor) -> str | None:
    if tensor.device.type != "cpu":
        return f"it is on {tensor.device}"
    if tensor.layout != torch.strided:
        return f"its layout is {str(tensor.layout).removeprefix('torch.')}"
    if tensor.is_quantized:
        return f"it is quantised ({str(tensor.dtype).removeprefix('torch.')})"
    if tensor.is_conj() or tensor.is_neg():
        return "it is a conjugate or negative view"
    return None


def _why_nothing(plan: _Plan) -> str:
    for name, reason in plan.private.items():
        return f"tensor {name!r}: {reason}, and there is no other to share"
    return (
        "the module has no parameters and no buffers "
        "(a frozen one keeps its weights as constants)"
    )


def _has_memory(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.layout == torch.strided


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes_of(storage: torch.UntypedStorage) -> np.ndarray:
    """The memory of a storage, not a copy."""
    view = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
    array: np.ndarray = view.numpy()
    return array


def _flat(table: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(table).reshape(-1).view(np.uint8)


def _entry(name: str, tensor: torch.Tensor, offset: int) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
        "first": tensor.storage_offset(),
        "storage": [offset, tensor.untyped_storage().nbytes()],
    }


def _skeleton(model: LoadedModel, plan: _Plan) -> bytes:
    """The module's archive without what the plan shares.

    :raises NotShareable: if the module cannot be saved, or a tensor that stays
        in it shares memory with one that does not
    """
    kept = {entry["name"]: plan.slots[entry["name"]].detach() for entry in plan.tensors}
    try:
        # NOTE: a tied tensor has several names and is one object: all are
        # remembered before the first is emptied.
        for name, tensor in kept.items():
            plan.slots[name].data = torch.empty(0, dtype=tensor.dtype)
        skeleton: bytes = model.module.save_to_buffer()
    except (RuntimeError, ValueError) as error:
        raise NotShareable(
            f"the module cannot be saved without its weights: {_gist(error)}"
        ) from error
    finally:
        for name, tensor in kept.items():
            plan.slots[name].data = tensor
    shared = sum(data.nbytes for _, data in plan.arrays[: _storages(plan)])
    whole = _tensor_bytes(model.package.script)
    if _tensor_bytes(io.BytesIO(skeleton)) + shared > whole:
        raise NotShareable(
            "a tensor that is neither parameter nor buffer shares memory with one "
            "that is"
        )
    return skeleton


def _storages(plan: _Plan) -> int:
    return len(plan.arrays) - len(plan.tables)


def _tensor_bytes(archive: Path | io.BytesIO) -> int:
    """Bytes of all tensors in a TorchScript archive; each storage counts once.

    This is how an alias between a weight and some other tensor of the module
    shows: its memory would be in the skeleton and in the segment.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return sum(
                entry.file_size
                for entry in opened.infolist()
                if entry.filename.split("/")[1:2] in (["data"], ["constants"])
            )
    except (OSError, zipfile.BadZipFile) as error:
        raise NotShareable(f"the archive cannot be listed: {error}") from error


def _tensor(
    contents: segment.Contents,
    entry: Mapping[str, Any],
    device: torch.device,
    storages: dict[int, torch.UntypedStorage],
) -> torch.Tensor:
    offset, size = entry["storage"]
    if offset not in storages:
        # The tensor keeps the mapping, the mapping keeps the memory.
        memory = torch.frombuffer(
            contents.mapping,
            dtype=torch.uint8,
            count=size,
            offset=contents.arrays_at + offset,
        )
        storages[offset] = memory.to(device).untyped_storage()
    dtype = getattr(torch, entry["dtype"])
    return torch.empty(0, dtype=dtype, device=device).set_(
        storages[offset], entry["first"], entry["shape"], entry["strides"]
    )


def _table(contents: segment.Contents, entry: Mapping[str, Any]) -> np.ndarray:
    return np.ndarray(
        entry["shape"],
        np.dtype(entry["dtype"]),
        buffer=memoryview(contents.mapping),
        offset=contents.arrays_at + entry["offset"],
    )


def _attached_like(model: LoadedModel, name: str) -> LoadedModel:
    """Attaches, and compares with the original byte by byte.

    :raises NotShareable: naming the first difference
    """
    try:
        attached = attach(model.package, name)
    except (ModelError, RuntimeError) as error:
        raise NotShareable(
            f"the module cannot be loaded without its weights: {_gist(error)}"
        ) from error
    ours, theirs = dict(_slots(model.module)), dict(_slots(attached.module))
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())[0]
        raise NotShareable(f"tensor {odd!r} is not in the module after re-loading")
    compared: set[tuple[int, int]] = set()
    for tensor, original in ours.items():
        if not _same_tensor(original, theirs[tensor], compared):
            raise NotShareable(f"tensor {tensor!r} is another after re-loading")
    for table, array in model.tables.items():
        if not _same_array(array, attached.tables[table]):
            raise NotShareable(f"table {table!r} is another after re-loading")
    return attached


def _same_tensor(
    a: torch.Tensor, b: torch.Tensor, compared: set[tuple[int, int]]
) -> bool:
    """:param compared: pairs of storages that are known to be the same"""
    if (a.dtype, a.shape, a.layout, a.requires_grad) != (
        b.dtype,
        b.shape,
        b.layout,
        b.requires_grad,
    ):
        return False
    if _why_private(a) is not None:
        # It went the way of every module that torch saves and loads.
        return a.layout != torch.strided or torch.equal(a, b)
    if a.stride() != b.stride() or a.storage_offset() != b.storage_offset():
        return False
    pair = (_key(a), _key(b))
    if pair in compared:
        return True
    compared.add(pair)
    return _same_array(_bytes_of(a.untyped_storage()), _bytes_of(b.untyped_storage()))


def _same_array(a: np.ndarray, b: np.ndarray) -> bool:
    """The same bytes, also where they say NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    first, second = _flat(a), _flat(b)
    # PERF: torch compares without a temporary array as large as the table.
    return torch.equal(torch.from_numpy(first), torch.from_numpy(second))


def _compare_outputs(
    original: LoadedModel, attached: LoadedModel, probe: Probe
) -> None:
    """:raises NotShareable: if a forward pass tells the two apart"""
    try:
        expected = _seeded(probe, original)
    except ProcserverError as error:
        log.info("no forward pass to compare shared weights with: %s", error)
        return
    try:
        found = _seeded(probe, attached)
    except ProcserverError as error:
        raise NotShareable(f"the module fails on shared weights: {error}") from error
    for name in sorted(expected.keys() | found.keys()):
        if (
            name not in expected
            or name not in found
            or not _same_array(expected[name], found[name])
        ):
            raise NotShareable(f"output {name!r} is another on shared weights")


def _seeded(probe: Probe, model: LoadedModel) -> Mapping[str, np.ndarray]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return probe(model)


def _gist(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[-1] if text else type(error).__name__
