"""Changes of items that come in a Redis Stream."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cython_ext.column import Kind, arrow_type
from procserver.itemcache.sources import (
    CursorLost,
    Delete,
    StreamConfig,
    Upsert,
    reveal,
)
from procserver.itemcache.sources.redis_link import Link
from procserver.itemcache.sources.texts import to_array
from procserver.itemcache.sources.times import microseconds_in

# The field that tells what an entry does, and its words.
OPERATION = b"_op"
UPSERT, DELETE = b"upsert", b"delete"
START = "0-0"
# PERF: entries of one read.
READ_ENTRIES = 5000
# One wait ends before the socket's timeout does.
WAIT_SECONDS = 10.0

Fields = Mapping[bytes, bytes]


@dataclass(frozen=True)
class Position:
    """A place in a stream: the last entry's id, and how many there had been.

    ``added`` is -1 where the server does not count (before Redis 7). ``first``: the
    stream was empty, so that no entry can tell whether some are missing.
    """

    id: str
    added: int
    first: bool = False


@dataclass(frozen=True)
class Entries:
    """What was read: ids with fields in order, and where to go on."""

    entries: list[tuple[bytes, Fields]]
    next: Position


class Stream:
    """Entries after a position, and whether all of them are still there.

    An entry has the item's id in the field ``id`` (by default the key column's
    name), and any of the columns as text; ``_op`` = ``delete`` deletes the item. The
    time of the event is that of ``timekey``, a number since 1970 in seconds to
    nanoseconds by its size, else the time of the entry.
    """

    def __init__(self, config: StreamConfig) -> None:
        self.skipped: Counter[str] = Counter()
        self._key = config.key or ""
        self._label = f"stream {self._key!r}"
        self._link = Link(reveal(config.url))
        self._id_field = config.id.encode() if config.id else None
        self._time_field = config.timekey.encode() if config.timekey else None

    def position(self) -> Position:
        """The end of the stream now."""
        with self._link.asking(self._label) as client:
            about, *_ = self._look(client, START, 1)
        return _position(about)

    def read(self, since: Position, wait: float) -> Entries:
        """Entries after ``since``, for the first of which it may wait.

        :raises CursorLost: if some were trimmed away, or the stream is another one
        """
        found = self._read(since)
        if found.entries or wait <= 0:
            return found
        with self._link.asking(self._label) as client:
            client.xread({self._key: found.next.id}, 1, self._milliseconds(wait))
        # NOTE: what woke us is read again, together with what tells of a gap.
        return self._read(found.next)

    def _milliseconds(self, wait: float) -> int:
        return max(int(min(wait, WAIT_SECONDS) * 1000), 1)

    def _look(self, client: Any, since: str, count: int) -> list[Any]:
        """The stream's state, entries after an id, that entry: as of one moment."""
        with client.pipeline(transaction=True) as pipe:
            pipe.xinfo_stream(self._key)
            pipe.xread({self._key: since}, count)
            pipe.xrange(self._key, since, since)
            answers = pipe.execute(raise_on_error=False)
        about, *rest = answers
        if isinstance(about, Exception):
            if "no such key" not in str(about):
                raise about
            about = None
        for answer in rest:
            if isinstance(answer, Exception):
                raise answer
        return [about, *rest]

    def _read(self, since: Position) -> Entries:
        with self._link.asking(self._label) as client:
            about, answer, own = self._look(client, since.id, READ_ENTRIES)
        self._check(since, about, own)
        entries = answer[0][1] if answer else []
        if not entries:
            return Entries([], since)
        added = since.added if since.added < 0 else since.added + len(entries)
        if about["last-generated-id"] == entries[-1][0]:
            # At the end the server's own count heals what XDEL has taken away.
            added = about.get("entries-added", -1)
        return Entries(entries, Position(entries[-1][0].decode(), added))

    def _check(self, since: Position, about: Any, own: list[Any]) -> None:
        if about is None:
            if since.id != START or since.added > 0:
                raise CursorLost(f"{self._label} is gone")
            return
        last = about["last-generated-id"].decode()
        added = about.get("entries-added", -1)
        if _order(last) < _order(since.id) or 0 <= added < since.added:
            raise CursorLost(f"{self._label} is not the one that was read before")
        first = about["first-entry"]
        if first is not None and _order(first[0].decode()) <= _order(since.id):
            return
        # All that is left came later: nothing is missing if it is all that came.
        if added >= 0 and since.added >= 0:
            missing = added - since.added - about["length"]
            if missing > 0:
                raise CursorLost(f"{self._label}: {missing} entries were trimmed away")
            if missing < 0:
                raise CursorLost(f"{self._label} was made anew")
        elif not own and not since.first and last != since.id:
            raise CursorLost(f"{self._label}: entries may have been trimmed away")

    def steps(
        self, entries: list[tuple[bytes, Fields]], key: str, schema: dict[str, Kind]
    ) -> list[Upsert | Delete]:
        """Entries as changes of items of ``schema``; what cannot be read is counted.

        Entries of the same columns are put together as long as none of them is about
        an item that an entry in between is about.
        """
        id_field = self._id_field or key.encode()
        groups: list[_Group] = []
        open_groups: dict[frozenset[bytes] | None, int] = {}
        latest: dict[bytes, int] = {}
        for entry, fields in entries:
            made = self._entry(entry, fields, id_field, schema)
            if made is None:
                continue
            id_, columns, time = made
            place = open_groups.get(columns, -1)
            if place < 0 or latest.get(id_, -1) > place:
                place = open_groups[columns] = len(groups)
                groups.append(_Group(columns))
            latest[id_] = max(place, latest.get(id_, -1))
            groups[place].add(id_, fields, time)
        return [group.step(key, schema, self.skipped) for group in groups]

    def _entry(
        self, entry: bytes, fields: Fields, id_field: bytes, schema: dict[str, Kind]
    ) -> tuple[bytes, frozenset[bytes] | None, int] | None:
        """Item id, columns (None: delete) and time; None if it is no change."""
        id_ = fields.get(id_field)
        operation = fields.get(OPERATION, UPSERT)
        time = self._time(entry, fields)
        reason = None
        if not id_ or not _is_text(id_):
            reason = "bad_key"
        elif operation not in (UPSERT, DELETE):
            reason = "bad_op"
        elif time is None:
            reason = "bad_time"
        if reason is not None or id_ is None or time is None:
            self.skipped[reason or "bad_key"] += 1
            return None
        if operation == DELETE:
            return id_, None, time
        names = (name for name in fields if name != id_field)
        return id_, frozenset(n for n in names if _decoded(n) in schema), time

    def _time(self, entry: bytes, fields: Fields) -> int | None:
        """Microseconds since 1970."""
        if self._time_field is None:
            milliseconds, _, place = entry.partition(b"-")
            # Entries of one millisecond are numbered, which keeps their order.
            return int(milliseconds) * 1000 + min(int(place), 999)
        text = fields.get(self._time_field, b"")
        try:
            number = int(text) if text.isdigit() else float(text)
            unit = microseconds_in(number)
            return None if unit is None else round(number * unit)
        except (ValueError, OverflowError):
            return None

    def close(self) -> None:
        """Gives the connections back."""
        self._link.close()


class _Group:
    """Entries that become one step."""

    def __init__(self, columns: frozenset[bytes] | None) -> None:
        self._columns = columns
        self._ids: list[bytes] = []
        self._fields: list[Fields] = []
        self._times: list[int] = []

    def add(self, id_: bytes, fields: Fields, time: int) -> None:
        self._ids.append(id_)
        self._fields.append(fields)
        self._times.append(time)

    def step(
        self, key: str, schema: dict[str, Kind], skipped: Counter[str]
    ) -> Upsert | Delete:
        ids = pa.array(self._ids, pa.binary()).cast(pa.string())
        times = np.array(self._times, dtype=np.int64)
        if self._columns is None:
            return Delete(ids, times)
        columns = {key: ids}
        for name in sorted(self._columns):
            text = name.decode()
            if text == key:
                continue
            cells = [fields[name] for fields in self._fields]
            columns[text], bad = to_array(cells, arrow_type(schema[text]))
            skipped["bad_value"] += bad
        return Upsert(pa.RecordBatch.from_pydict(columns), times)


def _position(about: Any) -> Position:
    if about is None:
        return Position(START, 0, first=True)
    return Position(
        about["last-generated-id"].decode(),
        about.get("entries-added", -1),
        first=about["length"] == 0,
    )


def _order(id_: str) -> tuple[int, int]:
    time, _, number = id_.partition("-")
    return int(time), int(number or 0)


def _is_text(raw: bytes) -> bool:
    try:
        return bool(raw.decode())
    except UnicodeDecodeError:
        return False


def _decoded(raw: bytes) -> str:
    return raw.decode(errors="replace")
