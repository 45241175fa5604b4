"""An item source as a third party would add it: a table and a log, in files.

``url`` is a folder: ``items.parquet``, ``log.jsonl`` with a change a line, and, if a
test wants it, ``down`` (nothing can be read), ``half`` (a load breaks in the middle),
``hang`` (as long as it is there, nothing comes back) and ``lost`` (the first byte of
the log that is still there).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cython_ext.column import Kind
from procserver.itemcache.sources import (
    Changes,
    CursorLost,
    Delete,
    Description,
    Upsert,
    reveal,
)

SCHEMA = {
    "item_id": Kind.STRING,
    "category": Kind.STRING,
    "price": Kind.FLOAT64,
    "vector": Kind.LIST_FLOAT64,
}


class LoggedSource:
    """See the module."""

    def __init__(self, config: Any) -> None:
        self.folder = Path(reveal(config.url))
        self.skipped: Counter[str] = Counter()

    def _come(self) -> None:
        while (self.folder / "hang").exists():
            time.sleep(0.05)
        if (self.folder / "down").exists():
            raise ConnectionError("connection to tcp://user:secret@db:1 refused")

    def describe(self) -> Description:
        self._come()
        return Description("item_id", SCHEMA, follows=True)

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        self._come()
        table = pq.read_table(self.folder / "items.parquet")

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in table.to_batches(max_chunksize=50):
                yield batch
                if (self.folder / "half").exists():
                    raise ConnectionError("the connection was lost")

        return {"at": 0}, batches()

    def changes(self, cursor: Any, wait: float = 0.0) -> Changes | None:
        end = time.monotonic() + wait
        lost = self.folder / "lost"
        while True:
            self._come()
            if lost.exists() and cursor["at"] < int(lost.read_text()):
                raise CursorLost("the log was cut")
            data = self._read(cursor["at"])
            if data or time.monotonic() >= end:
                break
            time.sleep(0.02)
        steps = [self._step(json.loads(line)) for line in data.splitlines()]
        newest = time.time() if steps else None
        return Changes(steps, {"at": cursor["at"] + len(data)}, newest, more=False)

    def _read(self, start: int) -> bytes:
        try:
            with (self.folder / "log.jsonl").open("rb") as file:
                file.seek(start)
                data = file.read()
        except FileNotFoundError:
            return b""
        return data[: data.rfind(b"\n") + 1]

    def _step(self, told: dict[str, Any]) -> Upsert | Delete:
        times = np.array([told.pop("time")], dtype=np.int64)
        if "delete" in told:
            return Delete(pa.array([told["delete"]]), times)
        return Upsert(pa.RecordBatch.from_pylist([told]), times)

    def close(self) -> None:
        pass
