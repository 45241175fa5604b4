"""Whose turn it is: requests of one worker in line, alone or merged.

A worker's device computes one pass at a time. Requests stand in a line in the
order of their arrival; the first one's thread *leads*: it takes those behind it
along that fit into the same pass, computes, hands every request its outputs and
wakes the next leader. There is no thread of its own that could die, and a lone
request is computed in its own thread at once.

NOTE: a plain lock serves in no order: with 5 threads and passes of 2 ms one waited
107 ms where 10 ms is the fair share.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from procserver.errors import PredictFailed, ProcserverError
from procserver.model.contract import rows_of
from procserver.model.merging import Signature, signature_of

Outputs = dict[str, np.ndarray]


class Request:
    """One request's tensors, and what became of them.

    ``signature`` is None for tensors that are not to be merged.
    """

    __slots__ = (
        "error",
        "from_client",
        "leads",
        "outputs",
        "rows",
        "signature",
        "since",
        "tensors",
        "turn",
    )

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        *,
        from_client: bool = False,
        mergeable: bool = False,
    ) -> None:
        self.tensors = tensors
        self.from_client = from_client
        self.rows = rows_of(tensors) if mergeable else 0
        self.signature: Signature | None = signature_of(tensors) if self.rows else None
        self.outputs: Outputs | None = None
        self.error: ProcserverError | None = None
        self.leads = False
        self.since = 0.0
        self.turn = threading.Lock()


class Turns:
    """Requests in the order of their arrival, and the pass that is being computed.

    :param compute: sets ``outputs`` or ``error`` of each request that it is given;
        called by one thread at a time
    :param most_requests: in one pass; 1: nothing is merged and nothing waits
    :param most_rows: in one merged pass
    :param patience: seconds that a request waits for others to join it, as long
        as there are others under way
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Request]], None],
        *,
        most_requests: int = 1,
        most_rows: int = 5000,
        patience: float = 0.0,
    ) -> None:
        self._compute = compute
        self._most_requests = most_requests
        self._most_rows = most_rows
        self._patience = patience
        self._mutex = threading.Lock()
        # Told to the leader: the line or the number of those under way changed.
        self._changed = threading.Condition(self._mutex)
        self._waiting: deque[Request] = deque()
        self._led = False
        self._under_way = 0
        self._mine = threading.local()
        self._coming: AbstractContextManager[object] = (
            nullcontext() if most_requests == 1 else _Coming(self)
        )

    def coming(self) -> AbstractContextManager[object]:
        """Around a request from its decoding on: others may wait for it."""
        return self._coming

    def enter(self) -> None:
        """This thread's request is under way."""
        with self._mutex:
            self._mine.under_way = True
            self._under_way += 1

    def leave(self) -> None:
        """It has got in line, or it never will."""
        with self._mutex:
            self._note_arrival()

    def _note_arrival(self) -> None:
        if getattr(self._mine, "under_way", False):
            self._mine.under_way = False
            self._under_way -= 1
            self._changed.notify()

    def run(self, request: Request) -> Outputs:
        """Has ``request`` computed and returns its outputs.

        :raises ProcserverError: the one that became of it
        """
        request.turn.acquire()
        try:
            with self._mutex:
                request.since = time.monotonic()
                self._waiting.append(request)
                if self._most_requests > 1:
                    self._note_arrival()
                    self._changed.notify()
                request.leads = not self._led
                self._led = True
            if not request.leads:
                request.turn.acquire()
            if request.leads:
                self._lead(request)
        except BaseException:
            self._abandon(request)
            raise
        if request.error is not None:
            raise request.error
        if request.outputs is None:
            raise PredictFailed("the pass that this request was part of broke off")
        return request.outputs

    def _lead(self, request: Request) -> None:
        taken: list[Request] = []
        try:
            taken = self._take(request)
            self._compute(taken)
        finally:
            request.leads = False
            self._pass_on()
            for other in taken:
                if other is not request:
                    other.turn.release()

    def _take(self, leader: Request) -> list[Request]:
        """The leader and those behind it that fit into its pass."""
        with self._mutex:
            if self._patience and leader.signature is not None:
                deadline = leader.since + self._patience
                while self._under_way and not self._is_full(leader):
                    remaining = deadline - time.monotonic()
                    if remaining <= 0 or not self._changed.wait(remaining):
                        break
            taken = self._fitting(leader)
            for request in taken:
                self._waiting.remove(request)
            return taken

    def _is_full(self, leader: Request) -> bool:
        fitting = self._fitting(leader)
        return (
            len(fitting) == self._most_requests
            or sum(request.rows for request in fitting) >= self._most_rows
            or any(
                request.signature == leader.signature and request not in fitting
                for request in self._waiting
            )
        )

    def _fitting(self, leader: Request) -> list[Request]:
        fitting = [leader]
        if leader.signature is None or self._most_requests == 1:
            return fitting
        rows = leader.rows
        for request in self._waiting:
            if request is leader or request.signature != leader.signature:
                continue
            rows += request.rows
            if len(fitting) == self._most_requests or rows > self._most_rows:
                break
            fitting.append(request)
        return fitting

    def _pass_on(self) -> None:
        """Makes the first in line the leader."""
        with self._mutex:
            self._led = bool(self._waiting)
            if self._led:
                following = self._waiting[0]
                following.leads = True
                following.turn.release()

    def _abandon(self, request: Request) -> None:
        """Takes a request out whose thread was interrupted.

        SAFETY: a thread that goes away as the leader would stop the line.
        """
        with self._mutex:
            if request in self._waiting:
                self._waiting.remove(request)
            leads, request.leads = request.leads, False
        if leads:
            self._pass_on()


class _Coming:
    """``with``: one request under way."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        self._turns.enter()

    def __exit__(self, *failure: object) -> None:
        self._turns.leave()
