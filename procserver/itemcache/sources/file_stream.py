"""Changes of items that are appended to a file, one JSON object a line."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from cython_ext.column import Kind
from cython_ext.xxh64 import xxh64
from procserver.errors import SourceError
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

SCHEME = "file://"
# Between two looks at a file that does not grow.
POLL_SECONDS = 0.05
# PERF: bytes of one read; a longer line takes more.
READ_BYTES = 4 << 20
# So many bytes before a position tell whether the file is still the same.
TAIL_BYTES = 64


@dataclass(frozen=True)
class Position:
    """A place in a file: its inode (0: there was none), the byte after a line.

    ``tail``: hash of the bytes before it, which a file that was written anew in its
    place does not have.
    """

    inode: int
    offset: int
    tail: int = 0


class FileStream:
    """Lines after a position: ``{"item_id": "a", "price": 9.5}``.

    Values are JSON's or texts; null sets null. Only lines that end are taken. Lines
    without a ``timekey`` count in their order.
    """

    def __init__(self, config: StreamConfig) -> None:
        self.skipped: Counter[str] = Counter()
        self._path = unquote(urlsplit(reveal(config.url)).path)
        self._label = f"stream {self._path!r}"
        self._reader = EntryReader(config, self.skipped)

    def position(self) -> Position:
        """The end of the last whole line now."""
        file = self._open()
        if file is None:
            return Position(0, 0)
        try:
            end = os.fstat(file).st_size
            while end:
                begin = max(end - READ_BYTES, 0)
                place = _all_of(file, end - begin, begin).rfind(b"\n")
                if place >= 0:
                    end = begin + place + 1
                    break
                end = begin
            return self._at(file, end)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            os.close(file)

    def restored(self, kept: Mapping[str, Any]) -> Position:
        """A position from its fields."""
        return Position(**kept)

    def read(self, since: Position, wait: float) -> Entries:
        """Lines after ``since``, for the first of which it may wait.

        :raises CursorLost: if the file was cut, removed, or is another one
        """
        until = time.monotonic() + wait
        while True:
            found = self._read(since)
            left = until - time.monotonic()
            if found.next != since or left <= 0:
                return found
            time.sleep(min(POLL_SECONDS, left))

    def _read(self, since: Position) -> Entries:
        file = self._open()
        if file is None:
            if since.inode:
                raise CursorLost(f"{self._label} is gone")
            return Entries([], since)
        try:
            about = os.fstat(file)
            if since.inode:
                self._check(file, about, since)
            lines, more = self._lines(file, since.offset, about.st_size)
            if not lines and since.inode:
                return Entries([], since)
            position = self._at(file, since.offset + sum(map(len, lines)))
        except OSError as error:
            raise self._failed(error) from error
        finally:
            os.close(file)
        entries = [entry for entry in map(self._entry, lines) if entry is not None]
        newest = about.st_mtime if lines and not more else None
        return Entries(entries, position, newest, more)

    def _check(self, file: int, about: os.stat_result, since: Position) -> None:
        if about.st_ino != since.inode:
            raise CursorLost(f"{self._label} is another file than the one read before")
        if about.st_size < since.offset:
            raise CursorLost(f"{self._label} was cut")
        if self._at(file, since.offset) != since:
            raise CursorLost(f"{self._label} was written anew")

    def _at(self, file: int, offset: int) -> Position:
        begin = max(offset - TAIL_BYTES, 0)
        tail = xxh64(_all_of(file, offset - begin, begin)) if offset else 0
        return Position(os.fstat(file).st_ino, offset, tail)

    def _lines(self, file: int, offset: int, end: int) -> tuple[list[bytes], bool]:
        """Whole lines with their ends, and whether more is left than one read has."""
        size = READ_BYTES
        while True:
            data = _all_of(file, min(size, end - offset), offset)
            place = data.rfind(b"\n")
            if place >= 0:
                lines = [line + b"\n" for line in data[:place].split(b"\n")]
                more = len(lines) > READ_ENTRIES or len(data) == size
                return lines[:READ_ENTRIES], more
            if len(data) < size:
                return [], False
            size *= 2

    def _entry(self, line: bytes) -> tuple[bytes, Fields] | None:
        if not line.strip():
            return None
        try:
            given = json.loads(line)
            if isinstance(given, dict):
                return b"", {k.encode(): _cell(v) for k, v in given.items()}
        except (ValueError, RecursionError):
            pass
        self.skipped["bad_line"] += 1
        return None

    def steps(
        self,
        entries: Sequence[tuple[bytes, Fields]],
        key: str,
        schema: dict[str, Kind],
    ) -> list[Upsert | Delete]:
        """Lines as changes of items of ``schema``; what is unreadable is counted."""
        return self._reader.steps(((None, one) for _, one in entries), key, schema)

    def _open(self) -> int | None:
        try:
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> SourceError:
        return SourceError(f"{self._label}: {error.strerror or error}")

    def close(self) -> None:
        """There is nothing that stays open."""


def _all_of(file: int, count: int, offset: int) -> bytes:
    """``count`` bytes, or fewer where the file was cut meanwhile."""
    parts = []
    while count > 0 and (part := os.pread(file, count, offset)):
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return b"".join(parts)


def _cell(value: Any) -> bytes | None:
    """A value as the text that columns are read from."""
    if value is None:
        return None
    return (value if isinstance(value, str) else json.dumps(value)).encode()
