"""Changes of items that come in a Redis Stream."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cython_ext.column import Kind
from procserver.itemcache.sources import (
    CursorLost,
    Delete,
    StreamConfig,
    Upsert,
    reveal,
)
from procserver.itemcache.sources.entries import (
    READ_ENTRIES,
    Entries,
    EntryReader,
    Fields,
)
from procserver.itemcache.sources.redis_link import Link

START = "0-0"
# One wait ends before the socket's timeout does.
WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Position:
    """A place in a stream: the last entry's id, and how many there had been.

    ``added`` is -1 where the server does not count (before Redis 7). ``first``: the
    stream was empty, so that no entry can tell whether some are missing.
    """

    id: str
    added: int
    first: bool = False


class Stream:
    """Entries after a position, and whether all of them are still there.

    The time of an entry without a ``timekey`` is the one at which the server took it.
    """

    def __init__(self, config: StreamConfig) -> None:
        self.skipped: Counter[str] = Counter()
        self._key = config.key or ""
        self._label = f"stream {self._key!r}"
        self._link = Link(reveal(config.url))
        self._reader = EntryReader(config, self.skipped)

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
        last = entries[-1][0].decode()
        newest = int(last.partition("-")[0]) / 1000
        more = len(entries) >= READ_ENTRIES
        return Entries(entries, Position(last, added), newest, more)

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

    def restored(self, kept: Mapping[str, Any]) -> Position:
        """A position from its fields."""
        return Position(**kept)

    def steps(
        self,
        entries: Sequence[tuple[bytes, Fields]],
        key: str,
        schema: dict[str, Kind],
    ) -> list[Upsert | Delete]:
        """Entries as changes of items of ``schema``; what is unreadable is counted."""
        timed = ((_own_time(entry), fields) for entry, fields in entries)
        return self._reader.steps(timed, key, schema)

    def close(self) -> None:
        """Gives the connections back."""
        self._link.close()


def _own_time(entry: bytes) -> int:
    """Microseconds since 1970 at which the server took an entry."""
    milliseconds, _, place = entry.partition(b"-")
    # Entries of one millisecond are numbered, which keeps their order.
    return int(milliseconds) * 1000 + min(int(place), 999)


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
