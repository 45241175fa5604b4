"""A live service refuses item tables that would harm it, and nulls bad cells."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from live import ROOT, LiveServer
from test_ranking import build, post


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("guarded")
    config = tiny.write(folder, "guarded", procserver={"max_row_drop": 0.2})
    server = LiveServer(config, folder / "server.log", workers=1).start()
    yield server
    server.stop()


def rows() -> list[dict[str, Any]]:
    return [tiny.item(i) for i in range(tiny.ITEMS)]


def load(server: LiveServer, items: list[dict[str, Any]], *options: str) -> int:
    """Has the service load another table; the command's exit status."""
    path = server.config.parent / "items.parquet"
    # Without rows there would be no columns either.
    table = pa.Table.from_pylist(items or rows()[:1]).slice(0, len(items))
    pq.write_table(table, path.with_suffix(".draft"))
    path.with_suffix(".draft").rename(path)
    command = [sys.executable, "-m", "procserver", "refresh", "--wait", *options]
    return subprocess.run(
        [*command, "--config", str(server.config)],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    ).returncode


def refused(server: LiveServer, items: list[dict[str, Any]], reason: str) -> None:
    """The build is tried again and again, so the log may name it several times."""
    before = generation(server)
    load(server, items)
    wait_until(lambda: f"item cache build refused: {reason}" in server.text())
    assert generation(server) == before


def generation(server: LiveServer, item: str = "item_0001") -> int:
    body = build([item, "item_0003"]).SerializeToString()
    answer = post(server, body, f"/api/predict/{server.name}")
    assert answer.status == 200
    return int(answer.headers["x-cache-generation"])


def metric(server: LiveServer, name: str) -> float:
    text = server.request("GET", "/metrics").body.decode()
    [line] = [one for one in text.splitlines() if one.startswith(f"{name} ")]
    return float(line.split()[1])


def test_a_vector_of_another_width(server: LiveServer) -> None:
    items = [{**row, "vector": row["vector"][:3]} for row in rows()]
    refused(
        server,
        items,
        "item column 'vector': 200 of 200 cells are bad (refused_cell: not as many "
        "values as 'vector' take), more than procserver.max_bad_rows (0.1) allows",
    )


def test_a_column_of_another_kind(server: LiveServer) -> None:
    items = [{**row, "price": [[1.0], [2.0]]} for row in rows()]
    refused(server, items, "item table: column 'price' holds lists of lists")


def test_a_column_that_vanished(server: LiveServer) -> None:
    items = [{k: v for k, v in row.items() if k != "category"} for row in rows()]
    reason = (
        "item column 'category', which 'category', 'city_x_category', "
        "'clicks__category' read, is in no item table any more"
    )
    refused(server, items, reason)


def test_a_table_that_lost_rows(server: LiveServer) -> None:
    refused(server, rows()[:150], "150 items instead of 200: a loss of 25%")
    name = 'procserver_cache_builds_total{outcome="refused"}'
    assert metric(server, name) >= 1


def test_a_loss_that_a_human_vouches_for(server: LiveServer) -> None:
    before = generation(server)
    few = rows()[:100]
    assert load(server, few) == 1
    # A load that is tried again just now may be the one that is waited for.
    wait_until(lambda: load(server, few, "--force") == 0)
    assert generation(server) > before
    wait_until(lambda: metric(server, "procserver_cache_rows") == 100)
    # It was for that load only, and not for none at all.
    assert load(server, rows()[:50]) == 1
    assert load(server, rows()[:0], "--force") == 1
    wait_until(lambda: "the source has no items, the item cache" in server.text())
    wait_until(lambda: load(server, rows()) == 0)


def test_a_few_bad_cells_do_no_harm(server: LiveServer) -> None:
    before = generation(server)
    items = [{**row, "new": "a column that nobody reads"} for row in rows()]
    items[1]["vector"] = [1.0]
    items[2]["item_id"] = None
    load(server, items)
    wait_until(lambda: "1 null_key, 1 refused_cell" in server.text())
    wait_until(lambda: generation(server) > before)
    # Its vector is the feature's default; a wrong width was a 400 for the request.
    assert generation(server, "item_0001") > before
    wait_until(lambda: "item column 'new' is new" in server.text())


def test_what_nobody_needs_may_go(server: LiveServer) -> None:
    before = generation(server)
    items = [{**row, "price": int(row["price"])} for row in rows()]
    load(server, items)
    wait_until(lambda: generation(server) > before)
    gone = "item column 'new' is in no item table any more"
    wait_until(lambda: gone in server.text())
    wait_until(lambda: "item column 'price': float64 is int64" in server.text())


def test_a_start_with_an_unfit_table(tmp_path: Path) -> None:
    config = tiny.write(tmp_path / "service", "unfit")
    items = [{**row, "category": [["a"]]} for row in rows()]
    path = tmp_path / "service" / "items.parquet"
    pq.write_table(pa.Table.from_pylist(items), path)
    server = LiveServer(config, tmp_path / "server.log", workers=1).launch()
    assert server.process is not None
    try:
        assert server.process.wait(120) == 3 or "cannot start" in server.text()
        assert "column 'category' holds lists of lists" in server.text()
        assert "'category' cannot take" in server.text()
    finally:
        server.stop(expect_clean=False)
