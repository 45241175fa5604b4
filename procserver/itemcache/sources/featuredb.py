"""Items of FeatureDB, the FeatureStore's own online store, by HTTP and Arrow.

NOTE: written from what the FeatureStore's public SDKs send and read, and tested
against a server written from the same; it has never been tried on the real one.

A table is ``<instance>/<project>/<feature view>``. It is read as a snapshot, an
Arrow stream of keys and encoded rows, and followed from the snapshot's time on. How
rows are encoded is told in ``featuredb_rows``.
"""

from __future__ import annotations

import base64
import http.client
import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from procserver.errors import SourceError
from procserver.itemcache.sources import (
    Changes,
    CursorLost,
    Delete,
    Description,
    SourceConfig,
    TableConfig,
    Upsert,
    reveal,
)
from procserver.itemcache.sources.featuredb_rows import (
    PREFIX,
    Read,
    read_row,
    reader,
)
from procserver.itemcache.sources.merging import merge, merged_schema
from procserver.itemcache.sources.texts import type_named

# Seconds: for one answer to begin, and between two looks at what has changed.
TIMEOUT = 30.0
POLL = 5.0


@dataclass(frozen=True)
class Table:
    """One feature view: how it is asked for and what its rows hold."""

    label: str
    base: str
    headers: dict[str, str]
    key: str
    columns: tuple[str, ...]
    fields: tuple[tuple[str, Read], ...]
    schema: pa.Schema
    skipped: Counter[str] = field(compare=False)
    taken: str = ""

    def snapshot(self) -> tuple[str, int]:
        """A new snapshot's id and its time."""
        with self._open("/snapshots", "POST") as answer:
            content = answer.read()
        try:
            told = json.loads(content)
            told = told.get("data", told)
            return str(told["snapshot_id"]), int(told["ts"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SourceError(f"{self.label}: no snapshot in the answer") from error

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows of the snapshot that was taken."""
        name = urllib.parse.quote(self.taken, safe="")
        with self._open(f"/snapshots/{name}/scan") as answer:
            for batch in self._stream(answer):
                yield self._decode(batch)[0]

    def changed(self, since: int) -> tuple[list[Upsert | Delete], int]:
        """What changed since a time, and the time from which to ask next."""
        with self._open(f"/iterate_get_kv?ts={since}") as answer:
            try:
                following = int(answer.headers.get("Next-Ts") or 0)
            except ValueError as error:
                raise SourceError(f"{self.label}: Next-Ts is no number") from error
            steps: list[Upsert | Delete] = []
            for batch in self._stream(answer):
                rows, gone = self._decode(batch)
                steps += [Upsert(rows)] if rows.num_rows else []
                steps += [Delete(gone)] if len(gone) else []
        return steps, following or since

    def _open(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(
            self.base + path, method=method, headers=self.headers
        )
        try:
            return closing(urllib.request.urlopen(request, timeout=TIMEOUT))
        except urllib.error.HTTPError as error:
            with error:
                why = error.read(300).decode(errors="replace")
            text = (
                f"{self.label}: FeatureDB answers {error.code}: {' '.join(why.split())}"
            )
            if error.code in (404, 410) and "ts=" in path:
                raise CursorLost(text) from error
            raise SourceError(text) from error
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"{self.label}: {error}") from error

    def _stream(self, answer: Any) -> Iterator[pa.RecordBatch]:
        """The batches of an answer; nothing at all is an empty one."""
        try:
            first = answer.read(1)
            if first:
                yield from pa.ipc.open_stream(_Rest(first, answer))
        except (pa.ArrowException, OSError, http.client.HTTPException) as error:
            raise SourceError(f"{self.label} cannot be read: {error}") from error

    def _decode(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.Array]:
        """Rows, and keys without one; what is no row is counted as ``bad_row``."""
        if batch.num_columns < 2:
            raise SourceError(f"{self.label}: keys and values are missing")
        keys: list[object] = []
        gone: list[object] = []
        cells: list[list[Any]] = [[] for _ in self.columns]
        wanted = {name: place for place, name in enumerate(self.columns)}
        pairs = zip(
            batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True
        )
        for key, data in pairs:
            if not data or len(data) < len(PREFIX):
                gone.append(key)
                continue
            try:
                row = read_row(data, self.fields, wanted)
            except (struct.error, ValueError):
                self.skipped["bad_row"] += 1
                continue
            keys.append(key)
            for column, cell in zip(cells, row, strict=True):
                column.append(cell)
        arrays = [pa.array(keys, pa.string())]
        arrays += [
            pa.array(column, self.schema.field(name).type)
            for name, column in zip(self.columns, cells, strict=True)
        ]
        rows = pa.RecordBatch.from_arrays(arrays, names=[self.key, *self.columns])
        return rows, pa.array(gone, pa.string())


class FeatureDBSource:
    """``remote_type: featuredb``: ``url`` is ``http://host:port/<instance>``.

    A table's ``name`` is a feature view of the project ``fs_project``, and its
    ``types`` tell all its fields in their order, of which ``value`` chooses.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.skipped: Counter[str] = Counter()
        address = reveal(config.url).rstrip("/")
        project = getattr(config, "fs_project", None)
        headers = _headers(config)
        if not project:
            raise SourceError("FeatureDB: fs_project is missing")
        if not urllib.parse.urlsplit(address).path.strip("/"):
            raise SourceError("FeatureDB: the url names no instance")
        host, _, instance = address.rpartition("/")
        self._tables = [
            _table(
                f"{host}/api/v1/tables/{instance}/{project}", headers, t, self.skipped
            )
            for t in config.tables
        ]
        if not self._tables:
            raise SourceError("FeatureDB: tables are missing")
        self._looked = 0.0

    def describe(self) -> Description:
        """Key and columns as the configuration has them."""
        return Description(
            self._tables[0].key, merged_schema(self._tables), follows=True
        )

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        """All rows; the cursor has each table's time."""
        self.skipped.clear()
        tables, cursor = [], []
        for table in self._tables:
            taken, moment = table.snapshot()
            tables.append(replace(table, taken=taken))
            cursor.append(moment)
        if len(tables) == 1:
            return cursor, tables[0].batches()
        return cursor, merge(tables, self.skipped)

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        """What changed since; asked for every five seconds.

        :raises CursorLost: if the cursor is of other tables, or too old
        """
        if not isinstance(cursor, list) or len(cursor) != len(self._tables):
            raise CursorLost("FeatureDB: a cursor of other tables")
        pause = self._looked + POLL - time.monotonic()
        if pause > 0:
            time.sleep(min(pause, wait))
            if pause > wait:
                return Changes((), cursor)
        self._looked = time.monotonic()
        steps: list[Upsert | Delete] = []
        following = []
        for table, since in zip(self._tables, cursor, strict=True):
            found, moment = table.changed(int(since))
            steps += found
            following.append(moment)
        # A deletion from one of several views leaves the item's other columns.
        if len(self._tables) > 1:
            steps = [step for step in steps if isinstance(step, Upsert)]
        return Changes(steps, following)

    def close(self) -> None:
        """Each question has a connection of its own."""


def _headers(config: SourceConfig) -> dict[str, str]:
    user = getattr(config, "featuredb_username", None)
    password = getattr(config, "featuredb_password", None)
    token = getattr(config, "featuredb_token", None)
    if not user or password is None:
        raise SourceError(
            "FeatureDB: featuredb_username and featuredb_password are missing"
        )
    pair = f"{user}:{reveal(password)}".encode()
    headers = {
        "Content-Type": "application/json",
        "Auth": base64.b64encode(pair).decode(),
    }
    if token is not None:
        headers["Authorization"] = reveal(token)
    return headers


def _table(
    base: str, headers: dict[str, str], config: TableConfig, skipped: Counter[str]
) -> Table:
    name = config.name
    types = dict(getattr(config, "types", None) or ())
    label = f"feature view {name!r}"
    key = config.key
    if not name or not key:
        raise SourceError("FeatureDB: a table needs a name and a key")
    if not types:
        raise SourceError(f"{label}: types are missing, all fields' in their order")
    columns = tuple(config.value or types)
    for column in columns:
        if column not in types:
            raise SourceError(f"{label}: there is no type of {column!r}")
    arrow = {one: type_named(types[one]) for one in columns}
    schema = pa.schema([(key, pa.string()), *arrow.items()])
    readers = tuple((one, reader(text, label)) for one, text in types.items())
    quoted = urllib.parse.quote(name, safe="")
    return Table(
        label, f"{base}/{quoted}", headers, key, columns, readers, schema, skipped
    )


class _Rest:
    """A stream of which one byte was looked at."""

    closed = False

    def __init__(self, first: bytes, rest: Any) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        first, self._first = self._first, b""
        rest: bytes = self._rest.read(size - len(first) if size >= 0 else None)
        return first + rest
