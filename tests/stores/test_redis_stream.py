"""Redis Streams: changes beside any source, gaps, outages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import servers
from item_sources import TableFor
from source_steps import changes_of, rows_of, until

from procserver.errors import SourceError
from procserver.itemcache.sources import CursorLost, Delete, ItemSource, Upsert

Open = Callable[..., ItemSource]
ITEMS = TableFor("item:*", "item_id", types=(("price", "float32"), ("stock", "int64")))
KEY = "changes"


@dataclass(frozen=True)
class StreamFor:
    url: str
    key: str = KEY
    id: str | None = None
    timekey: str | None = None


@pytest.fixture
def source(redis_server: servers.Redis, client: Any, opened: Open) -> ItemSource:
    """Hashes and a stream."""
    client.hset("item:a", mapping={"price": 1, "stock": 1})
    stream = StreamFor(redis_server.url)
    return opened(redis_server.url, ITEMS, kind="redis", stream=stream)


def begin(source: ItemSource) -> object:
    assert source.describe().follows
    cursor, batches = source.snapshot()
    assert sum(batch.num_rows for batch in batches) == 1
    return cursor


def shape(steps: Any) -> list[Any]:
    """Rows of upserts, and ids of deletes."""
    return [
        step.batch.to_pylist() if isinstance(step, Upsert) else step.keys.to_pylist()
        for step in steps
    ]


def test_changes_in_order(source: ItemSource, client: Any) -> None:
    cursor = begin(source)
    assert changes_of(source, cursor).steps == []
    before = time.time()
    client.xadd(KEY, {"item_id": "a", "price": "2.5"})
    client.xadd(KEY, {"item_id": "b", "price": "3", "stock": "4", "unknown": "x"})
    client.xadd(KEY, {"item_id": "c", "price": "5", "_op": "upsert"})
    client.xadd(KEY, {"item_id": "b", "_op": "delete"})
    client.xadd(KEY, {"item_id": "b", "price": "6"})
    client.xadd(KEY, {"item_id": "d", "price": "7"})
    client.xadd(KEY, {"item_id": "a", "price": "", "stock": ""})
    client.xadd(KEY, {"item_id": "c", "price": "1", "stock": "x"})
    found = changes_of(source, cursor)
    assert shape(found.steps) == [
        [{"item_id": "a", "price": 2.5}, {"item_id": "c", "price": 5.0}],
        [
            {"item_id": "b", "price": 3.0, "stock": 4},
            {"item_id": "a", "price": None, "stock": None},
        ],
        ["b"],
        [{"item_id": "b", "price": 6.0}, {"item_id": "d", "price": 7.0}],
    ]
    assert source.skipped == {"bad_value": 1}
    for step in found.steps:
        assert step.times is not None
        assert abs(step.times[0] / 1e6 - before) < 600
    assert found.newest is not None
    assert abs(found.newest - before) < 600
    assert changes_of(source, found.next_cursor).steps == []


def test_an_entry_comes_within_a_second(source: ItemSource, client: Any) -> None:
    cursor = begin(source)
    arrived: list[float] = []

    def follow() -> None:
        found = changes_of(source, cursor, wait=60.0)
        arrived.append(time.monotonic())
        assert rows_of(found.steps).keys() == {"a"}

    thread = threading.Thread(target=follow)
    thread.start()
    # It waits at the server before the entry comes.
    until(lambda: client.info("clients")["blocked_clients"] == 1)
    sent = time.monotonic()
    client.xadd(KEY, {"item_id": "a", "price": "2"})
    thread.join(60)
    assert arrived
    # A loaded machine may take its time; without a wake-up it would be a minute.
    assert arrived[0] - sent < 10


def test_nothing_comes(source: ItemSource) -> None:
    cursor = begin(source)
    began = time.monotonic()
    found = changes_of(source, cursor, wait=0.3)
    assert found.steps == []
    assert time.monotonic() - began >= 0.29


def test_a_snapshot_starts_at_the_end_of_the_stream(
    source: ItemSource, client: Any
) -> None:
    client.xadd(KEY, {"item_id": "old", "price": "2"})
    cursor, batches = source.snapshot()
    client.xadd(KEY, {"item_id": "new", "price": "2"})
    list(batches)
    assert rows_of(changes_of(source, cursor).steps).keys() == {"new"}


def test_bad_entries_are_counted(
    redis_server: servers.Redis, client: Any, opened: Open
) -> None:
    client.hset("item:a", mapping={"price": 1})
    stream = StreamFor(redis_server.url, id="sku", timekey="at")
    source = opened(redis_server.url, ITEMS, kind="redis", stream=stream)
    cursor = begin(source)
    for fields in (
        {"item_id": "a", "price": "1", "at": "1700000000"},
        {"sku": "", "price": "1", "at": "1700000000"},
        {"sku": b"\xff", "price": "1", "at": "1700000000"},
        {"sku": "a", "_op": "drop", "at": "1700000000"},
        {"sku": "a", "price": "1", "at": "yesterday"},
        {"sku": "a", "price": "1", "at": "5"},
        {"sku": "a", "price": "1"},
        {"sku": "a", "price": "1", "at": "9" * 400},
        {"sku": "s", "price": "1", "at": "1700000000"},
        {"sku": "m", "price": "1", "at": "1700000000000"},
        {"sku": "u", "price": "1", "at": "1700000000000001"},
        {"sku": "f", "price": "1", "at": "1700000000.25"},
        {"sku": "e", "at": "1700000000"},
    ):
        client.xadd(KEY, fields)
    found = changes_of(source, cursor)
    assert source.skipped == {"bad_key": 3, "bad_op": 1, "bad_time": 4}
    upserts, empty = found.steps
    assert isinstance(upserts, Upsert)
    assert upserts.times is not None
    assert dict(
        zip(upserts.batch["item_id"].to_pylist(), upserts.times.tolist(), strict=True)
    ) == {
        "s": 1_700_000_000_000_000,
        "m": 1_700_000_000_000_000,
        "u": 1_700_000_000_000_001,
        "f": 1_700_000_000_250_000,
    }
    # An item of which nothing is known but that it is there.
    assert shape([empty]) == [[{"item_id": "e"}]]


def test_many_entries_come_in_pieces(source: ItemSource, client: Any) -> None:
    cursor = begin(source)
    pipe = client.pipeline(transaction=False)
    for i in range(12_000):
        pipe.xadd(KEY, {"item_id": f"i{i}", "price": i})
    pipe.execute()
    sizes = []
    seen: dict[Any, Any] = {}
    while steps := (found := changes_of(source, cursor)).steps:
        sizes.append(sum(len(step.batch) for step in steps))  # type: ignore[union-attr]
        seen |= rows_of(steps)
        cursor = found.next_cursor
    assert sizes == [5000, 5000, 2000]
    assert len(seen) == 12_000
    assert seen["i11999"]["price"] == 11_999.0


def test_a_trimmed_stream_is_a_gap(source: ItemSource, client: Any) -> None:
    client.xadd(KEY, {"item_id": "a", "price": "1"})
    cursor = begin(source)
    for i in range(10):
        client.xadd(KEY, {"item_id": "a", "price": i})
    # As long as nothing unread is gone there is no gap.
    client.xtrim(KEY, maxlen=11, approximate=False)
    found = changes_of(source, cursor)
    client.xtrim(KEY, maxlen=1, approximate=False)
    assert changes_of(source, found.next_cursor).steps == []
    client.xadd(KEY, {"item_id": "a", "price": "11"})
    later = changes_of(source, found.next_cursor)
    assert rows_of(later.steps)["a"]["price"] == 11.0
    for i in range(10):
        client.xadd(KEY, {"item_id": "a", "price": i}, maxlen=2, approximate=False)
    with pytest.raises(CursorLost, match="trimmed"):
        changes_of(source, later.next_cursor)
    cursor = begin(source)
    client.xadd(KEY, {"item_id": "a", "price": "12"})
    assert rows_of(changes_of(source, cursor).steps)["a"]["price"] == 12.0


def test_entries_trimmed_while_it_waits(source: ItemSource, client: Any) -> None:
    """What wakes the reader comes together with what took the rest away."""
    client.xadd(KEY, {"item_id": "a", "price": "1"})
    cursor = begin(source)
    caught: list[BaseException] = []

    def follow() -> None:
        try:
            changes_of(source, cursor, wait=60.0)
        except CursorLost as error:
            caught.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    until(lambda: client.info("clients")["blocked_clients"] == 1)
    pipe = client.pipeline(transaction=True)
    for i in range(10):
        pipe.xadd(KEY, {"item_id": "a", "price": i}, maxlen=2, approximate=False)
    pipe.execute()
    thread.join(60)
    assert len(caught) == 1


def test_a_stream_that_was_made_anew_is_a_gap(source: ItemSource, client: Any) -> None:
    client.xadd(KEY, {"item_id": "a", "price": "1"}, id="1700000000000-5")
    cursor = begin(source)
    client.delete(KEY)
    with pytest.raises(CursorLost, match="is gone"):
        changes_of(source, cursor)
    client.xadd(KEY, {"item_id": "a", "price": "1"}, id="1600000000000-0")
    with pytest.raises(CursorLost, match="not the one"):
        changes_of(source, cursor)
    client.delete(KEY)
    client.xadd(KEY, {"item_id": "a", "price": "1"}, id="1800000000000-0")
    with pytest.raises(CursorLost, match=r"made anew|may have been trimmed"):
        changes_of(source, cursor)


def test_deleted_entries_are_no_gap(source: ItemSource, client: Any) -> None:
    client.xadd(KEY, {"item_id": "a", "price": 9})
    cursor = begin(source)
    ids = [client.xadd(KEY, {"item_id": "a", "price": i}) for i in range(4)]
    client.xdel(KEY, ids[1])
    found = changes_of(source, cursor)
    assert [row["price"] for row in found.steps[0].batch.to_pylist()] == [0.0, 2.0, 3.0]  # type: ignore[union-attr]
    client.xadd(KEY, {"item_id": "a", "price": 5}, maxlen=2, approximate=False)
    assert rows_of(changes_of(source, found.next_cursor).steps)["a"]["price"] == 5.0


def test_beside_parquet(
    redis_server: servers.Redis, client: Any, opened: Open, tmp_path: Path
) -> None:
    path = tmp_path / "items.parquet"
    pq.write_table(
        pa.table(
            {
                "asin": ["a"],
                "price": pa.array([1.0], pa.float32()),
                "tags": [["x"]],
                "m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            }
        ),
        path,
    )
    source = opened(str(path), kind="parquet", stream=StreamFor(redis_server.url))
    cursor = begin(source)
    client.xadd(KEY, {"asin": "a", "price": "2"})
    client.xadd(KEY, {"asin": "n", "tags": '["y","z"]', "m": '{"k":2}'})
    assert shape(changes_of(source, cursor).steps) == [
        [{"asin": "a", "price": 2.0}],
        [{"asin": "n", "m": [("k", 2)], "tags": ["y", "z"]}],
    ]


def test_the_base_is_asked_once_a_period(
    redis_server: servers.Redis, client: Any, shop: servers.Postgres, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id text, price real, at timestamptz)",
        "INSERT INTO shop.items VALUES ('a', 1, now())",
    )
    for period, first in ((None, set()), (60, {"a", "b"})):
        source = opened(
            shop.url,
            TableFor("shop.items", "item_id", timekey="at"),
            stream=StreamFor(redis_server.url),
            period_minutes=period,
        )
        source.describe()
        cursor, batches = source.snapshot()
        list(batches)
        shop.run("INSERT INTO shop.items VALUES ('b', 1, now())")
        found = changes_of(source, cursor)
        assert rows_of(found.steps).keys() == first
        shop.run("INSERT INTO shop.items VALUES ('c', 1, now())")
        assert changes_of(source, found.next_cursor).steps == []
        shop.run("DELETE FROM shop.items WHERE item_id <> 'a'")


def test_beside_postgres_with_messages(
    redis_server: servers.Redis, client: Any, shop: servers.Postgres, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id text, price real, at timestamptz)",
        "INSERT INTO shop.items VALUES ('a', 1, 'epoch')",
    )
    source = opened(
        shop.url,
        TableFor("shop.items", "item_id", timekey="at"),
        listen="items",
        stream=StreamFor(redis_server.url),
    )
    cursor = changes_of(source, begin(source)).next_cursor
    shop.run("UPDATE shop.items SET price = 2, at = now()", "NOTIFY items")
    found = changes_of(source, cursor, wait=30.0)
    assert rows_of(found.steps) == {"a": {"item_id": "a", "price": 2.0}}
    client.xadd(KEY, {"item_id": "a", "price": "3"})
    later = changes_of(source, found.next_cursor, wait=30.0)
    assert rows_of(later.steps) == {"a": {"item_id": "a", "price": 3.0}}
    # The same clock in the same unit, so that the two can be compared.
    assert found.steps[0].times is not None
    assert later.steps[0].times is not None
    assert 0 <= later.steps[0].times[0] - found.steps[0].times[0] < 600e6


def test_the_stream_goes_on_without_the_base(
    redis_server: servers.Redis,
    client: Any,
    opened: Open,
    mortal_postgres: servers.Postgres,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mortal_postgres.run(
        "CREATE TABLE items (item_id text, price real, at timestamptz)",
        "INSERT INTO items VALUES ('a', 1, 'epoch')",
    )
    source = opened(
        mortal_postgres.url,
        TableFor("items", "item_id", timekey="at"),
        stream=StreamFor(redis_server.url),
        period_minutes=1,
    )
    cursor = begin(source)
    mortal_postgres.stop()
    client.xadd(KEY, {"item_id": "a", "price": "3"})
    found = changes_of(source, cursor)
    assert rows_of(found.steps) == {"a": {"item_id": "a", "price": 3.0}}
    assert "only the stream is followed" in caplog.text
    assert servers.PASSWORD not in caplog.text


@pytest.fixture
def mortal_postgres() -> Iterator[servers.Postgres]:
    server = servers.start_postgres()
    yield server
    server.remove()


@pytest.mark.parametrize("durable", [True, False])
def test_outage(durable: bool, opened: Open) -> None:
    server = servers.start_redis(append=durable)
    try:
        client = server.client()
        client.hset("item:a", mapping={"price": 1})
        client.xadd(KEY, {"item_id": "a", "price": "0"})
        stream = StreamFor(server.url)
        source = opened(server.url, ITEMS, kind="redis", stream=stream)
        cursor = begin(source)
        client.xadd(KEY, {"item_id": "a", "price": "1"})
        client.close()
        server.stop()
        with pytest.raises(SourceError, match="stream 'changes'") as caught:
            changes_of(source, cursor, wait=1.0)
        assert servers.PASSWORD not in str(caught.value)
        assert not isinstance(caught.value, CursorLost)
        server.start()
        if durable:
            assert rows_of(changes_of(source, cursor).steps)["a"]["price"] == 1.0
        else:
            with pytest.raises(CursorLost):
                changes_of(source, cursor)
    finally:
        server.remove()


def test_another_sources_cursor(source: ItemSource) -> None:
    source.describe()
    with pytest.raises(CursorLost, match="of another source"):
        changes_of(source, {"0": 1})


def test_a_stream_that_is_none(source: ItemSource, client: Any) -> None:
    client.set(KEY, "text")
    with pytest.raises(SourceError, match=r"stream 'changes'.*wrong kind"):
        source.snapshot()


def test_only_deletes(source: ItemSource, client: Any) -> None:
    cursor = begin(source)
    client.xadd(KEY, {"item_id": "a", "_op": "delete"})
    (step,) = changes_of(source, cursor).steps
    assert isinstance(step, Delete)
    assert step.keys.to_pylist() == ["a"]
    assert step.keys.type == pa.string()
    assert replace(step) == step or step.times is not None
