"""The interface of ``pyfg`` that TorchEasyRec calls, over procserver's generator.

With ``sys.modules["pyfg"] = procserver.offline.pyfg`` set before TorchEasyRec is
imported, training, evaluation and export generate features with the code that
serves them. The hash is chosen as there: by ``USE_FARM_HASH_TO_BUCKETIZE`` being
``true`` when a handler is made.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from procserver.errors import BadFeature
from procserver.fg import FeatureGenerator
from procserver.fg.feature import FeatureSpec
from procserver.fg.plan import PlannedFeature, build_plan
from procserver.fg.types.tokenize import vocabulary_size

HASH_MODE = "USE_FARM_HASH_TO_BUCKETIZE"
NO_IDS = np.empty(0, dtype=np.int64)
NO_LENGTHS = np.empty(0, dtype=np.int32)
NO_FLOATS = np.empty(0, dtype=np.float32)


def set_env(name: str, value: str) -> None:
    """Sets an environment variable for handlers that are made from now on."""
    os.environ[name] = value


def unset_env(name: str) -> None:
    """Removes an environment variable; one that is not set is no error."""
    os.environ.pop(name, None)


class Status:
    """How a run ended: ``ok()``, and otherwise the reason in ``message()``."""

    def __init__(self, problem: str = "") -> None:
        self._problem = problem

    def ok(self) -> bool:
        """Whether there are outputs."""
        return not self._problem

    def message(self) -> str:
        """What was wrong with the input; empty if nothing was."""
        return self._problem

    def __repr__(self) -> str:
        return f"Status({self._problem!r})"


class FeatureOutput:
    """One feature of a batch, as arrays; what a form lacks is an empty array.

    ``np_values`` int64 ids, ``np_lengths`` int32 (ids per row; elements per row of
    a sequence), ``np_key_lengths`` int32 (ids per element of a sequence),
    ``np_weights`` float32 (of weighted ids), ``dense_values`` float32 of shape
    (rows or elements, value_dim). ``values``, ``lengths``, ``key_lengths`` and
    ``weights`` are the names that early TorchEasyRec releases use.
    """

    def __init__(self, name: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        values = tensors[f"{name}.values"]
        sparse = values.dtype == np.int64
        self.np_values = values if sparse else NO_IDS
        self.dense_values = NO_FLOATS if sparse else values
        self.np_lengths = tensors.get(f"{name}.lengths", NO_LENGTHS)
        self.np_key_lengths = tensors.get(f"{name}.key_lengths", NO_LENGTHS)
        self.np_weights = tensors.get(f"{name}.weights", NO_FLOATS)

    @property
    def values(self) -> NDArray[Any]:
        """``np_values``."""
        return self.np_values

    @property
    def lengths(self) -> NDArray[Any]:
        """``np_lengths``."""
        return self.np_lengths

    @property
    def key_lengths(self) -> NDArray[Any]:
        """``np_key_lengths``."""
        return self.np_key_lengths

    @property
    def weights(self) -> NDArray[Any]:
        """``np_weights``."""
        return self.np_weights


class FgArrowHandler:
    """Generates the features of an ``fg.json`` from Arrow columns.

    :param fg_json: its content, its text, or its path; asset files of content and
        text are looked up in the working directory
    :param threads: threads that a call may use
    :param bucketize_only: columns are named by feature and hold un-bucketized
        output, of which only the bucketizers are run
    :raises FgConfigError: naming feature, key and reason
    """

    def __init__(
        self,
        fg_json: Mapping[str, Any] | str | os.PathLike[str],
        threads: int = 1,
        bucketize_only: bool = False,
    ) -> None:
        if isinstance(fg_json, str) and fg_json.lstrip().startswith("{"):
            fg_json = json.loads(fg_json)
        self._arguments = (fg_json, threads, bucketize_only)
        self._generator = FeatureGenerator(
            fg_json,
            threads=threads,
            farm_hash=os.environ.get(HASH_MODE) == "true",
            bucketize_only=bucketize_only,
            for_parser=True,
        )
        # NOTE: what a handler says that it reads is the fg.json's, in either mode.
        self._plan = build_plan(self._generator.spec)

    def __reduce__(self) -> tuple[Any, ...]:
        """Handlers reach data loader processes by being made there again."""
        return FgArrowHandler, self._arguments

    # ------------------------------------------------------------------- running

    def process_arrow(
        self, data: Mapping[str, pa.Array]
    ) -> tuple[dict[str, FeatureOutput], Status]:
        """The features of a batch, by name, and how it went.

        Columns have the batch's rows, or one row. A feature that reads one-row
        columns only stays at one row, as INPUT_TILE wants it. Columns that no
        feature reads are ignored; a missing one fails the run.
        """
        generator = self._generator
        for name, column in data.items():
            if not isinstance(column, pa.Array | pa.ChunkedArray):
                raise TypeError(f"column {name!r} is no pyarrow.Array")
        missing = [name for name in generator.inputs if name not in data]
        if missing:
            return {}, Status(f"input columns are missing: {', '.join(missing)}")
        try:
            tensors = generator.transform(data, repeat=False)
        except BadFeature as error:
            return {}, Status(str(error))
        names = (one.spec.name for one in generator.plan.features if one.emitted)
        return {name: FeatureOutput(name, tensors) for name in names}, Status()

    def __call__(
        self, data: Mapping[str, Sequence[Any]]
    ) -> tuple[dict[str, list[Any]], Status]:
        """The features of rows of Python values, each as a list of rows.

        A row is a number for a feature of one number (None if it has none), and
        otherwise a list; of a sequence, one of these per element. Missing inputs
        are nulls. With every input ``[None]`` this gives what TorchEasyRec calls
        the encoded default.
        """
        generator = self._generator
        wanted = {name: data[name] for name in generator.inputs if name in data}
        try:
            batches = _arrays(wanted)
            results = [_rows(generator, batch) for batch in batches]
        except BadFeature as error:
            return {}, Status(str(error))
        joined: dict[str, list[Any]] = {}
        for result in results:
            for name, rows in result.items():
                joined.setdefault(name, []).extend(rows)
        return joined, Status()

    def reset_executor(self) -> None:
        """Nothing to do: threads end with the handler."""

    # ---------------------------------------------------------------- describing

    def user_inputs(self) -> set[str]:
        """User fields that features read, ids of sequences included."""
        return self._inputs("user")

    def item_inputs(self) -> set[str]:
        """Item columns that features read."""
        return self._inputs("item")

    def context_inputs(self) -> set[str]:
        """Context fields that features read."""
        return self._inputs("context")

    def _inputs(self, side: str) -> set[str]:
        keys = (group.pk.partition(":") for group in self._generator.spec.groups)
        return {slot.name for slot in self._plan.slots if slot.side == side} | {
            name for pk_side, _, name in keys if pk_side == side
        }

    def user_features(self) -> set[str]:
        """Features that depend on user fields and literals alone."""
        return {one.spec.name for one in self._plan.features if one.side == "user"}

    def sequence_feature_pks(self) -> dict[str, str]:
        """Sequence group to the name of the field with its item ids."""
        groups = self._generator.spec.groups
        return {group.group: group.pk.partition(":")[2] for group in groups}

    def sequence_input_to_name(self) -> dict[str, str]:
        """Sequence column to its group."""
        return {
            ref.column: spec.sequence.group
            for spec in self._generator.spec.features
            if spec.sequence is not None and spec.sequence.group
            for ref in spec.inputs
            if ref.sequence and ref.side not in ("feature", "const")
        }

    def sequence_feature_to_name(self) -> dict[str, str]:
        """Sequence feature to its group."""
        return {
            spec.name: spec.sequence.group
            for spec in self._generator.spec.features
            if spec.sequence is not None and spec.sequence.group
        }


class FeatureFactory:
    """Makes single features."""

    @staticmethod
    def create(entry: Mapping[str, Any], is_rank_zero: bool = False) -> "Tokenizer":
        """The tokenizer of a ``tokenize_feature`` entry, to ask for its size.

        :raises FgConfigError: for other types, or an unusable ``vocab_file``
        """
        return Tokenizer(entry)


class Tokenizer:
    """What TorchEasyRec asks of a tokenizer."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self._size = vocabulary_size(entry, Path())

    def vocab_size(self) -> int:
        """Number of word ids, which is the size of the embedding table."""
        return self._size


def _arrays(data: Mapping[str, Sequence[Any]]) -> list[dict[str, pa.Array]]:
    """The rows as one batch or, if a column mixes types, as a batch per row."""
    for name, cells in data.items():
        if not isinstance(cells, list | tuple):
            raise TypeError(f"input {name!r} is no list")
    if len({len(cells) for cells in data.values()} - {1}) > 1:
        counts = sorted({len(cells) for cells in data.values()})
        raise BadFeature(f"inputs have {counts} rows")
    try:
        return [{name: _array(name, cells) for name, cells in data.items()}]
    except _Mixed:
        rows = max(len(cells) for cells in data.values())
        return [
            {
                name: _array(name, [cells[row if len(cells) > 1 else 0]])
                for name, cells in data.items()
            }
            for row in range(rows)
        ]


class _Mixed(Exception):
    """Cells of one column have different types."""


def _array(name: str, cells: Sequence[Any]) -> pa.Array:
    try:
        if not any(isinstance(cell, Mapping) for cell in cells):
            return pa.array(cells)
        maps = [cell for cell in cells if cell is not None]
        keys = pa.array([key for one in maps for key in one])
        values = pa.array([value for one in maps for value in one.values()])
        pairs = [None if cell is None else list(cell.items()) for cell in cells]
        return pa.array(pairs, pa.map_(keys.type, values.type))
    except (pa.ArrowInvalid, pa.ArrowTypeError, AttributeError) as error:
        if len(cells) == 1:
            raise BadFeature(f"input {name!r}: {error}") from error
        raise _Mixed from error
    except (OverflowError, pa.ArrowNotImplementedError) as error:
        raise BadFeature(f"input {name!r}: {error}") from error


def _rows(
    generator: FeatureGenerator, batch: Mapping[str, pa.Array]
) -> dict[str, list[Any]]:
    tensors = generator.transform(batch, repeat=False)
    rows = max((len(array) for array in batch.values()), default=1)
    return {
        one.spec.name: _repeated(_feature_rows(one, tensors), rows)
        for one in generator.plan.features
        if one.emitted
    }


def _repeated(cells: list[Any], rows: int) -> list[Any]:
    return cells * rows if len(cells) == 1 else cells


def _feature_rows(
    feature: PlannedFeature, tensors: Mapping[str, NDArray[Any]]
) -> list[Any]:
    spec = feature.spec
    output = FeatureOutput(spec.name, tensors)
    if feature.form == "numbers":
        cells: list[Any] = output.dense_values.tolist()
        if output.dense_values.shape[1] == 1:
            cells = [cell[0] for cell in cells]
        return cells if spec.sequence is None else _split(cells, output.np_lengths)
    cells = output.np_values.tolist()
    if spec.sequence is None:
        rows = _split(cells, output.np_lengths)
        return [_number(row) for row in rows] if _is_one_number(spec) else rows
    if feature.has_keys:
        cells = _split(cells, output.np_key_lengths)
    return _split(cells, output.np_lengths)


def _is_one_number(spec: FeatureSpec) -> bool:
    return spec.numeric and spec.width == 1


def _number(row: list[Any]) -> Any:
    return row[0] if len(row) == 1 else row or None


def _split(cells: list[Any], lengths: NDArray[Any]) -> list[list[Any]]:
    ends = np.cumsum(lengths).tolist()
    return [
        cells[end - length : end]
        for end, length in zip(ends, lengths.tolist(), strict=True)
    ]
