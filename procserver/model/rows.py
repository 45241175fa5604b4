"""Outputs of a ranking request: a row for each item, also for items that are not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from procserver.errors import PredictFailed

log = logging.getLogger("procserver.model")

Outputs = dict[str, np.ndarray]


class RowRule:
    """What clients that read outputs by position rely on (spec/protocol.md 0 and 7).

    :param empty_score: every output of an item that does not exist
    """

    def __init__(self, empty_score: float) -> None:
        self._empty_score = empty_score
        self._warned: set[str] = set()

    def by_item(self, outputs: Outputs, rows: int) -> Outputs:
        """Float outputs with a row for each item; others are left out.

        NOTE: engines read the i-th value of every float output for the i-th item, and
        end with a panic where there is none. What the model gives once for the whole
        request is repeated; what has another number of rows belongs to no item.

        :raises PredictFailed: if no output is left
        """
        if all(_is_fit(array, rows) for array in outputs.values()):
            return outputs
        kept = {}
        for name, array in outputs.items():
            if _is_fit(array, rows):
                kept[name] = array
            elif array.shape[:1] in ((), (1,)):
                one = array.reshape(1, *array.shape[1:])
                kept[name] = np.repeat(one, rows, axis=0)
            elif name not in self._warned:
                self._warned.add(name)
                log.warning(
                    "output %r has shape %s for %d items: it is left out of answers",
                    name,
                    list(array.shape),
                    rows,
                )
        if not kept:
            raise PredictFailed("the model returns no output with a row for each item")
        return kept

    def with_empty_scores(
        self, outputs: Mapping[str, np.ndarray], missing: np.ndarray
    ) -> Outputs:
        """Puts the empty score into the rows ``missing`` (one boolean each).

        Integer outputs take it if it is one of their numbers.
        """
        scored = {}
        for name, array in outputs.items():
            if array.shape[:1] == missing.shape and self._is_of(array.dtype):
                array = array.copy()
                array[missing] = self._empty_score
            scored[name] = array
        return scored

    def _is_of(self, dtype: np.dtype[Any]) -> bool:
        if dtype.kind not in "iu":
            return dtype.kind == "f"
        limits, score = np.iinfo(dtype), self._empty_score
        return score.is_integer() and limits.min <= score <= limits.max


def _is_fit(array: np.ndarray, rows: int) -> bool:
    return array.dtype.kind != "f" or array.shape[:1] == (rows,)
