"""A table that is changed before its stream tells so, as a shop's database is.

``url`` is a folder with ``changes.jsonl``, which a ``stream`` follows too. The table is
what that file has made of :data:`ITEMS`; of other items it knows nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from cython_ext.column import Kind
from procserver.itemcache.sources import Changes, Description, reveal

ITEMS = [f"item_{number}" for number in range(50)]
SCHEMA = {"item_id": Kind.STRING, "price": Kind.FLOAT64, "build": Kind.FLOAT64}
TYPES = pa.schema(
    [("item_id", pa.string()), ("price", pa.float64()), ("build", pa.float64())]
)
BATCH = 20


class MirrorSource:
    """See the module."""

    def __init__(self, config: Any) -> None:
        self._log = Path(reveal(config.url)) / "changes.jsonl"
        self.skipped: Counter[str] = Counter()

    def describe(self) -> Description:
        return Description("item_id", SCHEMA, len(ITEMS))

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        rows: dict[str, dict[str, Any]] = {item: {"item_id": item} for item in ITEMS}
        lines = self._log.read_bytes().splitlines(keepends=True)
        for line in lines:
            if not line.startswith(b'{"item_id": "item_') or not line.endswith(b"\n"):
                continue
            told = json.loads(line)
            if told.pop("_op", "") == "delete":
                rows.pop(told["item_id"], None)
            else:
                rows.setdefault(told["item_id"], {}).update(told)
        table = pa.Table.from_pylist(list(rows.values()), schema=TYPES)
        return None, iter(table.to_batches(max_chunksize=BATCH))

    def changes(self, cursor: object, wait: float = 0.0) -> Changes | None:
        return None

    def close(self) -> None:
        pass
