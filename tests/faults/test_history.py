"""The checker finds what it is for: histories that must not be."""

from __future__ import annotations

import dataclasses

import pytest
from history import Operation, Promise, check, percentile, violations

ORDER = ["1", "2", "3"]


def one(
    connection: int,
    began: float,
    version: str = "1",
    generation: int = 1,
    **more: object,
) -> Operation:
    return dataclasses.replace(
        Operation(connection, began, began + 0.5, 200, version, generation),
        **more,  # type: ignore[arg-type]
    )


def rows(*builds: float) -> dict[str, object]:
    return {"rows": frozenset(builds)}


GOOD = [
    one(1, 1.0, "1", 1, rows=frozenset({7.0}), marks=frozenset({1.0})),
    one(2, 1.2, "1", 1, rows=frozenset({7.0}), marks=frozenset({1.0})),
    one(1, 2.0, "2", 1, rows=frozenset({7.0}), marks=frozenset({2.0})),
    # Another connection may still see the old version.
    one(2, 2.1, "1", 2, rows=frozenset({8.0}), marks=frozenset({1.0})),
    one(2, 3.0, "2", 2, rows=frozenset({8.0}), marks=frozenset({2.0})),
    one(1, 3.1, "3", 3),
]


def test_a_good_history_breaks_nothing() -> None:
    promise = Promise(ORDER, switches=[(2.5, "2")], refreshes=[(2.5, 2)])
    assert violations(GOOD, promise) == []
    check(GOOD, promise)


LOG = [
    one(1, 1.0, delta=3, **rows(4.0, 5.0, 6.0)),
    one(2, 1.2, delta=4, **rows(6.0, 7.0, 5.0)),
    # It began before the newer one had ended.
    one(3, 1.6, delta=3, **rows(4.0, 5.0, 6.0)),
    one(1, 2.0, generation=2, **rows(6.0, 7.0, 5.0)),
]


def test_a_log_that_is_followed() -> None:
    assert violations(LOG, Promise(ORDER, entries=3)) == []


BAD = {
    "generation went back: ": (
        [one(1, 1, delta=3), one(1, 2, delta=2)],
        Promise(ORDER),
    ),
    "entries went back": (
        [*LOG, one(4, 2.6, generation=2, delta=1, **rows(4.0, 5.0, 6.0))],
        Promise(ORDER, entries=3),
    ),
    "torn: ": (
        [*LOG, one(4, 2.6, generation=3, **rows(6.0, 7.0, 9.0))],
        Promise(ORDER, entries=3),
    ),
    "version went back": ([one(1, 1, "2"), one(1, 2, "1")], Promise(ORDER)),
    "generation went back": (
        [one(1, 1, "1", 2), one(1, 2, "2", 1)],
        Promise(ORDER),
    ),
    "never published": ([one(1, 1, "4")], Promise(ORDER)),
    "older than version 2": (
        [one(1, 1, "1"), one(2, 2.1, "1")],
        Promise(ORDER, switches=[(2.0, "2")]),
    ),
    "older than generation 2": (
        [one(1, 2.1, "1", 1)],
        Promise(ORDER, refreshes=[(2.0, 2)]),
    ),
    "torn": ([one(1, 1, **rows(7.0, 8.0))], Promise(ORDER)),
    "generation 1 with two contents": (
        [one(1, 1, **rows(7.0)), one(2, 1, **rows(8.0))],
        Promise(ORDER),
    ),
    "version 1 with two models": (
        [one(1, 1, marks=frozenset({1.0})), one(2, 1, marks=frozenset({2.0}))],
        Promise(ORDER),
    ),
    "lost": ([one(1, 1, status=0, error="reset")], Promise(ORDER)),
    "two requests at once": ([one(1, 1), one(1, 1.2)], Promise(ORDER)),
    "2 requests failed, 1 may": (
        [one(1, 1, status=503), one(2, 1, status=450)],
        Promise(ORDER, may_fail=lambda one: True, most_failed=1),
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_history_is_found(what: str) -> None:
    history, promise = BAD[what]
    found = violations(history, promise)
    assert len(found) == 1, found
    assert found[0].startswith(what)
    with pytest.raises(AssertionError, match=what):
        check(history, promise)


def test_one_bad_answer_among_many_is_found() -> None:
    history = [one(1, float(at), "3") for at in range(5000)]
    history[3333] = dataclasses.replace(history[3333], version="2")
    # It went back, and what came next did not.
    assert len(violations(history, Promise(ORDER))) == 1


def test_allowed_failures_are_allowed() -> None:
    history = [one(1, 1, status=0), one(1, 2, status=503)]
    promise = Promise(ORDER, may_fail=lambda one: one.status == 503)
    assert len(violations(history, promise)) == 1


def test_nothing_asked_is_no_good_history() -> None:
    with pytest.raises(AssertionError, match="nothing was asked"):
        check([], Promise())


def test_what_an_open_loop_waits_for_counts() -> None:
    assert Operation(1, 5.0, 5.5, 200, due=4.0).seconds == 1.5
    assert Operation(1, 5.0, 5.5, 200).seconds == 0.5


def test_percentiles() -> None:
    assert percentile([], 0.99) == 0
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile(range(100), 0.99) == 99
