"""F33: rows that cannot be used, in the table and among its changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from faulty import ITEMS, Service, request, wait_until

Make = Callable[..., Service]
ALL = request([f"item_{n}" for n in range(ITEMS)]).SerializeToString()
SKIPPED = "procserver_cache_skipped_rows_total"
MOST_ID, MOST_CELL = 65_535, 256 << 10


def bad_table() -> pa.Table:
    """Fifty good items, and what a careless job may add to them."""
    rows: list[dict[str, Any]] = [
        {"item_id": f"item_{n}".encode(), "price": float(n), "build": 2.0}
        for n in range(ITEMS)
    ]
    rows[5]["price"] = math.nan
    rows[6]["price"] = None
    rows[7]["note"] = b"\xff\xfe"
    rows[8]["note"] = b"x" * (MOST_CELL + 1)
    bad = {"price": 0.0, "build": 666.0}
    rows.insert(3, {"item_id": None, **bad})
    rows.insert(20, {"item_id": b"item_\xff", **bad})
    rows.insert(30, {"item_id": b"x" * (MOST_ID + 1), **bad})
    # Of the same id the last one counts.
    rows.insert(0, {"item_id": b"item_9", **bad})
    rows.append({"item_id": b"item_10", "price": 10.0, "build": 3.0})
    schema = [
        *(("item_id", pa.binary()), ("price", pa.float64())),
        *(("build", pa.float64()), ("note", pa.binary())),
    ]
    table = pa.Table.from_pylist(rows, pa.schema(schema))
    # Said to be text, whatever it is.
    return table.set_column(3, "note", table["note"].combine_chunks().view(pa.string()))


def skipped(service: Service) -> dict[str, float]:
    reasons = ("null_key", "bad_key", "long_key", "duplicate_key")
    cells = ("bad_value", "bad_text", "long_cell", "bad_line")
    return {r: service.metric(SKIPPED, reason=r) for r in reasons + cells}


def test_f33_rows_that_cannot_be_used_are_left_out(service: Make) -> None:
    one = service("good", name="rows", workers=1)
    changes = one.folder / "changes.jsonl"
    one.change(lambda c: c["model_config"].update(stream={"url": str(changes)}))
    one.start()
    before = one.generation()
    draft = one.folder / "items.draft"
    pq.write_table(bad_table(), draft)
    draft.replace(one.folder / "items.parquet")
    one.ask_for_load()
    wait_until(lambda: one.generation() > before)
    builds = [2.0] * ITEMS
    builds[10] = 3.0
    assert one.outputs(ALL)["build"] == builds
    wanted = {"null_key": 1, "bad_key": 1, "long_key": 1, "duplicate_key": 2}
    wanted |= {"bad_value": 0, "bad_text": 1, "long_cell": 1, "bad_line": 0}
    wait_until(lambda: skipped(one) == wanted)
    # Ids that were left out are no items, and what is no number harms one item only.
    odd = ["item_\ufffd", "x" * (MOST_ID + 1), "item_11"]
    assert one.outputs(request(odd).SerializeToString())["build"] == [-1, -1, 2]
    scores = one.outputs(ALL)["score"]
    assert [n for n, score in enumerate(scores) if not math.isfinite(score)] == [5]

    # Among changes the old row is better than a part of a new one.
    lines = [
        json.dumps({"item_id": "item_20", "price": "cheap", "build": 666}),
        json.dumps({"item_id": "item_21", "build": 4, "color": "red"}),
        json.dumps({"item_id": "", "build": 666}),
        json.dumps({"item_id": "y" * (MOST_ID + 1), "build": 666}),
        "no JSON",
        json.dumps(["item_22"]),
        json.dumps({"item_id": "item_22", "build": 4}),
    ]
    changes.write_text("\n".join(lines) + "\n")
    builds[21] = builds[22] = 4.0
    wait_until(lambda: one.outputs(ALL)["build"][22] == 4.0)
    assert one.outputs(ALL)["build"] == builds
    wanted |= {"bad_value": 1, "long_key": 2, "bad_key": 2, "bad_line": 2}
    wait_until(lambda: skipped(one) == wanted)
    assert one.metric("procserver_cache_builds_total", outcome="refused") == 0
