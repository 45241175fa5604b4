"""The public Feature Generator."""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cython_ext.column import Column
from cython_ext.fg_plan import CompiledPlan
from procserver.errors import BadFeature
from procserver.fg.bucketing import bucketize_only as bucketize_only_spec
from procserver.fg.compiling import compile_plan, compile_unbucketized
from procserver.fg.dump import dump_rows
from procserver.fg.parts import Parts
from procserver.fg.plan import Plan, build_plan
from procserver.fg.spec import FgSpec, read_spec
from procserver.fg.split import Part, digest_of

# NOTE: workers make no use of Arrow and must not import it: it starts a thread.
if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

Tensors = dict[str, NDArray[np.generic]]
MAPPINGS = {"user": 0, "item": 1, "context": 2}


@dataclass(frozen=True)
class SequenceJoin:
    """Item features that a request's list of item ids stands for (section 9).

    The ids are in the ``pk_name`` field of side ``pk_side``, a list or a text cut
    by ``delim``; ``length`` of them count (0: all). For each, column ``c`` of the
    item cache goes into the request column ``inputs[c]``, unless the request
    brought that column itself.
    """

    sequence_name: str
    pk_side: str
    pk_name: str
    delim: str
    length: int
    inputs: Mapping[str, str]


class FeatureGenerator:
    """Generates the input tensors of a model from raw columns.

    :param fg_json: path of an ``fg.json``, or its content as a mapping
    :param asset_dir: where asset files are; by default beside the file
    :param threads: threads that a call may use; it does where that is faster
    :param farm_hash: hash with FarmHash Fingerprint64 instead of ``std::hash``;
        must match training, where ``USE_FARM_HASH_TO_BUCKETIZE`` chose it
        (NOTE(14.2): no export records it)
    :param rtp: the file was exported for RTP: names in a group are joined with ``_``,
        and training hashed with FarmHash (spec section 12)
    :param bucketize_only: columns are named by feature and hold its values from
        before bucketization; only bucketizers are run (spec section 11)
    :param for_parser: for TorchEasyRec's data parser, not for a model: every id
        sequence has ``key_lengths``, and :meth:`transform` may leave features at
        one row
    :raises FgConfigError: naming feature, key and reason

    Tensors are named and typed as in section 5 of the specification:
    ``<feature>.values`` (int64, or float32 of shape (rows, value_dim)),
    ``.lengths``, ``.key_lengths`` (int32) and ``.weights`` (float32). Arrays are
    contiguous, writable and own their memory. Any number of threads may call one
    generator at once.
    """

    def __init__(
        self,
        fg_json: Mapping[str, Any] | str | os.PathLike[str],
        *,
        asset_dir: str | os.PathLike[str] | None = None,
        threads: int = 1,
        farm_hash: bool = False,
        rtp: bool = False,
        bucketize_only: bool = False,
        for_parser: bool = False,
    ) -> None:
        if threads < 1:
            raise ValueError("threads must be at least 1")
        if rtp and not farm_hash:
            logger.warning("a file for RTP belongs to a model trained with FarmHash")
        self.threads = threads
        self.farm_hash = farm_hash
        self._source = (fg_json, asset_dir)
        self._modes = (farm_hash, rtp, bucketize_only)
        self.spec: FgSpec = read_spec(fg_json, asset_dir, rtp=rtp)
        self.plan: Plan = build_plan(self.spec)
        if bucketize_only:
            self.plan = build_plan(bucketize_only_spec(self.plan))
        self.for_parser = for_parser
        self.compiled: CompiledPlan = compile_plan(
            self.plan, farm_hash=farm_hash, for_parser=for_parser
        )
        self._parts: Parts | None = None
        if threads > 1:
            self._parts = Parts(
                self.plan, threads, farm_hash=farm_hash, for_parser=for_parser
            )
        self._bindings = [(MAPPINGS[s.side], s.name) for s in self.plan.slots]
        for feature in self.plan.features:
            if feature.form == "text" and not feature.spec.stub:
                logger.warning(
                    "feature %r has no bucketizer: its text is no tensor and is "
                    "left out of the output",
                    feature.spec.name,
                )

    # ------------------------------------------------------------- generating

    def generate(
        self,
        user: Mapping[str, Column],
        item: Mapping[str, Column],
        context: Mapping[str, Column],
        rows: int,
        *,
        tile: bool,
        part: Part | None = None,
    ) -> Tensors:
        """The tensors of one request of ``rows`` items (spec section 13).

        User columns have one row; item and context columns have one row, or at
        least ``rows``, of which the first ``rows`` count. A missing column is one
        of nulls. With ``tile``, user-side features keep one row and the
        zero-dimensional int64 tensor ``batch_size`` is added; otherwise every
        feature has ``rows`` rows. Of a ``part`` only the tensors of its features
        are made.

        :raises BadFeature: wrong number of rows, or a cell of a type or size that
            its feature cannot take
        """
        mappings = (user, item, context)
        columns: list[Column | None] = []
        for side, name in self._bindings:
            column = mappings[side].get(name)
            if side == 0 and column is not None and len(column) != 1:
                raise BadFeature(f"user feature {name!r} has {len(column)} rows, not 1")
            columns.append(column)
        mask = None if part is None else part.mask
        tensors = self._run(columns, rows, tile=tile, mask=mask)
        if tile:
            tensors["batch_size"] = np.array(rows, dtype=np.int64)
        return tensors

    def transform(
        self, columns: "Mapping[str, pa.Array]", *, repeat: bool = True
    ) -> Tensors:
        """The tensors of a batch of Arrow columns, by name whatever their side.

        Columns have the same number of rows, which is that of the result, or one
        row, which is repeated. Without ``repeat``, which takes a generator made
        ``for_parser``, features that read one-row columns only have one row.

        :raises BadFeature: unequal columns, or a column or cell of a type or size
            that its feature cannot take
        """
        bound, rows = self._bind_arrow(columns)
        return self._run(bound, rows, tile=self.for_parser and not repeat)

    def _run(
        self,
        columns: list[Column | None],
        rows: int,
        *,
        tile: bool,
        mask: bytes | None = None,
    ) -> Tensors:
        if self._parts is not None and self._parts.pays(rows, mask):
            return self._parts.run(columns, rows, tile=tile, mask=mask)
        return self.compiled.run(columns, rows, tile=tile, part=mask)

    def default_row(self) -> dict[str, NDArray[np.generic]]:
        """Each feature's values for an all-null row of no type: its padding.

        Not what a null in a typed column gives: see section 3, numeric nulls.
        """
        tensors = self.compiled.run([None] * len(self._bindings), 1, tile=False)
        return {
            feature.spec.name: tensors[f"{feature.spec.name}.values"].reshape(-1)
            for feature in self.plan.features
            if feature.emitted
        }

    def unbucketized(self, columns: "Mapping[str, pa.Array]") -> dict[str, list[Any]]:
        """Each feature's values per row before bucketization, stubs included.

        A row is a list of texts or floats; of a sequence, a list of such lists.
        """
        compiled, numbers = self._unbucketized
        bound, rows = self._bind_arrow(columns)
        found = compiled.values(bound, rows, list(numbers.values()))
        cells = [column.to_pylist() for column in found]
        return {
            name: one * rows if len(one) == 1 != rows else one
            for name, one in zip(numbers, cells, strict=True)
        }

    @cached_property
    def _unbucketized(self) -> tuple[CompiledPlan, dict[str, int]]:
        return compile_unbucketized(self.plan, farm_hash=self.farm_hash)

    def _bind_arrow(
        self, columns: "Mapping[str, pa.Array]"
    ) -> tuple[list[Column | None], int]:
        bound: list[Column | None] = []
        counts = set()
        for slot in self.plan.slots:
            array = columns.get(slot.name)
            if array is None:
                bound.append(None)
                continue
            try:
                column = Column.from_arrow(array)
            except (TypeError, ValueError) as error:  # ArrowInvalid is the latter
                raise BadFeature(f"column {slot.name!r}: {error}") from error
            counts.add(len(column))
            bound.append(column)
        if not counts:
            counts = {len(array) for array in columns.values()}
        counts.discard(1)
        if len(counts) > 1:
            raise BadFeature(f"columns have {sorted(counts)} rows")
        return bound, counts.pop() if counts else 1

    def dump(self, tensors: Mapping[str, NDArray[Any]]) -> list[str]:
        """A line of text per row of tensors that this generator made.

        For comparison with other Feature Generators: ``name:value`` pairs joined by
        `` | ``, see :func:`procserver.fg.dump.dump_rows`.
        """
        return dump_rows(self.plan, tensors)

    def dump_items(self, tensors: Mapping[str, NDArray[Any]]) -> list[str]:
        """The same without features of the user alone."""
        return dump_rows(self.plan, tensors, ("item", "crossing"))

    # ------------------------------------------------------------- describing

    @cached_property
    def digest(self) -> str:
        """What values depend on: ``fg.json``, its files, hash, kernels."""
        fg_json, asset_dir = self._source
        return digest_of(fg_json, asset_dir, self._modes)

    @property
    def inputs(self) -> tuple[str, ...]:
        """All columns that :meth:`transform` reads."""
        return tuple(dict.fromkeys(slot.name for slot in self.plan.slots))

    @property
    def user_inputs(self) -> tuple[str, ...]:
        """User fields that requests may bring, sequences as ``<name>__<input>``."""
        return self._inputs("user")

    @property
    def item_inputs(self) -> tuple[str, ...]:
        """Item columns that features read, other than in sequences."""
        return self._inputs("item")

    @property
    def context_inputs(self) -> tuple[str, ...]:
        """Context fields that requests may bring."""
        return self._inputs("context")

    def _inputs(self, side: str) -> tuple[str, ...]:
        return tuple(slot.name for slot in self.plan.slots if slot.side == side)

    @property
    def sequence_pks(self) -> dict[str, str]:
        """Group name to the ``side:name`` of its list of item ids."""
        return {group.group: group.pk for group in self.spec.groups}

    @cached_property
    def sequence_joins(self) -> tuple[SequenceJoin, ...]:
        """What a server has to join from the item cache before generating."""
        joins = []
        for group in self.spec.groups:
            inputs = {
                ref.name: ref.column
                for feature in self.spec.features
                if feature.sequence is group
                for ref in feature.inputs
                if ref.side == "item" and ref.sequence and not ref.spread
            }
            side, _, name = group.pk.partition(":")
            if inputs:
                joins.append(
                    SequenceJoin(
                        group.group,
                        side,
                        name,
                        group.delim.decode(),
                        group.length,
                        inputs,
                    )
                )
        return tuple(joins)

    def describe(self) -> list[dict[str, Any]]:
        """One entry per feature, stubs included, in the order of work."""
        return [
            {
                "name": feature.spec.name,
                "operator": feature.spec.operator,
                "side": feature.side,
                "inputs": [f"{r.side}:{r.name}" for r in feature.spec.inputs],
                "values": feature.form,
                "sequence": feature.spec.sequence is not None,
                "value_dim": feature.spec.value_dim,
                "stub": feature.spec.stub,
                "tensors": list(feature.tensors),
            }
            for feature in self.plan.features
        ]

    def tensor_names(self) -> Iterable[str]:
        """Names of all tensors, ``batch_size`` aside."""
        for feature in self.plan.features:
            yield from feature.tensors
