"""PostgreSQL: what changed since a cursor, messages, outages."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import servers
from item_sources import TableFor
from source_steps import changes_of, rows_of, until

from procserver.errors import SourceError
from procserver.itemcache.sources import ItemSource

Open = Callable[..., ItemSource]
TIMED = TableFor("shop.items", "item_id", timekey="updated_at")


def begin(source: ItemSource) -> object:
    """The cursor after a full load."""
    cursor, batches = source.snapshot()
    assert sum(batch.num_rows for batch in batches) >= 0
    return cursor


def items(shop: servers.Postgres, type_: str = "timestamptz") -> None:
    shop.run(
        f"CREATE TABLE shop.items (item_id text PRIMARY KEY, price float8, tags text[],"
        f" updated_at {type_})"
    )


@pytest.mark.parametrize("type_", ["timestamptz", "timestamp"])
def test_rows_by_timestamp(type_: str, shop: servers.Postgres, opened: Open) -> None:
    items(shop, type_)
    shop.run(
        "INSERT INTO shop.items SELECT 'i' || i, i, '{x}', now() AT TIME ZONE 'UTC'"
        " - interval '1 day' FROM generate_series(1, 100) i"
    )
    source = opened(shop.url, TIMED)
    assert list(source.describe().schema) == ["item_id", "price", "tags"]
    cursor = begin(source)
    shop.run(
        "UPDATE shop.items SET price = 7, updated_at = now() AT TIME ZONE 'UTC'"
        " WHERE item_id = 'i3'",
        "INSERT INTO shop.items VALUES ('new', 5, NULL, now() AT TIME ZONE 'UTC')",
        "INSERT INTO shop.items VALUES ('never', 5, NULL, NULL)",
        "DELETE FROM shop.items WHERE item_id = 'i4'",
    )
    found = changes_of(source, cursor)
    # The overlap has told of the day before too: all rows have the newest time.
    rows = rows_of(found.steps)
    assert {"i3", "new"} <= rows.keys()
    assert "never" not in rows
    assert rows["i3"] == {"item_id": "i3", "price": 7.0, "tags": ["x"]}
    assert found.newest is not None
    assert abs(found.newest - time.time()) < 600
    for step in found.steps:
        assert step.times is not None
        assert len(step.times) == len(step.batch)
        assert abs(step.times.max() / 1e6 - time.time()) < 2 * 86_400
    # Read again, and nothing is new; then one row is.
    again = changes_of(source, found.next_cursor)
    assert again.steps == []
    assert again.next_cursor == found.next_cursor
    shop.run("UPDATE shop.items SET tags = '{y}' WHERE item_id = 'new'")
    late = changes_of(source, again.next_cursor)
    assert rows_of(late.steps) == {
        "new": {"item_id": "new", "price": 5.0, "tags": ["y"]}
    }


def test_the_whole_path_to_a_second_snapshot(
    shop: servers.Postgres, opened: Open
) -> None:
    items(shop)
    source = opened(shop.url, TIMED)
    # Nothing at all yet.
    cursor = begin(source)
    assert changes_of(source, cursor).steps == []
    shop.run("INSERT INTO shop.items VALUES ('a', 1, NULL, '2001-02-03 04:05:06.789')")
    found = changes_of(source, cursor)
    assert rows_of(found.steps).keys() == {"a"}
    (step,) = found.steps
    assert step.times is not None
    assert step.times.tolist() == [981173106789000]
    assert found.newest == 981173106.789
    # A source opened anew goes on from the same cursor.
    other = opened(shop.url, TIMED)
    assert rows_of(changes_of(other, found.next_cursor).steps).keys() == {"a"}


def test_rows_committed_late_are_seen(shop: servers.Postgres, opened: Open) -> None:
    items(shop)
    shop.run("INSERT INTO shop.items VALUES ('a', 1, NULL, '2020-01-01 00:01:00')")
    for overlap, seen in ((None, {"late"}), (10.0, set()), (45.0, {"late"})):
        source = opened(shop.url, replace(TIMED, overlap=overlap))
        cursor = begin(source)
        # What was there is told once more.
        cursor = changes_of(source, cursor).next_cursor
        shop.run(
            "INSERT INTO shop.items VALUES ('late', 1, NULL, '2020-01-01 00:00:20')"
        )
        assert rows_of(changes_of(source, cursor).steps).keys() == seen
        shop.run("DELETE FROM shop.items WHERE item_id = 'late'")


@pytest.mark.parametrize(
    ("first", "then", "microseconds"),
    [
        ("1700000000", "1700000100", 1_700_000_100_000_000),
        ("1700000000000", "1700000000500", 1_700_000_000_500_000),
        ("1700000000000000", "1700000000000500", 1_700_000_000_000_500),
        ("1700000000000000000", "1700000000000500000", 1_700_000_000_000_500),
        ("5", "6", None),
    ],
)
def test_rows_by_integer(
    first: str,
    then: str,
    microseconds: int | None,
    shop: servers.Postgres,
    opened: Open,
) -> None:
    items(shop, "bigint")
    shop.run(f"INSERT INTO shop.items VALUES ('a', 1, NULL, {first})")
    source = opened(shop.url, TIMED)
    assert "updated_at" in source.describe().schema
    cursor = begin(source)
    shop.run(f"INSERT INTO shop.items VALUES ('b', 2, NULL, {then})")
    found = changes_of(source, cursor)
    assert rows_of(found.steps)["b"]["updated_at"] == int(then)
    times = dict(
        zip(
            found.steps[0].batch["item_id"].to_pylist(),  # type: ignore[union-attr]
            found.steps[0].times.tolist(),  # type: ignore[union-attr]
            strict=True,
        )
    )
    if microseconds is None:
        assert (times["b"], found.newest) == (int(then), None)
    else:
        assert times["b"] == microseconds
        assert found.newest == pytest.approx(microseconds / 1e6)


@pytest.mark.parametrize("future", ["'3000-01-01'", "'infinity'"])
def test_a_row_of_the_future_does_not_end_it_all(
    future: str, shop: servers.Postgres, opened: Open
) -> None:
    items(shop)
    shop.run(f"INSERT INTO shop.items VALUES ('future', 1, NULL, {future})")
    source = opened(shop.url, TIMED)
    cursor = changes_of(source, begin(source)).next_cursor
    shop.run("INSERT INTO shop.items VALUES ('a', 1, NULL, now())")
    found = changes_of(source, cursor)
    assert rows_of(found.steps).keys() == {"a"}
    shop.run("INSERT INTO shop.items VALUES ('b', 1, NULL, now())")
    found = changes_of(source, found.next_cursor)
    assert rows_of(found.steps).keys() == {"b"}


def test_several_tables(shop: servers.Postgres, opened: Open) -> None:
    items(shop)
    shop.run(
        "CREATE TABLE shop.late (sku text, price float8, stock int, version int)",
        "CREATE TABLE shop.fixed (item_id text, brand text, updated_at timestamptz)",
        "CREATE TABLE shop.full (item_id text, title text)",
        "INSERT INTO shop.items VALUES ('a', 1, '{x}', 'epoch')",
        "INSERT INTO shop.late VALUES ('a', 10, 3, 1)",
    )
    source = opened(
        shop.url,
        TIMED,
        TableFor("shop.late", "sku", ("price", "stock"), timekey="version"),
        replace(TIMED, name="shop.fixed", static=True),
        TableFor("shop.full", "item_id"),
    )
    cursor = begin(source)
    cursor = changes_of(source, cursor).next_cursor
    shop.run(
        "UPDATE shop.items SET price = 2, tags = '{y}', updated_at = now()",
        "INSERT INTO shop.fixed VALUES ('a', 'b', now())",
        "INSERT INTO shop.full VALUES ('a', 't')",
    )
    found = changes_of(source, cursor)
    # The later table decides about prices.
    assert rows_of(found.steps) == {"a": {"item_id": "a", "tags": ["y"]}}
    shop.run("UPDATE shop.late SET price = 20, version = 2")
    found = changes_of(source, found.next_cursor)
    assert rows_of(found.steps) == {"a": {"item_id": "a", "price": 20.0, "stock": 3}}


def test_no_timekey_no_changes(shop: servers.Postgres, opened: Open) -> None:
    items(shop)
    assert opened(shop.url, replace(TIMED, timekey=None)).changes(None) is None
    assert opened(shop.url, replace(TIMED, static=True)).changes(None) is None
    with pytest.raises(SourceError, match="'price' is neither a timestamp nor"):
        opened(shop.url, replace(TIMED, timekey="price")).describe()


def test_conditions_hold_for_changes(shop: servers.Postgres, opened: Open) -> None:
    items(shop)
    source = opened(shop.url, replace(TIMED, condition="price < 5 OR price IS NULL"))
    cursor = begin(source)
    shop.run(
        "INSERT INTO shop.items VALUES ('a', 1, NULL, now()), ('b', 9, NULL, now())"
    )
    assert rows_of(changes_of(source, cursor).steps).keys() == {"a"}


def test_a_table_that_changed_its_columns(shop: servers.Postgres, opened: Open) -> None:
    items(shop)
    source = opened(shop.url, TIMED)
    cursor = begin(source)
    shop.run(
        "ALTER TABLE shop.items DROP COLUMN tags",
        "INSERT INTO shop.items VALUES ('a', 1, now())",
    )
    with pytest.raises(SourceError, match='"tags" does not exist'):
        changes_of(source, cursor)
    assert rows_of(changes_of(source, cursor).steps) == {
        "a": {"item_id": "a", "price": 1.0}
    }


def test_messages_wake_the_reader(shop: servers.Postgres, opened: Open) -> None:
    items(shop)
    source = opened(shop.url, TIMED, listen="Price Changes")
    assert source.describe().follows
    cursor = begin(source)
    # The first look, since messages may have been lost before it.
    cursor = changes_of(source, cursor).next_cursor
    began = time.monotonic()
    assert changes_of(source, cursor, wait=0.2).steps == []
    assert time.monotonic() - began >= 0.19
    shop.run(
        "INSERT INTO shop.items VALUES ('quiet', 1, NULL, now())",
    )
    assert changes_of(source, cursor, wait=0.1).steps == []
    shop.run("INSERT INTO shop.items VALUES ('a', 1, NULL, now())")
    shop.run("NOTIFY \"Price Changes\", 'whatever'")
    # It comes long before the next look that is due by time.
    found = changes_of(source, cursor, wait=30.0)
    assert rows_of(found.steps).keys() == {"quiet", "a"}
    assert changes_of(source, found.next_cursor, wait=0.1).steps == []


@pytest.fixture
def mortal() -> Iterator[servers.Postgres]:
    """A server that may be killed."""
    server = servers.start_postgres()
    yield server
    server.remove()


@pytest.mark.parametrize("listen", [None, "prices"])
def test_outage(listen: str | None, mortal: servers.Postgres, opened: Open) -> None:
    mortal.run("CREATE SCHEMA shop")
    items(mortal)
    mortal.run("INSERT INTO shop.items VALUES ('a', 1, NULL, now())")
    source = opened(mortal.url, TIMED, listen=listen)
    cursor = changes_of(source, begin(source)).next_cursor
    mortal.stop(signal.SIGQUIT)
    with pytest.raises(SourceError) as caught:
        changes_of(source, cursor)
    assert servers.PASSWORD not in str(caught.value)
    with pytest.raises(SourceError, match=r"PostgreSQL: .*onnect"):
        source.describe()
    with pytest.raises(SourceError, match=r"PostgreSQL: .*onnect"):
        source.snapshot()
    mortal.start()
    mortal.run("INSERT INTO shop.items VALUES ('b', 2, NULL, now())")
    found = changes_of(source, cursor)
    assert "b" in rows_of(found.steps)
    _, batches = source.snapshot()
    assert sum(batch.num_rows for batch in batches) == 2


def test_messages_are_heard_again_after_the_connection_was_cut(
    shop: servers.Postgres, opened: Open
) -> None:
    items(shop)
    source = opened(shop.url, TIMED, listen="prices")
    cursor = changes_of(source, begin(source)).next_cursor
    shop.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'procserver'",
        "INSERT INTO shop.items VALUES ('a', 1, NULL, now())",
        "NOTIFY prices",
    )

    failures: list[str] = []

    def look() -> Any:
        try:
            return changes_of(source, cursor, wait=0.1).steps
        except SourceError as error:
            failures.append(str(error))
            return None

    assert rows_of(until(look)).keys() == {"a"}
    assert all("LISTEN prices" in text for text in failures)
