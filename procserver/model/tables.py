"""Sparse tables of a distributed-embedding export (spec/export.md 1e)."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cython_ext.model_embedding import index_keys
from procserver.errors import ModelError
from procserver.model.documents import read_object
from procserver.model.package import ModelPackage, SparseFiles

log = logging.getLogger("procserver.model")

# Behind the name of a table with keys of its own: the index over them.
SLOTS = ".slots"
# INT8 rows end in a float16 scale and a float16 offset.
TRAILER = 4
QUANT_FORMAT = "QUint8RowwiseF16"


@dataclass(frozen=True)
class TableSpec:
    """What ``sparse_embedding.json`` says of one table.

    ``dtype``: of the stored values, "uint8" for INT8 rows;
    ``entries``: names in the dynamic shards of keys, values and default row;
    ``readers``: ``<feature>__ebc`` and ``<feature>__ec`` that look up in it.
    """

    name: str
    rows: int
    dim: int
    dtype: str
    entries: tuple[str, str, str] | None
    readers: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Columns as they are stored."""
        return self.dim + TRAILER if self.dtype == "uint8" else self.dim


def read_tables(package: ModelPackage) -> dict[str, np.ndarray]:
    """Every table of the shards, and what is derived from them once.

    A table is a C-contiguous matrix: float32, float16, or uint8 for INT8 rows
    (codes, float16 scale, float16 offset). A table with keys of its own has one
    row more, the last: what an unknown key gives; ``<table>.slots`` is the index
    over its keys. All are plain arrays, so they can be put into shared memory.

    :raises ModelError: for shards that are damaged or contradict the JSON files;
        names table and file
    """
    if package.sparse is None:
        return {}
    tables: dict[str, np.ndarray] = {}
    specs = read_specs(package.sparse)
    with Shards(package.sparse.shards) as fixed:
        for spec in specs.values():
            if spec.entries is None:
                tables[spec.name] = _fixed_table(spec, fixed)
    with Shards(package.sparse.dynamic_shards) as dynamic:
        for spec in specs.values():
            if spec.entries is not None:
                values, keys = _dynamic_table(spec, spec.entries, dynamic)
                slots, replaced = index_keys(keys)
                if replaced:
                    log.warning("table %s: %d keys twice", spec.name, replaced)
                tables[spec.name], tables[spec.name + SLOTS] = values, slots
    return tables


def read_specs(sparse: SparseFiles) -> dict[str, TableSpec]:
    """Table name -> what ``sparse_embedding.json`` says of it."""
    return {
        name: _spec(name, content, sparse.tables.name)
        for name, content in read_object(sparse.tables).items()
    }


def _spec(name: str, content: object, file: str) -> TableSpec:
    where = f"{file}: table {name!r}"
    if not isinstance(content, dict):
        raise ModelError(f"{where} is not a JSON object")
    shape, dim = content.get("shape"), content.get("dimension")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(size) is int and size >= 0 for size in shape)
        or shape[1] < 1
    ):
        raise ModelError(f"{where}: shape {shape!r} is not [rows, dimension]")
    if dim is not None and dim != shape[1]:
        raise ModelError(f"{where}: dimension {dim!r}, but shape {shape}")
    quant = content.get("quant") or {}
    form = quant.get("format") if isinstance(quant, dict) else quant
    dtype = content.get("dtype")
    quantised = form == QUANT_FORMAT or dtype == QUANT_FORMAT
    if form not in (None, QUANT_FORMAT):
        raise ModelError(f"{where}: rows of format {form!r} are not served")
    row_bytes = content.get("row_bytes")
    if quantised and row_bytes not in (None, shape[1] + TRAILER):
        raise ModelError(f"{where}: row_bytes {row_bytes!r}, but shape {shape}")
    if not quantised and dtype not in ("float32", "float16"):
        raise ModelError(f"{where}: values of type {dtype!r} are not served")
    entries = None
    if content.get("is_dynamic"):
        entries = (
            str(content.get("key_name", f"{name}.keys")),
            str(content.get("value_name", f"{name}.values")),
            str(content.get("default_value_name", f"{name}.default_value")),
        )
    readers = content.get("feat_name_impl")
    return TableSpec(
        name=name,
        rows=shape[0],
        dim=shape[1],
        dtype="uint8" if quantised else str(dtype),
        entries=entries,
        readers=tuple(map(str, readers)) if isinstance(readers, list) else (),
    )


class Shards:
    """The ``.npz`` archives of one kind, in the order of their ranks."""

    def __init__(self, paths: Sequence[Path]) -> None:
        _check_world(paths)
        self._archives: list[tuple[Path, Any]] = []
        # NOTE: numpy leaves a file open when it turns out to be no archive.
        self._files = ExitStack()
        with self._files:
            for path in paths:
                self._archives.append((path, self._open(path)))
            self._files = self._files.pop_all()

    def _open(self, path: Path) -> Any:
        try:
            file = self._files.enter_context(path.open("rb"))
            archive = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ModelError(
                f"{path.name} is not a readable .npz archive: {error}"
            ) from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ModelError(f"{path.name} is not a .npz archive")
        return self._files.enter_context(archive)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @property
    def names(self) -> str:
        """The files, for messages."""
        return ", ".join(path.name for path, _ in self._archives) or "no shard"

    def holding(self, entry: str) -> Iterator[tuple[str, np.ndarray]]:
        """(file name, array) of each shard that has ``entry``."""
        for path, archive in self._archives:
            if entry not in archive.files:
                continue
            try:
                array = archive[entry]
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                raise ModelError(
                    f"{path.name}: table entry {entry!r} is unreadable: {error}"
                ) from error
            yield path.name, array


def _check_world(paths: Sequence[Path]) -> None:
    """Refuses shards of different exports; a missing one shows in the rows."""
    # NOTE: a rank without keyed rows writes no dynamic shard.
    worlds = {path.stem.rpartition("-of-")[2] for path in paths}
    if len(worlds) > 1:
        raise ModelError(
            f"{', '.join(path.name for path in paths)}: shards of different exports"
        )


def _fixed_table(spec: TableSpec, shards: Shards) -> np.ndarray:
    parts = []
    for file, array in shards.holding(spec.name):
        _check_values(spec, file, array)
        parts.append(array)
    if not parts:
        raise ModelError(f"table {spec.name!r} is in none of {shards.names}")
    rows = [len(part) for part in parts]
    if sum(rows) == spec.rows:
        # Whole in one shard, or its rows in the order of the ranks.
        return _joined(parts)
    if rows[0] == spec.rows and all(_same(parts[0], part) for part in parts[1:]):
        return _joined(parts[:1])
    raise ModelError(
        f"table {spec.name!r}: {rows} rows in {shards.names}, but "
        f"sparse_embedding.json says {spec.rows}"
    )


def _dynamic_table(
    spec: TableSpec, entries: tuple[str, str, str], shards: Shards
) -> tuple[np.ndarray, np.ndarray]:
    """Values with the default row behind them, and the keys."""
    key_name, value_name, default_name = entries
    values = dict(shards.holding(value_name))
    keys = dict(shards.holding(key_name))
    if not values:
        raise ModelError(
            f"table {spec.name!r}: {value_name!r} is in none of {shards.names}"
        )
    for file in values.keys() | keys.keys():
        if file not in keys or file not in values:
            raise ModelError(f"{file}: table {spec.name!r} has keys or values alone")
        _check_values(spec, file, values[file])
        if keys[file].dtype != np.int64 or keys[file].shape != values[file].shape[:1]:
            raise ModelError(
                f"{file}: table {spec.name!r} has {len(values[file])} rows, but keys "
                f"{keys[file].dtype}{list(keys[file].shape)}"
            )
    rows = sum(len(part) for part in values.values())
    if rows != spec.rows:
        raise ModelError(
            f"table {spec.name!r}: {rows} rows in {shards.names}, but "
            f"sparse_embedding.json says {spec.rows}"
        )
    parts = list(values.values())
    # NOTE: a row of zeros is zero in INT8 too: scale and offset are.
    default = np.zeros((1, spec.width), parts[0].dtype)
    given = list(shards.holding(default_name))
    for file, array in given:
        array = array.reshape(1, -1)
        _check_values(spec, file, array)
        if not _same(array, given[0][1].reshape(1, -1)):
            raise ModelError(f"{file}: table {spec.name!r} has another default row")
        default = array
    return _joined([*parts, default]), np.concatenate(list(keys.values()))


def _check_values(spec: TableSpec, file: str, array: np.ndarray) -> None:
    if array.dtype != spec.dtype or array.ndim != 2 or array.shape[1] != spec.width:
        raise ModelError(
            f"{file}: table {spec.name!r} is {array.dtype}{list(array.shape)}, but "
            f"sparse_embedding.json means {spec.dtype}[rows, {spec.width}]"
        )


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """One matrix; without a copy where there is one part in the right order."""
    if len(parts) == 1:
        return np.require(parts[0], requirements=("C", "A"))
    return np.concatenate(parts)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    # NOTE: by bytes, so that NaN is equal to itself.
    return one.shape == other.shape and one.tobytes() == other.tobytes()
