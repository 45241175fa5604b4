"""Requests joined along their rows, and a pass's outputs split again.

Joined row after row, the ragged tensors of the contract stay right as they are.

Whether a *model* computes every row by itself cannot be read from its script. So
the first merged passes of each kind are computed apart as well and compared;
requests are answered from the passes apart until the model has proved itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from procserver.model.contract import Kind

log = logging.getLogger("procserver.model")

PROOFS = 3
# Clients of bypass services choose names and shapes as they like.
KINDS_KEPT = 64
ABSOLUTE = 1e-6
RELATIVE = 1e-5


def split(
    outputs: Mapping[str, np.ndarray], rows: Sequence[int]
) -> list[dict[str, np.ndarray]] | None:
    """Each request's rows of every output; None if an output is not by rows."""
    total = sum(rows)
    if any(array.shape[:1] != (total,) for array in outputs.values()):
        return None
    ends = np.cumsum(rows)
    return [
        {name: array[end - count : end] for name, array in outputs.items()}
        for count, end in zip(rows, ends, strict=True)
    ]


class Proofs:
    """What is known of a model: which kinds of request it computes row by row."""

    def __init__(self) -> None:
        # Merged passes that agreed, by kind; -1: one did not.
        self._agreed: dict[Kind, int] = {}
        self._said = False

    def forbid(self, kind: Kind) -> bool:
        return self._agreed.get(kind) == -1

    def suffice(self, kind: Kind) -> bool:
        return self._agreed.get(kind, 0) >= PROOFS

    def refute(self, kind: Kind, reason: str) -> None:
        """Requests of this kind are computed apart from now on."""
        self._keep(kind, -1)
        if not self._said:
            self._said = True
            log.warning("requests are not merged: %s", reason)

    def compare(
        self,
        kind: Kind,
        merged: Sequence[Mapping[str, np.ndarray]] | None,
        apart: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        """Takes note of one pass that was computed both ways.

        :param merged: None if the outputs cannot be split
        """
        if merged is None:
            self.refute(kind, "the model's outputs do not have one row for each row")
            return
        for ours, theirs in zip(merged, apart, strict=True):
            for name, array in theirs.items():
                if name not in ours or not _agree(ours[name], array):
                    self.refute(
                        kind,
                        f"output {name!r} of a request depends on what it is "
                        "merged with",
                    )
                    return
        self._keep(kind, self._agreed.get(kind, 0) + 1)

    def _keep(self, kind: Kind, agreed: int) -> None:
        self._agreed.pop(kind, None)
        while len(self._agreed) >= KINDS_KEPT:
            del self._agreed[next(iter(self._agreed))]
        self._agreed[kind] = agreed


def _agree(ours: np.ndarray, theirs: np.ndarray) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if ours.dtype.kind not in "fc":
        return bool(np.array_equal(ours, theirs))
    finite = np.isfinite(theirs)
    scale = float(np.abs(theirs[finite]).max(initial=0.0))
    return bool(
        np.allclose(
            ours, theirs, rtol=0.0, atol=ABSOLUTE + RELATIVE * scale, equal_nan=True
        )
    )
