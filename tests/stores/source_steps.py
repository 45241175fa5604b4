"""What sources tell, for comparisons."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from procserver.itemcache.sources import Changes, ItemSource

DEADLINE = 60.0


def rows_of(steps: Any) -> dict[Any, dict[str, Any]]:
    """The rows of upserts by their first column's id."""
    found: dict[Any, dict[str, Any]] = {}
    for step in steps:
        for row in step.batch.to_pylist():
            found[row["item_id"]] = row
    return found


def until(attempt: Callable[[], Any]) -> Any:
    """The first result of ``attempt`` that is true."""
    deadline = time.monotonic() + DEADLINE
    while not (result := attempt()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return result


def changes_of(source: ItemSource, cursor: object, wait: float = 0.0) -> Changes:
    found = source.changes(cursor, wait)
    assert found is not None
    return found
