"""Features and ids in, scores out: decode -> gather -> generate -> run -> encode.

The five words name the stages in code, logs, metrics, docs and tests. What
joins the sibling rooms is composed here: item features from the cache, the
``sequence_pk`` join, the score of items that do not exist.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from cython_ext.column import Column
from procserver.debug import (
    WHOLE_ITEMS,
    Inspector,
    Level,
    level_of,
    log_tensors,
    log_times,
)
from procserver.errors import (
    BadFeature,
    BadRequest,
    DebugRefused,
    TooLarge,
)
from procserver.fg import FeatureGenerator
from procserver.fg.pregenerated import Pregenerated
from procserver.fg.split import Part
from procserver.itemcache.reader import CacheReader, Generation
from procserver.model.rows import RowRule
from procserver.model.runner import ModelRunner
from procserver.model.signature import Signature, signature
from procserver.observe.reqlog import RequestLog
from procserver.observe.trace import DECODE, ENCODE, GATHER, GENERATE, RUN, Trace
from procserver.pipeline.answer import Reply, describe_model, describe_outputs
from procserver.pipeline.joining import join_sequence
from procserver.wire import torchrec as torchrec_wire
from procserver.wire.logdata import encode as encode_log_data
from procserver.wire.torchrec import TorchRecRequest

log = logging.getLogger("procserver.pipeline")

Columns = Mapping[str, Column]
Tensors = Mapping[str, np.ndarray]


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
    deltas: int | None = None
    unknown: int = 0
    part: Part | None = None
    ready: Mapping[str, np.ndarray] = field(default_factory=dict)


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
        allow_debug: bool = False,
        strict_debug_keys: bool = True,
        pass_through: Mapping[str, str] | None = None,
    ) -> None:
        self._fg = fg
        self._runner = runner
        self._cache = cache
        self._row_rule = RowRule(item_empty_score)
        self._max_items = max_items
        self._allow_debug = allow_debug
        self._inspector = Inspector(fg, strict=strict_debug_keys)
        self._pass_through = pass_through
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

    def keep_up(self) -> None:
        if self._cache is not None:
            self._pregenerated(self._cache.current())

    def _predict(self, body: bytes | bytearray | memoryview, trace: Trace) -> Reply:
        trace.begin()
        request = torchrec_wire.decode(body)
        trace.debug_level = request.debug_level
        trace.request_id = request.meta.get("request_id", "")
        trace.done(DECODE)
        level = level_of(request.debug_level, allowed=self._allow_debug)
        self._check(request, level)
        gathered = self.gather(request)
        trace.items, trace.missing = gathered.rows, gathered.unknown
        if level.absent:
            self._inspector.log_absent(trace, gathered)
        if level.checked:
            self._inspector.check_keys(request)
        trace.done(GATHER)
        tensors = self.generate(gathered) if gathered.rows else {}
        if level.checked:
            self._inspector.check_tensors(tensors, gathered.rows, tile=self._tile)
        trace.done(GENERATE)
        outputs: Tensors = {}
        if level.scores:
            outputs = self._score(request, gathered, tensors)
            trace.done(RUN)
        answer = self._encode(request, level, gathered, tensors, outputs)
        trace.done(ENCODE)
        if level.tensors:
            log_tensors(trace, tensors)
        if level.saved:
            self.save(request, body, gathered, tensors)
        if level.timed:
            log_times(trace, len(body))
        return Reply(
            answer,
            gathered.generation,
            gathered.rows,
            request.debug_level,
            gathered.deltas,
        )

    def _check(self, request: TorchRecRequest, level: Level) -> None:
        """What is refused before any work is done for it."""
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
        if level.recalls:
            raise DebugRefused(
                f"debug level {request.debug_level} asks for recall, which this "
                "service does not do: it scores the items of a request"
            )

    def _encode(
        self,
        request: TorchRecRequest,
        level: Level,
        gathered: ItemRows,
        tensors: Tensors,
        outputs: Tensors,
    ) -> bytes:
        raw, made = None, None
        if level.raw:
            raw = self._inspector.raw(request.item_ids, gathered)
        if level.made:
            made = self._inspector.made(request.item_ids, gathered, tensors, level.made)
        return torchrec_wire.encode(
            outputs,
            request.item_ids,
            generate_features=made,
            raw_features=raw,
            pass_through=self._pass_through,
        )

    def save(
        self,
        request: TorchRecRequest,
        body: bytes | bytearray | memoryview,
        gathered: ItemRows,
        tensors: Tensors,
    ) -> None:
        """Puts the request and its item-side features into the request log.

        The text is made by the log's own threads; there may be no log.
        """
        if self.request_log is None:
            return
        copy = bytes(body)
        size = len(copy) + sum(tensor.nbytes for tensor in tensors.values())
        ids, inspector = request.item_ids, self._inspector
        self.request_log.offer(
            request.meta.get("request_id", ""),
            size,
            lambda: encode_log_data(
                copy,
                inspector.raw(ids, gathered, ("item", "context")),
                inspector.made(ids, gathered, tensors, "items"),
            ),
        )

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
                join_sequence(generation, join, user)
            if len(request.item_ids):
                found = generation.lookup(request.item_ids)
                part, ready = self._take_ready(generation, found, request.item)
                inputs = self._item_inputs
                if part is not None and request.debug_level not in WHOLE_ITEMS:
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
            deltas=None if generation is None else generation.count,
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
        if not generation.companion.covers(found):
            # Some of these items have changed since, and no features came with it.
            return None, {}
        served = features.served(given.keys())
        columns = generation.companion.gather(found, served.columns)
        return served.part, served.tensors(found, columns)

    def _pregenerated(self, generation: Generation) -> Pregenerated | None:
        """The features that came with a generation; looked at once for each."""
        split = self._split
        if split is None or split[0].number != generation.number:
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

    def _score(
        self, request: TorchRecRequest, gathered: ItemRows, tensors: Tensors
    ) -> dict[str, np.ndarray]:
        if gathered.rows == 0:
            return dict(self._runner.empty_outputs)
        outputs = self._runner.run(tensors)
        if not self._runner.output_names:
            self._runner.learn_outputs(outputs, gathered.rows)
        if len(request.item_ids):
            outputs = self._row_rule.by_item(outputs, gathered.rows)
        if gathered.missing is not None:
            outputs = self._row_rule.with_empty_scores(outputs, gathered.missing)
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
            "outputs": describe_outputs(self._runner),
            **sides,
        }

    def describe_model(self) -> dict[str, object]:
        return describe_model(self._runner, self._model_inputs)

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


def _fit(name: str, column: Column, rows: int) -> Column:
    """One value broadcasts, surplus values are dropped, fewer are refused."""
    given = len(column)
    if given in (1, rows):
        return column
    if given > rows:
        return column.slice(0, rows)
    raise BadFeature(f"{name}: {given} values for {rows} items")
