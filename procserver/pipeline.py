"""predict(): decode -> gather -> generate -> run -> encode.

The five words name the stages in code, logs, metrics, docs and tests. What
joins the sibling rooms is composed here: item features from the cache, the
``sequence_pk`` join, the score of items that do not exist.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from cython_ext.column import Column, Kind, Shape, shape_of
from procserver.errors import BadFeature, BadRequest, SourceError, TooLarge
from procserver.fg import FeatureGenerator, SequenceJoin
from procserver.fg.dump import dump_columns
from procserver.fg.pregenerated import Pregenerated
from procserver.fg.split import Part
from procserver.itemcache.reader import CacheReader, Generation
from procserver.model.runner import ModelRunner
from procserver.model.signature import PLATFORM, Signature, facts, signature
from procserver.observe.reqlog import RequestLog
from procserver.observe.trace import DECODE, ENCODE, GATHER, GENERATE, RUN, Trace
from procserver.wire import torch as torch_wire
from procserver.wire import torchrec as torchrec_wire
from procserver.wire.logdata import encode as encode_log_data
from procserver.wire.torch import TorchRequest
from procserver.wire.torchrec import TorchRecRequest

log = logging.getLogger("procserver.pipeline")

Columns = Mapping[str, Column]
Tensors = Mapping[str, np.ndarray]

# Debug levels: what is saved, and what needs every item column as it was.
SAVED_LEVEL = 100
RAW_LEVELS = (1, 2, SAVED_LEVEL, 102)
DTYPE_NAMES = {"float32": "FLOAT", "float64": "DOUBLE"} | {
    name: name.upper()
    for name in ("int64", "int32", "int16", "int8", "uint8", "complex64", "complex128")
}


@dataclass(frozen=True)
class Reply:
    """An encoded answer, the cache generation it was made from, its request.

    ``rows``: items scored, 0 if the request does not say; ``debug_level``: what the
    request asked for beside scores.
    """

    body: bytes
    generation: int | None = None
    rows: int = 0
    debug_level: int = 0


@dataclass(frozen=True)
class ItemRows:
    """One request's rows: what FG reads and which items do not exist.

    ``missing``: the rows to get ``item_empty_score``, None for none; ``unknown``: how
    many item ids are not in the cache, whether the request brings their features or
    not; ``ready``: tensors that were generated when the cache was built; ``part``: the
    features that are left to generate, None for all.
    """

    user: Columns
    item: Columns
    context: Columns
    rows: int
    missing: np.ndarray | None
    generation: int | None
    unknown: int = 0
    part: Part | None = None
    ready: Mapping[str, np.ndarray] = field(default_factory=dict)


class Pipeline(Protocol):
    """One way of answering a predict request.

    ``request_log`` is set when the warm-up is over, whose requests are not to be
    logged; None: requests of debug level 100 are not saved.
    """

    request_log: RequestLog | None

    def predict(
        self, body: bytes | bytearray | memoryview, trace: Trace | None = None
    ) -> Reply:
        """Answers one request body; ``trace`` takes the time of each stage.

        :raises RequestError: whatever the client is to be told
        """

    def describe(self) -> dict[str, object]:
        """What the service takes and returns, for ``GET``.

        ``inputs`` and ``outputs`` are lists of name, shape (-1: any) and type.
        """

    def describe_model(self) -> dict[str, object]:
        """The model behind the service, for ``/v2/models``."""


class RankingPipeline:
    """Feature generation in front of the model (``fg_mode: normal``)."""

    def __init__(
        self,
        fg: FeatureGenerator,
        runner: ModelRunner,
        cache: CacheReader | None,
        *,
        item_empty_score: float = 0.0,
        max_items: int = 5000,
    ) -> None:
        self._fg = fg
        self._runner = runner
        self._cache = cache
        self._item_empty_score = item_empty_score
        self._max_items = max_items
        self.request_log: RequestLog | None = None
        self._tile = runner.package.input_tile != 0
        self._item_inputs = tuple(fg.item_inputs)
        self._joins = tuple(fg.sequence_joins)
        self._split: tuple[Generation, Pregenerated | None] | None = None

    def predict(
        self, body: bytes | bytearray | memoryview, trace: Trace | None = None
    ) -> Reply:
        with self._runner.coming():
            return self._predict(body, trace or Trace())

    def _predict(self, body: bytes | bytearray | memoryview, trace: Trace) -> Reply:
        trace.begin()
        request = torchrec_wire.decode(body)
        trace.debug_level = request.debug_level
        trace.request_id = request.meta.get("request_id", "")
        trace.done(DECODE)
        if request.is_empty:
            raise BadRequest(
                "the request has neither item_ids nor user_features: "
                "is it meant for another kind of service?"
            )
        if len(request.item_ids) > self._max_items:
            raise TooLarge(
                f"item_ids: {len(request.item_ids)} items, at most "
                f"{self._max_items} are scored in one request"
            )
        gathered = self.gather(request)
        trace.items, trace.missing = gathered.rows, gathered.unknown
        trace.done(GATHER)
        tensors = self.generate(gathered) if gathered.rows else {}
        trace.done(GENERATE)
        outputs = self._score(gathered, tensors)
        trace.done(RUN)
        answer = torchrec_wire.encode(outputs, request.item_ids)
        trace.done(ENCODE)
        if request.debug_level == SAVED_LEVEL:
            self.save(request, body, gathered, tensors)
        return Reply(answer, gathered.generation, gathered.rows, request.debug_level)

    def save(
        self,
        request: TorchRecRequest,
        body: bytes | bytearray | memoryview,
        gathered: ItemRows,
        tensors: Tensors,
    ) -> None:
        """Puts the request and its features into the request log, if there is one.

        The text is made by the log's own threads.
        """
        if self.request_log is None:
            return
        copy = bytes(body)
        size = len(copy) + sum(tensor.nbytes for tensor in tensors.values())
        self.request_log.offer(
            request.meta.get("request_id", ""),
            size,
            lambda: encode_log_data(
                copy,
                self.raw_features(request, gathered),
                self.generated_features(request, gathered, tensors),
            ),
        )

    def raw_features(
        self, request: TorchRecRequest, gathered: ItemRows
    ) -> dict[str, str]:
        """By item id: the item and context columns that FG reads, as text.

        Complete for the debug levels of ``RAW_LEVELS`` only: otherwise columns that
        nothing is left to be generated from are not gathered.
        """
        columns = {
            **{n: gathered.item[n] for n in self._item_inputs if n in gathered.item},
            **{
                n: gathered.context[n]
                for n in self._fg.context_inputs
                if n in gathered.context
            },
        }
        return _by_item(request, dump_columns(columns, gathered.rows))

    def generated_features(
        self, request: TorchRecRequest, gathered: ItemRows, tensors: Tensors
    ) -> dict[str, str]:
        """By item id: what FG made, as text; features of the user alone left out."""
        if not gathered.rows:
            return {}
        return _by_item(request, self._fg.dump_items(tensors))

    def gather(self, request: TorchRecRequest) -> ItemRows:
        """Joins item features, for the items and for sequences of items.

        :raises BadFeature: for a context or item list that is too short
        """
        rows = self._row_count(request)
        generation = None if self._cache is None else self._cache.current()
        user = dict(request.user)
        item = {
            name: _fit(f"item_features[{name!r}]", column, rows)
            for name, column in request.item.items()
        }
        context = {
            name: _fit(f"context_features[{name!r}]", column, rows)
            for name, column in request.context.items()
        }
        missing = None
        unknown = 0
        part: Part | None = None
        ready: Mapping[str, np.ndarray] = {}
        if generation is not None:
            for join in self._joins:
                _join_sequence(generation, join, user)
            if len(request.item_ids):
                found = generation.lookup(request.item_ids)
                part, ready = self._take_ready(generation, found, request.item)
                inputs = self._item_inputs
                if part is not None and request.debug_level not in RAW_LEVELS:
                    inputs = part.item_inputs
                wanted = [
                    name
                    for name in inputs
                    if name in generation.schema and name not in item
                ]
                item.update(generation.gather(found, wanted))
                unknown = int(np.count_nonzero(found < 0))
                if unknown and not request.item:
                    missing = found < 0
        return ItemRows(
            user=user,
            item=item,
            context=context,
            rows=rows,
            missing=missing,
            generation=None if generation is None else generation.number,
            unknown=unknown,
            part=part,
            ready=ready,
        )

    def _take_ready(
        self, generation: Generation, found: np.ndarray, given: Columns
    ) -> tuple[Part | None, dict[str, np.ndarray]]:
        """Tensors that were generated ahead, and the features that are left.

        Features that read an item column which the request itself brings are
        generated from it.
        """
        features = self._pregenerated(generation)
        if features is None or generation.companion is None:
            return None, {}
        served = features.served(given.keys())
        columns = generation.companion.gather(found, served.columns)
        return served.part, served.tensors(found, columns)

    def _pregenerated(self, generation: Generation) -> Pregenerated | None:
        """The features that came with a generation; looked at once for each."""
        split = self._split
        if split is None or split[0] is not generation:
            split = self._split = (generation, open_pregenerated(self._fg, generation))
        return split[1]

    def _row_count(self, request: TorchRecRequest) -> int:
        if len(request.item_ids):
            return len(request.item_ids)
        # An item tower is called with item or context features alone, a user
        # tower with user features alone.
        given = [len(c) for c in (*request.item.values(), *request.context.values())]
        if given:
            return max(given)
        return 0 if self._item_inputs or self._fg.context_inputs else 1

    def _score(self, gathered: ItemRows, tensors: Tensors) -> dict[str, np.ndarray]:
        if gathered.rows == 0:
            return dict(self._runner.empty_outputs)
        outputs = self._runner.run(tensors)
        if not self._runner.output_names:
            self._runner.learn_outputs(outputs, gathered.rows)
        if gathered.missing is not None:
            return self._with_empty_scores(outputs, gathered.missing)
        return outputs

    def generate(self, gathered: ItemRows) -> dict[str, np.ndarray]:
        """The model's input tensors, whether generated now or ahead.

        :raises BadFeature: for a cell that its feature cannot take
        """
        tensors = self._fg.generate(
            gathered.user,
            gathered.item,
            gathered.context,
            gathered.rows,
            tile=self._tile,
            part=gathered.part,
        )
        tensors.update(gathered.ready)
        return tensors

    def _with_empty_scores(
        self, outputs: Mapping[str, np.ndarray], missing: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Puts ``item_empty_score`` into every float output's missing rows."""
        scored = {}
        for name, array in outputs.items():
            if array.dtype.kind == "f" and array.shape[:1] == missing.shape:
                array = array.copy()
                array[missing] = self._item_empty_score
            scored[name] = array
        return scored

    def describe(self) -> dict[str, object]:
        sides = {
            "user_features": list(self._fg.user_inputs),
            "item_features": list(self._fg.item_inputs),
            "context_features": list(self._fg.context_inputs),
        }
        return {
            "inputs": [
                {
                    "name": name,
                    "shape": [1 if side == "user_features" else -1],
                    "type": "PBFeature",
                }
                for side, names in sides.items()
                for name in names
            ],
            "outputs": _described_outputs(self._runner),
            **sides,
        }

    def describe_model(self) -> dict[str, object]:
        return _model(self._runner, self._model_inputs)

    @cached_property
    def _model_inputs(self) -> Signature:
        return signature(self._fg.generate({}, {}, {}, 1, tile=self._tile))


def open_pregenerated(
    fg: FeatureGenerator, generation: Generation
) -> Pregenerated | None:
    """What the companion of a generation holds; None: every feature is generated."""
    if generation.companion is None:
        return None
    nowhere = np.array([-1], dtype=np.int64)
    try:
        features = Pregenerated(
            fg,
            generation.companion.schema,
            generation.schema,
            lambda names: generation.gather(nowhere, names),
        )
    except BadFeature as error:
        log.warning("generation %d, features ahead: %s", generation.number, error)
        return None
    log.info(
        "generation %d: %d of %d features are taken from the cache",
        generation.number,
        len(features.features),
        sum(feature.emitted for feature in fg.plan.features),
    )
    return features


class BypassPipeline:
    """Tensors from the client straight into the model (``fg_mode: bypass``)."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.request_log: RequestLog | None = None

    def predict(
        self, body: bytes | bytearray | memoryview, trace: Trace | None = None
    ) -> Reply:
        with self._runner.coming():
            return self._predict(body, trace or Trace())

    def _predict(self, body: bytes | bytearray | memoryview, trace: Trace) -> Reply:
        trace.begin()
        request = torch_wire.decode(body)
        trace.debug_level = request.debug_level
        trace.done(DECODE)
        outputs = self._run(request)
        trace.done(RUN)
        answer = torch_wire.encode(outputs)
        trace.done(ENCODE)
        if request.debug_level == SAVED_LEVEL and self.request_log is not None:
            # There are no features and no request id; the body is saved as it is.
            copy = bytes(body)
            self.request_log.offer("", len(copy), lambda: copy)
        return Reply(answer, debug_level=request.debug_level)

    def _run(
        self, request: TorchRequest
    ) -> Sequence[np.ndarray] | Mapping[str, np.ndarray]:
        if request.map_inputs:
            named = {n: (a.dtype, a.values) for n, a in request.map_inputs.items()}
            # NOTE: output_filter holds positions; with named tensors there are
            # none, and real clients send a filter that they expect ignored.
            return self._runner.run_map(named)
        if not request.inputs:
            raise BadRequest("the request has neither inputs nor map_inputs")
        arrays = [(array.dtype, array.values) for array in request.inputs]
        return self._runner.run_positional(arrays, request.output_filter)

    def describe(self) -> dict[str, object]:
        # A script says neither dtype nor shape of the tensors that it takes, and
        # nothing of those in a dictionary.
        names = () if self._runner.takes_dict else self._runner.argument_names
        return {
            "inputs": [
                {"name": name, "shape": [-1], "type": "DT_INVALID"} for name in names
            ],
            "outputs": _described_outputs(self._runner),
            "takes": "map_inputs" if self._runner.takes_dict else "inputs",
        }

    def describe_model(self) -> dict[str, object]:
        # A bare model does not say which named tensors it reads.
        names = () if self._runner.takes_dict else self._runner.argument_names
        return _model(self._runner, signature({}, names))


def _model(runner: ModelRunner, inputs: Signature) -> dict[str, object]:
    return {
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": signature(runner.empty_outputs, runner.output_names),
        **facts(runner.package, shared=runner.shared),
    }


def _by_item(request: TorchRecRequest, lines: list[str]) -> dict[str, str]:
    """Lines by item id; by row number for requests without ids."""
    ids = request.item_ids.to_pylist() or [str(row) for row in range(len(lines))]
    # NOTE: item tables may hold text that is no UTF-8, which no message takes.
    texts = (line.encode("utf-8", "replace").decode() for line in lines)
    return dict(zip(ids, texts, strict=True))


def _described_outputs(runner: ModelRunner) -> list[dict[str, object]]:
    """Outputs as the warm-up saw them; none are known before."""
    described: list[dict[str, object]] = []
    for name in runner.output_names:
        sample = runner.empty_outputs.get(name)
        shape = [-1] if sample is None else [-1, *sample.shape[1:]]
        dtype = (
            "FLOAT" if sample is None else DTYPE_NAMES.get(sample.dtype.name, "FLOAT")
        )
        described.append({"name": name, "shape": shape, "type": f"DT_{dtype}"})
    return described


def _fit(name: str, column: Column, rows: int) -> Column:
    """One value broadcasts, surplus values are dropped, fewer are refused."""
    given = len(column)
    if given in (1, rows):
        return column
    if given > rows:
        return column.slice(0, rows)
    raise BadFeature(f"{name}: {given} values for {rows} items")


def _join_sequence(
    generation: Generation, join: SequenceJoin, user: dict[str, Column]
) -> None:
    """Adds ``<sequence>__<column>`` for each item column of a sequence group.

    The id column comes from the request itself, so that a clicked item that is
    in no table any more still counts by its id.
    """
    wanted = {
        column: name
        for column, name in join.inputs.items()
        if name not in user and column in generation.schema
    }
    if not wanted or join.pk_name not in user:
        return
    ids = _sequence_ids(join, user[join.pk_name])
    if join.length:
        ids = ids.slice(0, min(join.length, len(ids)))
    if generation.key in wanted:
        user[wanted.pop(generation.key)] = ids.nest()
    found = generation.lookup(ids)
    for column, values in generation.gather(found, list(wanted)).items():
        user[wanted[column]] = _nested(join, column, values)


def _sequence_ids(join: SequenceJoin, keys: Column) -> Column:
    """The item ids of a sequence: a delimited text, a list, or one number.

    :raises BadFeature: for any other type
    """
    kind = keys.kind
    if kind == Kind.STRING:
        text = keys.to_pylist()[0]
        ids = text.split(join.delim) if text else []
        return Column.from_texts(ids)
    if kind in (Kind.LIST_STRING, Kind.LIST_INT32, Kind.LIST_INT64):
        return keys.elements(0)
    if kind in (Kind.INT32, Kind.INT64):
        return keys
    if kind == Kind.ABSENT:
        return Column.from_texts([])
    raise BadFeature(
        f"user_features[{join.pk_name!r}]: item ids of sequence "
        f"{join.sequence_name!r} are text, integers or lists of these, "
        f"not {_spelled(kind)}"
    )


def _nested(join: SequenceJoin, column: str, values: Column) -> Column:
    try:
        return values.nest()
    except TypeError as error:
        # A matter of the item table's type, not of the request.
        raise SourceError(
            f"sequence {join.sequence_name!r}, item column {column!r}: {error}"
        ) from error


def _spelled(kind: Kind) -> str:
    if shape_of(kind) == Shape.SCALAR:
        return kind.name.lower()
    return kind.name.lower().replace("_", " of ", 1)
