"""A source of all items with a stream of their changes beside it."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from procserver.errors import SourceError
from procserver.itemcache.sources import (
    Changes,
    CursorLost,
    Delete,
    Description,
    ItemSource,
    Upsert,
)
from procserver.itemcache.sources.entries import ChangeStream

log = logging.getLogger("procserver.itemcache")

# How long to wait for the stream before a base that waits for messages is asked.
SLICE_SECONDS = 0.1
# After how long a base that could not be asked is asked again at the latest.
AGAIN_SECONDS = 5.0


class CombinedSource:
    """Items of ``base``; changes of ``stream``, and of the base where it has some.

    The cursor is that of the base and the place in the stream, which is taken before
    the base is read: an entry that is in both does no harm. Columns that the stream
    has and the base has not are left out. While the base cannot be read the stream
    is followed nevertheless.

    :param every: seconds between two looks for changes of a base that does not wait
        for messages; None: it changes with full loads only
    """

    def __init__(
        self, base: ItemSource, stream: ChangeStream, every: float | None
    ) -> None:
        self._base = base
        self._stream = stream
        self._every = math.inf if every is None else every
        self._about: Description | None = None
        self._again = 0.0
        self._is_failing = False
        self._due = math.inf if every is None else 0.0

    @property
    def skipped(self) -> Mapping[str, int]:
        """Rows that the base left out, and entries that the stream did."""
        return Counter(self._base.skipped) + self._stream.skipped

    def describe(self) -> Description:
        """What the base holds; there may be changes at any time."""
        about = self._about = self._base.describe()
        return Description(
            about.key, about.schema, about.rows, follows=True, exact=about.exact
        )

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        """Everything of the base, and the place in the stream before that."""
        self._stream.skipped.clear()
        position = self._stream.position()
        cursor, batches = self._base.snapshot()
        return _joined(cursor, position), batches

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        """What came in the stream, and now and then what the base tells."""
        base, position = self._parted(cursor)
        whole = True
        about = self._about or self.describe()
        key, schema = about.key, about.schema
        until = time.monotonic() + wait
        while True:
            rest = max(until - time.monotonic(), 0.0)
            pause = min(rest, SLICE_SECONDS) if about.follows else rest
            found = self._stream.read(position, pause)
            position = found.next
            told = self._ask_base(base, about.follows)
            base = told.next_cursor
            whole = told.whole and not self._is_failing
            steps: list[Upsert | Delete] = [
                *told.steps,
                *self._stream.steps(found.entries, key, schema),
            ]
            if steps or found.entries or time.monotonic() >= until:
                break
        newest = told.newest
        if found.newest is not None:
            newest = max(newest or 0.0, found.newest)
        return Changes(steps, _joined(base, position), newest, found.more, whole)

    def _parted(self, cursor: object) -> tuple[object, Any]:
        try:
            assert isinstance(cursor, dict)
            return cursor["base"], self._stream.restored(cursor["stream"])
        except (AssertionError, KeyError, TypeError) as error:
            raise CursorLost("a cursor of another source") from error

    def _ask_base(self, cursor: object, follows: bool) -> Changes:
        nothing = Changes([], cursor)
        # NOTE: one that waits for messages says itself when it is due, but if it has
        # just failed it would fail again at each of our slices.
        if time.monotonic() < (self._again if follows else self._due):
            return nothing
        try:
            told = self._base.changes(cursor)
        except CursorLost:
            raise
        except SourceError as error:
            log.warning("item source: only the stream is followed: %s", error)
            self._is_failing = True
            self._again = time.monotonic() + AGAIN_SECONDS
            self._due = time.monotonic() + min(self._every, AGAIN_SECONDS)
            return nothing
        self._is_failing = False
        self._due = time.monotonic() + self._every
        return nothing if told is None else told

    def close(self) -> None:
        """Closes both."""
        self._base.close()
        self._stream.close()


def _joined(base: object, position: Any) -> object:
    """The cursor, as JSON can keep it if it can keep the base's."""
    return {"base": base, "stream": vars(position)}
