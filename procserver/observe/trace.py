"""How long one request took, by stage, and what it was about."""

from __future__ import annotations

from time import perf_counter_ns

from procserver.observe import metrics
from procserver.observe.metrics import STAGES

DECODE, GATHER, GENERATE, RUN, ENCODE = range(len(STAGES))


class Trace:
    """Filled while a request is answered; times in nanoseconds.

    ``started``: when the app took the request up; ``queued``: how long it then
    waited for its turn; ``begun``: when a pipeline had its body; ``stages``: the time
    of each of the five, 0 for one that was not reached. ``items`` were scored,
    ``missing`` of them are not in the item cache.
    """

    __slots__ = (
        "_last",
        "begun",
        "debug_level",
        "items",
        "missing",
        "queued",
        "request_id",
        "stages",
        "started",
        "took",
    )

    def __init__(self) -> None:
        self.started = self.begun = self._last = perf_counter_ns()
        self.stages = [0] * len(STAGES)
        self.took = 0
        self.queued = 0
        self.items = 0
        self.missing = 0
        self.debug_level = 0
        self.request_id = ""

    def received(self) -> None:
        """The body is there; the request waits for its turn."""
        self._last = perf_counter_ns()

    def taken_up(self) -> None:
        """It is the request's turn."""
        self.queued = perf_counter_ns() - self._last

    def begin(self) -> None:
        """The first stage begins."""
        self.begun = self._last = perf_counter_ns()

    def done(self, stage: int) -> None:
        """A stage has ended and the next one begins."""
        now = perf_counter_ns()
        self.stages[stage] += now - self._last
        self._last = now

    def stop(self) -> int:
        """The request is answered; returns the time it took."""
        self.took = perf_counter_ns() - self.started
        return self.took

    def milliseconds(self) -> dict[str, float]:
        """What logs show: whole, receiving, queue, each stage that was reached."""
        receive = max(0, self.begun - self.started - self.queued)
        times = {"total": self.took, "receive": receive, "queue": self.queued}
        times |= {n: ns for n, ns in zip(STAGES, self.stages, strict=True) if ns}
        return {name: round(ns / 1e6, 3) for name, ns in times.items()}


def record(trace: Trace, status: str) -> None:
    """Counts an answered request; ``status`` is the three digits of its code."""
    took = trace.stop()
    metrics.REQUESTS.add(1, status)
    metrics.WORKER_REQUESTS.add()
    metrics.REQUEST_SECONDS.observe_ns(took)
    # One more cell is there than stages: that of unknown ones.
    for nanoseconds, cell in zip(
        trace.stages, metrics.STAGE_SECONDS.cells, strict=False
    ):
        if nanoseconds:
            cell.observe(nanoseconds)
    if trace.items:
        metrics.ITEMS.add(trace.items)
    if trace.missing:
        metrics.MISSING_ITEMS.add(trace.missing)
