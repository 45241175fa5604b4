"""Looked-up embeddings for the dense script of a distributed-embedding export.

The script's inputs (spec/export.md 1e) are those of any other one, and ::

    <group>__ebc, <group>__ebc_user   float32 [rows, sum of dimensions]
                                      pooled rows of its features, side by side
    <feature>                         float32 [ids, dimension]
    <feature>__lengths                [rows] ids of each row

where the rows of user-side tensors are one: the script tiles them itself.

A feature that has several tables, as in a model with a wide and a deep part, stands
there as ``<feature>@<table>``, once for each; its ids are given once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cython_ext.model_embedding import Lookups, Table, row_lengths
from procserver.errors import BadTensor, ModelError
from procserver.model.documents import read_object
from procserver.model.package import ModelPackage
from procserver.model.tables import SLOTS, read_specs

SEQUENCES = "sequence__ec"
# What a feature of ids consists of.
PARTS = ("values", "lengths", "key_lengths", "weights")


@dataclass(frozen=True)
class Pooled:
    """One output of pooled embeddings: features side by side."""

    name: str
    features: tuple[str, ...]
    width: int


@dataclass(frozen=True)
class Single:
    """One feature whose ids each give a row of their own."""

    name: str
    feature: str
    dim: int


class SparseEmbeddings:
    """The features of an export, bound to their tables.

    :param package: an export with ``sparse`` files
    :param tables: what ``read_tables`` gave, or views of it in shared memory
    :param read: the tensors that the script reads, if that is known; ids and their
        lengths that are not among them end here
    :raises ModelError: if the JSON files and the tables do not fit together
    """

    def __init__(
        self,
        package: ModelPackage,
        tables: Mapping[str, np.ndarray],
        read: Collection[str] | None = None,
    ) -> None:
        if package.sparse is None:
            raise ModelError("this export has no sparse tables")
        self._files = package.sparse
        self._described = read_object(package.sparse.features)
        self._readers = {
            name: spec.readers for name, spec in read_specs(package.sparse).items()
        }
        self._tables: dict[str, Table] = {}
        self._pooled: list[Pooled] = []
        self._singles: list[Single] = []
        # In the order of the outputs: groups, then single features.
        self._plan: list[tuple[str, Table, str, int]] = []
        meta = read_object(package.sparse.dense_meta)
        for name, impls in meta.items():
            if not isinstance(impls, list) or not all(
                isinstance(impl, str) for impl in impls
            ):
                raise ModelError(
                    f"{self._files.dense_meta.name}: {name!r} is not a list of names"
                )
            if name != SEQUENCES and impls:
                self._add_pooled(name, impls, tables)
        self._add_singles(meta.get(SEQUENCES, []), tables)
        self._lookups = Lookups(*zip(*self._plan, strict=True)) if self._plan else None
        self._names = tuple(name for name, *_ in self._plan)
        self.features = tuple(dict.fromkeys(self._names))
        looked_up = {f"{name}.{part}" for name in self.features for part in PARTS}
        self._unread = looked_up.difference(looked_up if read is None else read)

    def join(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors together with the embeddings of their ids.

        :raises BadTensor: if a feature's tensors are missing or do not fit each
            other, or if an id is outside of its table
        """
        joined = {
            name: array for name, array in tensors.items() if name not in self._unread
        }
        values: dict[str, np.ndarray] = {}
        lengths: dict[str, np.ndarray] = {}
        for feature in self.features:
            ids = _given(tensors, f"{feature}.values")
            rows = _given(tensors, f"{feature}.lengths")
            steps = tensors.get(f"{feature}.key_lengths")
            if steps is not None:
                rows = row_lengths(feature, rows, steps, ids.size)
            values[feature] = ids.astype(np.int64) if ids.dtype == np.int32 else ids
            lengths[feature] = rows
        outs: list[np.ndarray] = []
        for group in self._pooled:
            size = _common_rows(group, lengths)
            out = joined[group.name] = np.empty((size, group.width), np.float32)
            outs += [out] * len(group.features)
        for single in self._singles:
            feature = single.feature
            out = np.empty((values[feature].size, single.dim), np.float32)
            joined[single.name] = out
            joined[f"{single.name}__lengths"] = lengths[feature]
            outs.append(out)
        if self._lookups is not None:
            self._lookups.run(
                [values[name] for name in self._names],
                [lengths[name] for name in self._names],
                outs,
            )
        return joined

    def _add_pooled(
        self, name: str, impls: list[str], tables: Mapping[str, np.ndarray]
    ) -> None:
        features = []
        width = 0
        for impl in impls:
            table, pooling = self._described_as(impl, tables)
            if pooling not in ("SUM", "MEAN"):
                raise ModelError(
                    f"{self._files.features.name}: {impl!r} has pooling {pooling!r}, "
                    "which is neither SUM nor MEAN"
                )
            feature = impl.removesuffix("__ebc").partition("@")[0]
            features.append(feature)
            self._plan.append((feature, table, pooling, width))
            width += table.dim
        self._pooled.append(Pooled(name, tuple(features), width))

    def _add_singles(self, names: list[str], tables: Mapping[str, np.ndarray]) -> None:
        # The list names the lengths of each feature, too.
        for impl in dict.fromkeys(names):
            if impl.endswith("__ec"):
                table, _ = self._described_as(impl, tables)
                name = impl.removesuffix("__ec")
                feature = name.partition("@")[0]
                self._plan.append((feature, table, "NONE", 0))
                self._singles.append(Single(name, feature, table.dim))
            elif not impl.endswith("__lengths"):
                raise ModelError(
                    f"{self._files.dense_meta.name}: {SEQUENCES!r} names {impl!r}, "
                    "which is neither embeddings nor lengths"
                )

    def _described_as(
        self, impl: str, tables: Mapping[str, np.ndarray]
    ) -> tuple[Table, str]:
        """The table and the pooling of ``<feature>__ebc`` or ``<feature>__ec``."""
        feature, suffix = impl.rsplit("__", 1) if "__" in impl else (impl, "")
        feature, at, table = feature.partition("@")
        described = self._described.get(impl)
        if at and described is None:
            described = self._described.get(f"{feature}__{suffix}")
        if not isinstance(described, dict):
            raise ModelError(
                f"{self._files.dense_meta.name} names {impl!r}, which "
                f"{self._files.features.name} does not describe"
            )
        name = str(described.get("embedding_name"))
        if at and name.rpartition(".")[2] != table:
            # NOTE: sparse_features.json has room for one table of a feature.
            name = self._table_of(f"{feature}__{suffix}", table) or f"*.{table}"
        if name not in tables:
            raise ModelError(
                f"{self._files.features.name}: {impl!r} reads table {name!r}, which "
                f"{self._files.tables.name} does not have"
            )
        if name not in self._tables:
            self._tables[name] = Table(tables[name], tables.get(name + SLOTS))
        return self._tables[name], str(described.get("pooling"))

    def _table_of(self, impl: str, table: str) -> str | None:
        """The one called ``table`` that ``impl`` reads."""
        found = [
            name
            for name, readers in self._readers.items()
            if name.rpartition(".")[2] == table and impl in readers
        ]
        return found[0] if len(found) == 1 else None


def names_read(module: torch.jit.ScriptModule) -> frozenset[str] | None:
    """The tensors that a script takes from its batch; None: they cannot be told.

    PERF: a tensor that nobody reads need not become torch's, nor go to a device.
    """
    arguments = list(module.inlined_graph.inputs())
    if len(arguments) < 2:
        return None
    names = set()
    # The first argument is the module itself.
    for use in arguments[1].uses():
        operands = list(use.user.inputs())
        if use.user.kind() not in ("aten::__getitem__", "aten::__contains__"):
            return None
        key = operands[1].node()
        if key.kind() != "prim::Constant":
            return None
        names.add(key.s("value"))
    return frozenset(names)


def _given(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    try:
        return tensors[name]
    except KeyError:
        raise BadTensor(f"the model needs tensor {name!r}") from None


def _common_rows(group: Pooled, lengths: Mapping[str, np.ndarray]) -> int:
    first = group.features[0]
    size = lengths[first].size
    for feature in group.features:
        if lengths[feature].size != size:
            raise BadTensor(
                f"{feature}.lengths: {lengths[feature].size} rows, but "
                f"{first}.lengths has {size}"
            )
    return size
