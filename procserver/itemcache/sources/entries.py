"""Entries of a stream of changes, whatever carries it: what they say of items."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cython_ext.column import Kind, arrow_type
from procserver.itemcache.sources import Delete, StreamConfig, Upsert
from procserver.itemcache.sources.texts import to_array
from procserver.itemcache.sources.times import microseconds_in

# The field that tells what an entry does, and its words.
OPERATION = b"_op"
UPSERT, DELETE = b"upsert", b"delete"
# PERF: entries of one read.
READ_ENTRIES = 5000

Fields = Mapping[bytes, bytes | None]


@dataclass(frozen=True)
class Entries:
    """What was read: places with fields in order, and where to go on.

    ``newest``: time of the latest entry in seconds since 1970, if it is known;
    ``more``: whether there may be more at once.
    """

    entries: Sequence[tuple[bytes, Fields]]
    next: Any
    newest: float | None = None
    more: bool = False


class ChangeStream(Protocol):
    """What follows a stream; its positions are dataclasses that JSON can keep."""

    skipped: Counter[str]

    def position(self) -> Any:
        """The end of the stream now."""

    def restored(self, kept: Mapping[str, Any]) -> Any:
        """A position from its fields; TypeError if it is none of this stream."""

    def read(self, since: Any, wait: float) -> Entries:
        """Entries after ``since``, for the first of which it may wait.

        :raises CursorLost: if some of them cannot be had any more
        """

    def steps(
        self,
        entries: Sequence[tuple[bytes, Fields]],
        key: str,
        schema: dict[str, Kind],
    ) -> list[Upsert | Delete]:
        """Entries as changes of items of ``schema``; what is unreadable is counted."""

    def close(self) -> None:
        """Gives connections back."""


class EntryReader:
    """Makes changes of entries and counts those that are none.

    An entry has the item's id in the field ``id`` (by default the key column's
    name), and any of the columns as text; ``_op`` = ``delete`` deletes the item. The
    time of the event is that of ``timekey``, a number since 1970 in seconds to
    nanoseconds by its size, else the entry's own time, if it has one.
    """

    def __init__(self, config: StreamConfig, skipped: Counter[str]) -> None:
        self._skipped = skipped
        self._id_field = config.id.encode() if config.id else None
        self._time_field = config.timekey.encode() if config.timekey else None

    def steps(
        self,
        entries: Iterable[tuple[int | None, Fields]],
        key: str,
        schema: dict[str, Kind],
    ) -> list[Upsert | Delete]:
        """Own times (microseconds) and fields of entries as changes.

        One with a value that cannot be read is left out: what is known is better.
        Entries of the same columns are put together as long as none of them is about
        an item that an entry in between is about.
        """
        id_field = self._id_field or key.encode()
        groups: list[_Group] = []
        open_groups: dict[frozenset[bytes] | None, int] = {}
        latest: dict[bytes, int] = {}
        for own_time, fields in entries:
            made = self._entry(fields, id_field, schema)
            if made is None:
                continue
            id_, columns, time = made
            place = open_groups.get(columns, -1)
            if place < 0 or latest.get(id_, -1) > place:
                place = open_groups[columns] = len(groups)
                groups.append(_Group(columns))
            latest[id_] = max(place, latest.get(id_, -1))
            groups[place].add(id_, fields, own_time if time is None else time)
        return [group.step(key, schema, self._skipped) for group in groups]

    def _entry(
        self, fields: Fields, id_field: bytes, schema: dict[str, Kind]
    ) -> tuple[bytes, frozenset[bytes] | None, int | None] | None:
        """Item id, columns (None: delete) and its field's time; None: no change."""
        id_ = fields.get(id_field)
        operation = fields.get(OPERATION, UPSERT)
        time = None
        if not id_ or not _is_text(id_):
            self._skipped["bad_key"] += 1
            return None
        if operation not in (UPSERT, DELETE):
            self._skipped["bad_op"] += 1
            return None
        if self._time_field is not None:
            time = _time(fields.get(self._time_field))
            if time is None:
                self._skipped["bad_time"] += 1
                return None
        if operation == DELETE:
            return id_, None, time
        names = (name for name in fields if name != id_field)
        return id_, frozenset(n for n in names if _decoded(n) in schema), time


class _Group:
    """Entries that become one step."""

    def __init__(self, columns: frozenset[bytes] | None) -> None:
        self._columns = columns
        self._ids: list[bytes] = []
        self._fields: list[Fields] = []
        self._times: list[int | None] = []

    def add(self, id_: bytes, fields: Fields, time: int | None) -> None:
        self._ids.append(id_)
        self._fields.append(fields)
        self._times.append(time)

    def step(
        self, key: str, schema: dict[str, Kind], skipped: Counter[str]
    ) -> Upsert | Delete:
        ids = pa.array(self._ids, pa.binary()).cast(pa.string())
        # Either all entries of a stream have a time or none has.
        known = [time for time in self._times if time is not None]
        times = np.array(known, dtype=np.int64) if known else None
        if self._columns is None:
            return Delete(ids, times)
        columns = {key: ids}
        unread = np.zeros(len(ids), dtype=np.bool_)
        for name in sorted(self._columns):
            text = name.decode()
            if text == key:
                continue
            cells = [fields[name] for fields in self._fields]
            columns[text], bad = to_array(cells, arrow_type(schema[text]))
            if bad:
                # No text at all is null, and nothing bad.
                unread |= np.asarray(columns[text].is_null()) & [bool(c) for c in cells]
        batch = pa.RecordBatch.from_pydict(columns)
        if unread.any():
            skipped["bad_value"] += int(unread.sum())
            batch = batch.filter(pa.array(~unread))
            times = None if times is None else times[~unread]
        return Upsert(batch, times)


def _time(text: bytes | None) -> int | None:
    """Microseconds since 1970 of a number in any unit."""
    try:
        number = int(text or b"") if (text or b"").isdigit() else float(text or b"")
        unit = microseconds_in(number)
        return None if unit is None else round(number * unit)
    except (ValueError, OverflowError):
        return None


def _is_text(raw: bytes) -> bool:
    try:
        return bool(raw.decode())
    except UnicodeDecodeError:
        return False


def _decoded(raw: bytes) -> str:
    return raw.decode(errors="replace")
