"""What the refresher reports: as messages, in metrics, in the log."""

from __future__ import annotations

import logging
import re
import time
from datetime import UTC, datetime
from typing import Any

from procserver.errors import Refused

# NOTE: this one does not import pyarrow, which must not be in the master.
from procserver.itemcache.reports import (
    COMPACTION,
    EMPTY,
    FULL,
    AttachReport,
    BuildBegan,
    BuildReport,
    ChangesReport,
    CompanionReport,
    FailureReport,
    Report,
)
from procserver.lifecycle.reports import Message
from procserver.observe import metrics

log = logging.getLogger("procserver.lifecycle")

EVENTS: dict[type[Report], str] = {
    BuildBegan: "began",
    BuildReport: "published",
    AttachReport: "attached",
    CompanionReport: "prepared",
    ChangesReport: "changed",
    FailureReport: "failed",
}


def message_of(report: Report) -> dict[str, Any]:
    """A report as it goes to the master. Called by the refresher."""
    told: dict[str, Any] = {"event": EVENTS[type(report)], **vars(report)}
    if isinstance(report, FailureReport):
        error = told.pop("error")
        told["reason"] = without_credentials(str(error))
        told["refused"] = isinstance(error, Refused)
    return told


def without_credentials(text: str) -> str:
    """A driver's error text may quote the URL that it was given."""
    return re.sub(r"(?<=://)[^/\s]*@", "***@", text)


class News:
    """The master's ear: counts and logs what a refresher tells."""

    def __init__(self) -> None:
        self._builds = 0
        self._generation = 0
        self._is_building = False
        # Of the generation and its companion, without the delta.
        self._bytes = 0

    def adopted(self, generation: int, items: int, size: int) -> None:
        """What a dead service left is served, as far as its headers tell."""
        metrics.CACHE_GENERATION.set(generation)
        self._generation, self._bytes = generation, size
        self._measure(items, 0, 0)

    def note(self, message: Message) -> bool:
        """Takes in a message; returns whether something is published since."""
        event = message["event"]
        if event == "began":
            self._builds += 1
            self._is_building = True
            metrics.CACHE_BUILD_STARTS.add()
        elif event == "published":
            self._published(message)
            return True
        elif event == "attached":
            self._attached(message)
            return True
        elif event == "changed":
            self._changed(message)
        else:
            self._failed(message)
        return False

    def died(self) -> None:
        """The refresher is gone, and what it was building with it."""
        metrics.REFRESH_FAILURES.add(1, "died")
        _tell_failure("died", "the refresher died")
        if self._is_building:
            self._ended("failed")

    def _published(self, message: Message) -> None:
        kind, self._generation = message["kind"], message["generation"]
        metrics.CACHE_GENERATION.set(message["generation"])
        self._bytes = message["bytes"] + message["companion_bytes"]
        self._measure(message["rows"], message["delta_rows"], message["delta_bytes"])
        if kind == EMPTY:
            log.warning(
                "item cache generation %d has no items: the source cannot be read",
                message["generation"],
            )
            return
        if kind == FULL:
            metrics.CACHE_AGE.mark()
            metrics.CACHE_BUILD_SECONDS.set(message["seconds"])
            _count_skipped(message["skipped"])
            self._ended("published")
        else:
            metrics.CACHE_COMPACTIONS.add(1, "published")
        log.info(
            "item cache generation %d: %d items, %.1f MB, %s in %.2f s%s%s",
            message["generation"],
            message["rows"],
            message["bytes"] / 1e6,
            "built" if kind == FULL else "folded",
            message["seconds"],
            f", {message['replayed']} changes meanwhile" * bool(message["replayed"]),
            "".join(f", {n} {why}" for why, n in message["skipped"].items()),
        )
        log_companion(message)

    def _attached(self, message: Message) -> None:
        self._generation = message["generation"]
        self._measure(message["rows"], message["delta_rows"], message["delta_bytes"])
        log.info(
            "item cache generation %d: %d items and %d changes taken over, %s",
            message["generation"],
            message["rows"],
            message["delta_rows"],
            "goes on from there" if message["continues"] else "all is loaded again",
        )

    def _failed(self, message: Message) -> None:
        kind, reason, pause = message["kind"], message["reason"], message["pause"]
        metrics.REFRESH_FAILURES.add(1, kind)
        _tell_failure(kind, reason)
        again = f"; again in {pause:.0f} s" if pause else ""
        if kind == FULL:
            outcome = "refused" if message["refused"] else "failed"
            self._ended(outcome)
            log.error("item cache build %s: %s%s", outcome, reason, again)
        elif kind == COMPACTION:
            metrics.CACHE_COMPACTIONS.add(1, "failed")
            log.error("item cache: changes cannot be folded: %s%s", reason, again)
        else:
            log.error("item cache: %s: %s%s", kind, reason, again)

    def _changed(self, message: Message) -> None:
        for outcome in ("upserted", "deleted", "stale", "expired"):
            metrics.CACHE_CHANGES.add(message[outcome], outcome)
        _count_skipped(message["skipped"])
        self._measure(message["rows"], message["delta_rows"], message["delta_bytes"])
        if message["current"]:
            metrics.CACHE_AGE.mark()
        if message["newest"] is not None:
            metrics.CACHE_LAG.mark(ago=max(0.0, time.time() - message["newest"]))

    def _measure(self, items: int | None, delta_rows: int, delta_bytes: int) -> None:
        if items is not None:
            metrics.CACHE_ROWS.set(items)
        metrics.CACHE_BYTES.set(self._bytes + delta_bytes)
        metrics.CACHE_DELTA_ROWS.set(delta_rows)
        metrics.CACHE_DELTA_BYTES.set(delta_bytes)

    def _ended(self, outcome: str) -> None:
        """A build from the source has."""
        self._is_building = False
        at = _now()
        # Who waits for the outcome looks at the count first.
        metrics.LAST_REFRESH.set(str(self._builds), outcome, str(self._generation), at)
        metrics.CACHE_BUILDS.add(1, outcome)


def log_companion(message: Message) -> None:
    """About what was generated ahead, or why nothing was."""
    if message["companion_problem"]:
        log.warning(
            "item cache generation %d: no features are generated ahead: %s",
            message["generation"],
            message["companion_problem"],
        )
    elif message["pregenerated"]:
        log.info(
            "item cache generation %d: %d features generated ahead, %.1f MB in %.2f s",
            message["generation"],
            message["pregenerated"],
            message["companion_bytes"] / 1e6,
            message["companion_seconds"],
        )


def _count_skipped(skipped: dict[str, int]) -> None:
    for reason, count in skipped.items():
        metrics.CACHE_SKIPPED.add(count, reason)


def _tell_failure(kind: str, reason: str) -> None:
    metrics.LAST_REFRESH_FAILURE_REASON.set(reason)
    metrics.LAST_REFRESH_FAILURE.set(kind, _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
