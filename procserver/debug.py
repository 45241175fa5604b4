"""Debug levels: what a request asks for beside scores (spec/protocol.md section 3).

What is answered, logged or saved at which level is the table ``LEVELS``; who obeys
it are the pipelines. Texts of features are those of ``procserver.fg.dump``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from cython_ext.column import Column, Kind
from procserver.errors import BadFeature, BadTensor, DebugRefused
from procserver.fg import FeatureGenerator
from procserver.fg.dump import dump_columns
from procserver.model.contract import check_ragged
from procserver.observe.reqlog import line
from procserver.observe.trace import Trace
from procserver.wire.torchrec import TorchRecRequest

log = logging.getLogger("procserver.debug")

# Names of a request shown in one message.
MOST_NAMES = 10
LONGEST_NAME = 80
# Unknown keys that are remembered, of each side.
MOST_TOLD = 1000

Columns = Mapping[str, Column]
Tensors = Mapping[str, np.ndarray]
SIDES = ("user", "item", "context")


class Gathered(Protocol):
    """What one request's features are made of; see ``procserver.pipeline``."""

    @property
    def user(self) -> Columns: ...
    @property
    def item(self) -> Columns: ...
    @property
    def context(self) -> Columns: ...
    @property
    def rows(self) -> int: ...


@dataclass(frozen=True)
class Level:
    """What one level asks for; by default what level 0 does.

    ``scores``: the model is run. ``checked``: keys and shapes are validated.
    ``raw``, ``made``: columns that features are made of, and features, are in the
    answer, the latter as ``name:value`` pairs or as a row of a table. ``saved``: to
    the request log. The rest goes to the service's log: ``timed``, the time of each
    stage; ``absent``, fields that the request lacks; ``tensors``, names and shapes of
    what the model is given. ``recalls``: for services that recall.
    """

    scores: bool = True
    checked: bool = False
    raw: bool = False
    made: Literal["", "pairs", "table"] = ""
    saved: bool = False
    timed: bool = False
    absent: bool = False
    tensors: bool = False
    recalls: bool = False


PLAIN = Level()
LEVELS = {
    1: Level(scores=False, checked=True, raw=True, made="pairs"),
    2: Level(checked=True, raw=True, made="pairs", tensors=True),
    3: Level(scores=False, checked=True, made="table"),
    100: Level(saved=True),
    102: Level(checked=True, recalls=True),
    903: Level(timed=True),
    904: Level(checked=True, absent=True),
}
# Levels that look at every item column, whatever was generated ahead.
WHOLE_ITEMS = frozenset(
    number
    for number, level in LEVELS.items()
    if level.raw or level.saved or level.absent
)


def level_of(number: int, *, allowed: bool) -> Level:
    """What a request's debug level asks for; numbers without meaning count as 0.

    :raises DebugRefused: if it has one and the service answers none
    """
    level = LEVELS.get(number)
    if level is None:
        return PLAIN
    if not allowed:
        raise DebugRefused(
            f"debug level {number} is not answered here: procserver.allow_debug is off"
        )
    return level


def log_times(trace: Trace, body_bytes: int) -> None:
    """Level 903: one line of JSON, as in the slow log."""
    trace.stop()
    log.info("request times %s", line(trace, body_bytes))


def log_tensors(trace: Trace, tensors: Tensors) -> None:
    """Level 2: the model's input tensors; their values are in the answer's text."""
    shapes = {n: f"{a.dtype}{list(a.shape)}" for n, a in sorted(tensors.items())}
    log.info("input tensors %s", _entry(trace, tensors=shapes))


class Inspector:
    """Looks at requests to one Feature Generator, for debug levels.

    :param strict: refuse keys that nothing is generated from
    """

    def __init__(self, fg: FeatureGenerator, *, strict: bool = True) -> None:
        self._fg = fg
        self._strict = strict
        self._inputs = {
            "user": fg.user_inputs,
            "item": fg.item_inputs,
            "context": fg.context_inputs,
        }
        known = {
            side: {*names, *fg.spec.reserves} for side, names in self._inputs.items()
        }
        for pk in fg.sequence_pks.values():
            side, _, name = pk.partition(":")
            known.setdefault(side, set()).add(name)
        self._known = known
        # Unknown keys that the log has named already, which is done once.
        self._told: dict[str, set[str]] = {side: set() for side in SIDES}

    def check_keys(self, request: TorchRecRequest) -> None:
        """Every feature that was sent is an input of ``fg.json``.

        :raises BadFeature: naming those that are not
        """
        sent = {
            "user": request.user,
            "item": request.item,
            "context": request.context,
        }
        told = self._told
        problems = [
            f"{side}_features: {_listed(unknown)}"
            for side, columns in sent.items()
            if (unknown := sorted(columns.keys() - self._known[side] - told[side]))
        ]
        if not problems:
            return
        if self._strict:
            raise BadFeature("unknown keys in " + "; ".join(problems))
        log.info("unknown keys in %s", "; ".join(problems))
        for side, columns in sent.items():
            # SAFETY: clients choose what they send; this is rare in earnest.
            if len(told[side]) > MOST_TOLD:
                told[side].clear()
            told[side] |= columns.keys() - self._known[side]

    def check_tensors(self, tensors: Tensors, rows: int, *, tile: bool) -> None:
        """Generated tensors have a row for each item, and lengths that add up.

        :raises BadTensor: naming the tensor
        """
        check_ragged(tensors)
        expected = {1, rows} if tile else {rows}
        for name, array in tensors.items():
            base, _, part = name.rpartition(".")
            ragged = part != "lengths" and f"{base}.lengths" in tensors
            if array.ndim and not ragged and array.shape[0] not in expected:
                raise BadTensor(f"{name}: {array.shape[0]} rows for {rows} items")

    def log_absent(self, trace: Trace, gathered: Gathered) -> None:
        """Level 904: inputs of ``fg.json`` that are neither sent nor in the cache."""
        absent = {
            f"{side}_features": _absent(names, getattr(gathered, side))
            for side, names in self._inputs.items()
        }
        log.info(
            "missing fields %s",
            _entry(trace, items=trace.items, missing=trace.missing, fields=absent),
        )

    def raw(
        self, ids: Column, gathered: Gathered, sides: tuple[str, ...] = SIDES
    ) -> dict[str, str]:
        """By item id: the columns that are there and that features are made of."""
        columns: dict[str, Column] = {}
        for side in sides:
            given: Columns = getattr(gathered, side)
            for name in self._inputs[side]:
                if name in given:
                    # A user may have an age, and an item too.
                    key = f"{side}.{name}" if name in columns else name
                    columns[key] = given[name]
        return _by_item(ids, dump_columns(columns, gathered.rows), gathered.rows)

    def made(
        self, ids: Column, gathered: Gathered, tensors: Tensors, form: str
    ) -> dict[str, str]:
        """By item id: features in the form of a level; ``items``: as ``pairs``, but
        without features of the user alone."""
        if not gathered.rows:
            return {}
        dump = {
            "pairs": self._fg.dump,
            "table": self._fg.dump_table,
            "items": self._fg.dump_items,
        }[form]
        return _by_item(ids, dump(tensors), gathered.rows)


def _absent(names: Iterable[str], columns: Columns) -> list[str]:
    """Names without a column, or with one that holds no value of any type."""
    return [
        name
        for name in names
        if name not in columns or columns[name].kind == Kind.ABSENT
    ]


def _by_item(ids: Column, lines: list[str], rows: int) -> dict[str, str]:
    """Lines by item id; by row number for requests without ids.

    Of an id that is there twice, the last row is kept.
    """
    keys = ids.to_pylist() or [str(row) for row in range(rows)]
    if len(lines) == 1:
        lines = lines * rows
    # NOTE: item tables may hold text that is no UTF-8, which no message takes.
    texts = (text.encode("utf-8", "replace").decode() for text in lines)
    return dict(zip(keys, texts, strict=False))


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:LONGEST_NAME]) for name in names[:MOST_NAMES])
    more = len(names) - MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def _entry(trace: Trace, **more: object) -> str:
    """A line of JSON, whatever the request's id holds."""
    return json.dumps({"request_id": trace.request_id[:128], **more})
