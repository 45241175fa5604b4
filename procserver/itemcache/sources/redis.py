"""Items in Redis hashes, one hash an item."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from procserver.errors import SourceError
from procserver.itemcache.sources import (
    Changes,
    Description,
    SourceConfig,
    TableConfig,
    reveal,
)
from procserver.itemcache.sources.ahead import read_ahead
from procserver.itemcache.sources.merging import merge, merged_schema
from procserver.itemcache.sources.redis_link import Link
from procserver.itemcache.sources.texts import inferred, to_array, type_named

log = logging.getLogger("procserver.itemcache")

# Hashes from which undeclared types are inferred.
SAMPLE = 1000
# PERF: keys of one SCAN step, and hashes of one round trip.
SCAN_COUNT = 2000
BATCH_ROWS = 4096


@dataclass(frozen=True)
class Hashes:
    """The hashes whose keys match a pattern, as a table."""

    label: str
    link: Link
    before: str
    after: str
    key: str
    columns: tuple[str, ...]
    fields: tuple[bytes, ...]
    schema: pa.Schema
    skipped: Counter[str] = field(compare=False)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All hashes, in the order of SCAN; one that changes meanwhile is old or new.

        What is no hash is counted as ``not_a_hash``, one without any of the fields
        as ``no_field``, an id that is no UTF-8 as ``bad_key``, and a cell that is not
        of its type, which becomes null, as ``bad_value``.
        """
        keys: list[bytes] = []
        for key in scan(self.link, self.label, self.before, self.after):
            keys.append(key)
            if len(keys) == BATCH_ROWS:
                yield self._batch(keys)
                keys = []
        if keys:
            yield self._batch(keys)

    def _batch(self, keys: list[bytes]) -> pa.RecordBatch:
        with self.link.asking(self.label) as client, client.pipeline(False) as pipe:
            for key in keys:
                pipe.hmget(key, self.fields) if self.fields else pipe.hlen(key)
            answers = pipe.execute(raise_on_error=False)
        ids: list[str] = []
        rows: list[list[bytes | None]] = []
        for key, answer in zip(keys, answers, strict=True):
            id_ = self._id(key, answer)
            if id_ is not None:
                ids.append(id_)
                rows.append(answer if self.fields else [])
        columns = dict(zip(self.columns_read, zip(*rows, strict=True), strict=False))
        arrays = []
        for name in self.schema.names:
            if name == self.key:
                arrays.append(pa.array(ids, pa.string()))
                continue
            array, bad = to_array(columns.get(name, ()), self.schema.field(name).type)
            self.skipped["bad_value"] += bad
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    @property
    def columns_read(self) -> tuple[str, ...]:
        """Names of the columns that are fields of the hashes."""
        return tuple(name for name in self.columns if name != self.key)

    def _id(self, key: bytes, answer: Any) -> str | None:
        if isinstance(answer, Exception):
            if "WRONGTYPE" not in str(answer):
                raise SourceError(f"{self.label}: {answer}")
            self.skipped["not_a_hash"] += 1
            return None
        # A key that went away meanwhile is a hash without fields.
        if not answer or (self.fields and not any(c is not None for c in answer)):
            self.skipped["no_field"] += 1
            return None
        try:
            text = key.decode()
        except UnicodeDecodeError:
            self.skipped["bad_key"] += 1
            return None
        return text[len(self.before) : len(text) - len(self.after)]


def scan(link: Link, label: str, before: str, after: str) -> Iterator[bytes]:
    """Keys that start and end so; one may come twice."""
    pattern = f"{_literal(before)}*{_literal(after)}"
    least = len(before.encode()) + len(after.encode())
    cursor = 0
    while True:
        with link.asking(label) as client:
            cursor, keys = client.scan(cursor, match=pattern, count=SCAN_COUNT)
        yield from (key for key in keys if len(key) > least)
        if cursor == 0:
            return


def _literal(text: str) -> str:
    return re.sub(r"([*?\[\]\\^])", r"\\\1", text)


class RedisSource:
    """``remote_type: redis``: a table's ``name`` is the pattern of the keys.

    The one ``*`` in it stands for the item id. ``value`` are the fields to load, by
    default all that a sample of 1000 hashes has. Types are told by ``types`` or
    inferred from that sample. Several tables are merged as those of other sources.
    Hashes say nothing of changes; those come by a ``stream``.
    """

    def __init__(self, config: SourceConfig) -> None:
        self.skipped: Counter[str] = Counter()
        self._configs = list(config.tables)
        self._link = Link(reveal(config.url))

    def describe(self) -> Description:
        """Key and fields, of a sample; how many there are shows when they are read."""
        tables = self._open()
        return Description(tables[0].key, merged_schema(tables), exact=False)

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        """All hashes, read while they may change."""
        self.skipped = Counter()
        tables = self._open()
        if len(tables) > 1:
            return None, merge(tables, self.skipped)
        return None, read_ahead(tables[0].batches(), lambda: None)

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        """None: hashes are read as a whole."""
        return None

    def close(self) -> None:
        """Gives the connections back."""
        self._link.close()

    def _open(self) -> list[Hashes]:
        return [self._table(config) for config in self._configs]

    def _table(self, config: TableConfig) -> Hashes:
        label = f"item table {config.name!r}"
        before, star, after = (config.name or "").partition("*")
        if not star:
            raise SourceError(f"{label}: the name is to have a * for the item id")
        key = str(config.key)
        told = {name: type_named(type_) for name, type_ in config.types or ()}
        wanted = config.value
        types = told
        if wanted is None or any(name not in told for name in wanted):
            types = self._sampled(label, before, after, wanted) | told
        columns = tuple(types) if wanted is None else tuple(wanted)
        if not columns:
            raise SourceError(f"{label}: no such hash, so no field is known")
        fields = tuple(name for name in columns if name != key)
        schema = pa.schema(
            [(key, pa.string()), *((f, types.get(f, pa.string())) for f in fields)]
        )
        return Hashes(
            label,
            self._link,
            before,
            after,
            key,
            columns,
            tuple(name.encode() for name in fields),
            schema,
            self.skipped,
        )

    def _sampled(
        self, label: str, before: str, after: str, wanted: Sequence[str] | None
    ) -> dict[str, pa.DataType]:
        """Fields of a sample, by name, and the types that they seem to have."""
        keys = []
        for key in scan(self._link, label, before, after):
            keys.append(key)
            if len(keys) == SAMPLE:
                break
        with self._link.asking(label) as client, client.pipeline(False) as pipe:
            for key in keys:
                pipe.hgetall(key)
            answers = pipe.execute(raise_on_error=False)
        found: dict[str, list[bytes]] = {}
        for answer in answers:
            for name, cell in answer.items() if isinstance(answer, dict) else ():
                found.setdefault(name.decode(errors="replace"), []).append(cell)
        names = sorted(found) if wanted is None else wanted
        return {name: inferred(found.get(name, ())) for name in names}
