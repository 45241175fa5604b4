"""What clients saw, and whether it may be so.

A *history* is every operation of a run: who asked what when, and what came of it.
:func:`violations` checks one against what a service promises; it knows nothing of
how the service works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

OK = 200


@dataclass(frozen=True)
class Operation:
    """One request and its answer. Times are of the monotonic clock, in seconds.

    ``due``: when an open loop wanted to send it, else ``began``. ``status`` is 0
    where no answer came, and ``error`` says why. ``rows`` holds what the model
    returned of each item's build number; ``marks`` which model says it is. Both are
    empty if the model returns no such thing. ``delta``: changes of the generation.
    """

    connection: int
    began: float
    ended: float
    status: int
    version: str = ""
    generation: int = 0
    rows: frozenset[float] = frozenset()
    marks: frozenset[float] = frozenset()
    due: float = 0.0
    error: str = ""
    delta: int = 0

    @property
    def state(self) -> tuple[int, int]:
        """Of the item cache."""
        return self.generation, self.delta

    @property
    def seconds(self) -> float:
        """What the client waited for, the time until it could send included."""
        return self.ended - (self.due or self.began)

    @property
    def answered(self) -> bool:
        return self.status == OK


@dataclass(frozen=True)
class Promise:
    """What a run may show.

    :param order: model versions in the order in which they were published; empty:
        any version may be seen, in any order
    :param switches: (time, version): from then on requests see that version or a
        later one
    :param refreshes: (time, generation), the same for the item cache
    :param may_fail: whether an operation that was not answered may be so
    :param most_failed: how many of those there may be; None: any number
    :param entries: rows are no builds but the last so many entries of a log, which
        are numbers one after the other; 0: they are builds
    """

    order: Sequence[str] = ()
    switches: Sequence[tuple[float, str]] = ()
    refreshes: Sequence[tuple[float, int]] = ()
    may_fail: Callable[[Operation], bool] = field(default=lambda operation: False)
    most_failed: int | None = None
    entries: int = 0


def violations(history: Iterable[Operation], promise: Promise) -> list[str]:
    """Everything that breaks the promise, one line each."""
    operations = sorted(history, key=lambda one: one.began)
    answered = [one for one in operations if one.answered]
    return [
        *_lost(operations, promise),
        *_unknown(answered, promise),
        *_backwards(answered, promise),
        *_late(answered, promise),
        *_torn(answered, promise.entries),
        *_two_faced(answered),
        *(_logs_go_back(answered) if promise.entries else []),
    ]


def check(history: Iterable[Operation], promise: Promise) -> None:
    """Fails with the first twenty violations; an empty history is one too."""
    operations = list(history)
    assert operations, "nothing was asked"
    found = violations(operations, promise)
    assert not found, f"{len(found)} violations:\n" + "\n".join(found[:20])


def _lost(operations: Sequence[Operation], promise: Promise) -> list[str]:
    failed = [one for one in operations if not one.answered]
    found = [f"lost: {one}" for one in failed if not promise.may_fail(one)]
    if promise.most_failed is not None and len(failed) > promise.most_failed:
        found.append(f"{len(failed)} requests failed, {promise.most_failed} may")
    return found


def _unknown(answered: Sequence[Operation], promise: Promise) -> list[str]:
    if not promise.order:
        return []
    return [
        f"never published: {one}"
        for one in answered
        if one.version not in promise.order
    ]


def _ranks(promise: Promise) -> dict[str, int]:
    return {version: rank for rank, version in enumerate(promise.order)}


def _backwards(answered: Sequence[Operation], promise: Promise) -> list[str]:
    """On one connection neither the version nor the generation goes back."""
    ranks, found = _ranks(promise), []
    last: dict[int, Operation] = {}
    for one in answered:
        before = last.get(one.connection)
        if before is not None:
            if ranks.get(one.version, 0) < ranks.get(before.version, 0):
                found.append(f"version went back: {one} after {before}")
            if one.state < before.state:
                found.append(f"generation went back: {one} after {before}")
            if one.began < before.ended:
                found.append(f"two requests at once on a connection: {one}, {before}")
        last[one.connection] = one
    return found


def _late(answered: Sequence[Operation], promise: Promise) -> list[str]:
    """What began after a switch sees it."""
    ranks, found = _ranks(promise), []
    for at, version in promise.switches:
        found += [
            f"older than version {version}: {one}"
            for one in answered
            if one.began > at and ranks.get(one.version, -1) < ranks[version]
        ]
    for at, generation in promise.refreshes:
        found += [
            f"older than generation {generation}: {one}"
            for one in answered
            if one.began > at and one.generation < generation
        ]
    return found


def _torn(answered: Sequence[Operation], entries: int) -> list[str]:
    """All rows of an answer come from one build, and from one model."""
    return [
        f"torn: {one}"
        for one in answered
        if len(one.marks) > 1
        or (len(one.rows) > 1 if not entries else not _follow(one.rows, entries))
    ]


def _follow(rows: frozenset[float], entries: int) -> bool:
    """Whether these are entries of a log, one after the other."""
    return len(rows) == entries and max(rows) - min(rows) == entries - 1


def _last(one: Operation) -> float:
    """The newest entry that an answer has seen."""
    return max(one.rows, default=0.0)


def _logs_go_back(answered: Sequence[Operation]) -> list[str]:
    """What began after an answer was there sees all the entries that it saw."""
    found: list[str] = []
    waiting = sorted(answered, key=lambda one: one.ended)
    newest, ended = None, 0
    for one in answered:
        while waiting[ended].ended < one.began:
            if newest is None or _last(waiting[ended]) > _last(newest):
                newest = waiting[ended]
            ended += 1
        if newest is not None and _last(one) < _last(newest):
            found.append(f"entries went back: {one} after {newest}")
    return found


def _two_faced(answered: Sequence[Operation]) -> list[str]:
    """A state of the cache has one content, a version one model."""
    found = []
    builds: dict[tuple[int, int], frozenset[float]] = {}
    models: dict[str, frozenset[float]] = {}
    for one in answered:
        if one.rows and builds.setdefault(one.state, one.rows) != one.rows:
            found.append(f"generation {one.generation} with two contents: {one}")
        if one.marks and models.setdefault(one.version, one.marks) != one.marks:
            found.append(f"version {one.version} with two models: {one}")
    return found


def percentile(seconds: Iterable[float], share: float) -> float:
    """The smallest value that ``share`` of all values do not exceed; 0 of none."""
    ordered = sorted(seconds)
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
