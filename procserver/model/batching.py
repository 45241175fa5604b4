"""Whose turn it is: requests of one worker in line, alone or merged.

A worker's device computes one pass at a time, in the thread of a request that
*leads*: it takes those along that wait in line and fit into its pass, computes,
hands every request its outputs and wakes the first in line. There is no thread of
its own that could die, and a lone request is computed in its own thread at once.

PERF: a request that comes just when a pass has ended leads the next one, before
the first in line is awake; with strict order 5 to 30 % of the passes went lost in
changes of threads. Nobody is overtaken who has waited for ``OVERTAKEN`` seconds.
A plain lock has no such bound: 5 threads with passes of 2 ms, and one waited 107 ms
where 10 ms were its fair share.
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
from procserver.model.contract import Kind, kind_of

Outputs = dict[str, np.ndarray]

OVERTAKEN = 0.02
_ALONE: tuple[int, Kind | None] = (0, None)


class Request:
    """One request's tensors, and what became of them.

    ``kind`` is None for tensors that are not to be merged.
    """

    __slots__ = (
        "done",
        "error",
        "from_client",
        "kind",
        "leads",
        "outputs",
        "rows",
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
        self.rows, self.kind = kind_of(tensors) if mergeable else _ALONE
        self.outputs: Outputs | None = None
        self.error: ProcserverError | None = None
        self.done = False
        self.leads = False
        self.since = 0.0
        # Held; released to wake the request's thread.
        self.turn = threading.Lock()
        self.turn.acquire()


class Turns:
    """The line of requests, and the pass that is being computed.

    :param compute: sets ``outputs`` or ``error`` of each request that it is given;
        called by one thread at a time
    :param most_requests: in one pass; 1: nothing is merged and nothing waits
    :param most_rows: in one merged pass
    :param patience: seconds that a request waits for others to join it, as long
        as there are others under way
    :param overtaken: seconds after which nobody overtakes the first in line
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Request]], None],
        *,
        most_requests: int = 1,
        most_rows: int = 5000,
        patience: float = 0.0,
        overtaken: float = OVERTAKEN,
    ) -> None:
        self._compute = compute
        self._most_requests = most_requests
        self._most_rows = most_rows
        self._patience = patience
        self._overtaken = overtaken
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
        try:
            with self._mutex:
                request.since = time.monotonic()
                if self._most_requests > 1:
                    self._note_arrival()
                    self._changed.notify()
                if self._led:
                    self._waiting.append(request)
                else:
                    self._led = request.leads = True
            while not (request.leads or request.done):
                request.turn.acquire()
                with self._mutex:
                    if not self._led and request in self._waiting:
                        self._waiting.remove(request)
                        self._led = request.leads = True
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
        taken = [request]
        try:
            taken = self._take(request)
            self._compute(taken)
        finally:
            request.leads = False
            self._pass_on(taken)

    def _take(self, leader: Request) -> list[Request]:
        """The leader and those in line that fit into its pass."""
        if leader.kind is None or self._most_requests == 1:
            return [leader]
        with self._mutex:
            deadline = leader.since + self._patience
            while self._under_way and not self._is_full(leader):
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._changed.wait(remaining):
                    break
            taken = self._fitting(leader)
            for request in taken[1:]:
                self._waiting.remove(request)
            return taken

    def _is_full(self, leader: Request) -> bool:
        fitting = self._fitting(leader)
        return (
            len(fitting) == self._most_requests
            or sum(request.rows for request in fitting) >= self._most_rows
            or any(
                request.kind == leader.kind and request not in fitting
                for request in self._waiting
            )
        )

    def _fitting(self, leader: Request) -> list[Request]:
        fitting = [leader]
        rows = leader.rows
        for request in self._waiting:
            if request.kind != leader.kind:
                continue
            rows += request.rows
            if len(fitting) == self._most_requests or rows > self._most_rows:
                break
            fitting.append(request)
        return fitting

    def _pass_on(self, computed: Sequence[Request] = ()) -> None:
        """Ends a pass: wakes the first in line, and those that were computed."""
        with self._mutex:
            self._led = False
            if self._waiting:
                first = self._waiting[0]
                if time.monotonic() - first.since >= self._overtaken:
                    self._waiting.popleft()
                    self._led = first.leads = True
                _wake(first)
            for request in computed:
                request.done = True
                _wake(request)

    def _abandon(self, request: Request) -> None:
        """Takes a request out whose thread was interrupted.

        SAFETY: a thread that goes away as the leader would stop the line, and so
        would the first in line if it was the one that has been woken.
        """
        with self._mutex:
            if request in self._waiting:
                self._waiting.remove(request)
            if request.leads:
                request.leads = self._led = False
            if not self._led and self._waiting:
                _wake(self._waiting[0])


def _wake(request: Request) -> None:
    """Call with the mutex held, after the change that the thread will look for."""
    if request.turn.locked():
        request.turn.release()


class _Coming:
    """``with``: one request under way."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        self._turns.enter()

    def __exit__(self, *failure: object) -> None:
        self._turns.leave()
