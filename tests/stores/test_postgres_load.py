"""PostgreSQL: loads, types, tables, names, conditions."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import servers
from item_sources import SourceFor, TableFor
from scripted import QUICK, Loop, by_hand, eventually
from source_steps import until

from cython_ext.column import Kind
from procserver.errors import SourceError
from procserver.itemcache import refresh, sources
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.guards import Limits
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.sources import (
    ROW_TIME,
    ItemSource,
    open_source,
    postgres_link,
)

Open = Callable[..., ItemSource]
ITEMS = TableFor("shop.items", "item_id")


def load(control: ControlSegment, source: ItemSource) -> Generation:
    refresh.build(source, control)
    return CacheReader(control.name).current()


def test_every_type(
    shop: servers.Postgres, control: ControlSegment, opened: Open
) -> None:
    shop.run(
        "CREATE TYPE shop.colour AS ENUM ('red', 'green')",
        """CREATE TABLE shop.items (item_id text, i2 smallint, i4 integer, i8 bigint,
        f4 real, f8 double precision, flag boolean, n numeric(20, 6), v varchar(9),
        c char(4), u uuid, e shop.colour, texts text[], ints int[], longs bigint[],
        floats real[], doubles float8[], flags boolean[], numbers numeric[])""",
        """INSERT INTO shop.items VALUES ('a', -2, 3, 9007199254740993, 1.5, 2.25, true,
        12345.678901, 'é', 'ab', '00000000-0000-0000-0000-00000000000f', 'red',
        '{x,NULL,"y z"}', '{1,-2}', '{9007199254740993}', '{0.5}', '{0.25,NULL}',
        '{t,f}', '{1.5,2}')""",
        "INSERT INTO shop.items (item_id) VALUES ('b')",
    )
    source = opened(shop.url, ITEMS)
    about = source.describe()
    assert (about.key, about.exact, about.follows) == ("item_id", False, False)
    assert about.schema == {
        "item_id": Kind.STRING,
        "i2": Kind.INT32,
        "i4": Kind.INT32,
        "i8": Kind.INT64,
        "f4": Kind.FLOAT32,
        "f8": Kind.FLOAT64,
        "flag": Kind.INT32,
        "n": Kind.FLOAT64,
        "v": Kind.STRING,
        "c": Kind.STRING,
        "u": Kind.STRING,
        "e": Kind.STRING,
        "texts": Kind.LIST_STRING,
        "ints": Kind.LIST_INT32,
        "longs": Kind.LIST_INT64,
        "floats": Kind.LIST_FLOAT32,
        "doubles": Kind.LIST_FLOAT64,
        "flags": Kind.LIST_INT32,
        "numbers": Kind.LIST_FLOAT64,
    }
    generation = load(control, source)
    assert generation.get("a") == {
        "item_id": "a",
        "i2": -2,
        "i4": 3,
        "i8": 9007199254740993,
        "f4": 1.5,
        "f8": 2.25,
        "flag": 1,
        "n": 12345.678901,
        "v": "é",
        "c": "ab",
        "u": "00000000-0000-0000-0000-00000000000f",
        "e": "red",
        "texts": ["x", None, "y z"],
        "ints": [1, -2],
        "longs": [9007199254740993],
        "floats": [0.5],
        "doubles": [0.25, None],
        "flags": [1, 0],
        "numbers": [1.5, 2.0],
    }
    empty = generation.get("b")
    assert empty is not None
    assert {name for name, cell in empty.items() if cell is not None} == {"item_id"}


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [("hologres", "adbc_driver_postgresql.dbapi", "postgres"), ("redis",) * 3],
)
def test_a_missing_driver_names_the_extra(
    kind: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in [n for n in sys.modules if n.startswith(f"{sources.__name__}.")]:
        if name.rpartition(".")[2].startswith(("postgres", "redis")):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SourceError, match=rf"pip install 'procserver\[{extra}\]'"):
        open_source(SourceFor("x://h", (ITEMS,), kind))


@pytest.mark.parametrize("kind", ["hologres", "postgres", "postgresql"])
def test_all_names_of_the_type(kind: str, shop: servers.Postgres, opened: Open) -> None:
    shop.run("CREATE TABLE shop.items (item_id bigint, x int)")
    assert opened(shop.url, ITEMS, kind=kind).describe().schema["x"] == Kind.INT32


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        ("jsonb", "has type jsonb; supported are"),
        ("timestamptz", "has type timestamptz"),
        ("date", "has type date"),
        ("bytea", "has type bytea"),
        ("interval", "has type interval"),
        ("point", "has type point"),
    ],
)
def test_types_that_no_feature_has(
    type_: str, text: str, shop: servers.Postgres, opened: Open
) -> None:
    shop.run(f"CREATE TABLE shop.items (item_id text, x {type_}, y int)")
    with pytest.raises(SourceError, match=f"column 'x' {text}.*leave it out"):
        opened(shop.url, ITEMS).describe()
    chosen = replace(ITEMS, value=("y",))
    assert list(opened(shop.url, chosen).describe().schema) == ["item_id", "y"]


def test_a_view_casts_what_has_no_kind(
    shop: servers.Postgres, control: ControlSegment, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.raw (item_id text, at timestamptz, doc jsonb)",
        "INSERT INTO shop.raw VALUES ('a', 'epoch', '{\"k\": 1}')",
        "CREATE VIEW shop.items AS SELECT item_id, doc::text AS doc,"
        " extract(epoch FROM at)::int8 AS at FROM shop.raw",
    )
    generation = load(control, opened(shop.url, ITEMS))
    assert generation.get("a") == {"item_id": "a", "doc": '{"k": 1}', "at": 0}


def test_tables_are_merged_by_key(
    shop: servers.Postgres, control: ControlSegment, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.base (item_id text, price float8, tags text[])",
        "INSERT INTO shop.base VALUES ('a', 1, '{x}'), ('b', 2, NULL), (NULL, 9, NULL)",
        "CREATE TABLE shop.late (sku text, price float8, stock int, other int)",
        "INSERT INTO shop.late VALUES"
        " ('b', 30, 7, 0), ('c', 40, 8, 0), ('a', NULL, 9, 0)",
    )
    source = opened(
        shop.url,
        TableFor("shop.base", "item_id"),
        TableFor("shop.late", "sku", ("price", "stock")),
    )
    report = refresh.build(source, control)
    assert report.skipped == {"null_key": 1}
    generation = CacheReader(control.name).current()
    assert generation.item_count == 3
    assert [generation.get(i) for i in "abc"] == [
        {"item_id": "a", "price": 1.0, "tags": ["x"], "stock": 9},
        {"item_id": "b", "price": 30.0, "tags": None, "stock": 7},
        {"item_id": "c", "price": 40.0, "tags": None, "stock": 8},
    ]


def test_conditions(
    shop: servers.Postgres,
    control: ControlSegment,
    opened: Open,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id int, kind text)",
        "INSERT INTO shop.items SELECT i, 'k' || i % 3 FROM generate_series(1, 30) i",
    )
    # A comment at the end must not swallow what follows.
    condition = "item_id < 10 OR kind = 'k0' -- and so on"
    with caplog.at_level(logging.INFO, "procserver.itemcache"):
        source = opened(shop.url, replace(ITEMS, condition=condition))
    assert "only rows where item_id < 10 OR" in caplog.text
    assert load(control, source).item_count == 9 + 7
    broken = opened(shop.url, replace(ITEMS, condition="nosuch > 1"))
    with pytest.raises(SourceError, match='column "nosuch" does not exist'):
        load(control, broken)
    assert CacheReader(control.name).current().item_count == 16


def test_names_are_quoted_and_folded_as_sql_does(
    shop: servers.Postgres, control: ControlSegment, opened: Open
) -> None:
    shop.run(
        'CREATE TABLE shop."My.Items; ""x""" ("Item Id" int, "Größe" int, plain int)',
        'INSERT INTO shop."My.Items; ""x""" VALUES (1, 2, 3)',
        "CREATE TABLE shop.lower (itemid int, price int)",
        "INSERT INTO shop.lower VALUES (5, 6)",
    )
    odd = TableFor('shop."My.Items; ""x"""', "Item Id", ("Größe", "PLAIN"))
    assert load(control, opened(shop.url, odd)).get(1) == {
        "Item Id": 1,
        "Größe": 2,
        "PLAIN": 3,
    }
    folded = TableFor("Shop.Lower", "itemID")
    assert load(control, opened(shop.url, folded)).get(5) == {"itemid": 5, "price": 6}
    for name, text in (
        ("shop.nosuch", "no such table"),
        ("nosuch.items", "no such table"),
        ('shop."open', "quotes are not closed"),
        ("shop..x", "part of the name is empty"),
    ):
        with pytest.raises(SourceError, match=text):
            opened(shop.url, TableFor(name, "id")).describe()
    with pytest.raises(SourceError, match="no column 'nosuch'"):
        opened(shop.url, TableFor("shop.lower", "nosuch")).describe()


def test_rows_are_estimated_once_the_server_knows(
    shop: servers.Postgres, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id int)",
        "INSERT INTO shop.items SELECT generate_series(1, 1000)",
    )
    assert opened(shop.url, ITEMS).describe().rows is None
    shop.run("ANALYZE shop.items")
    assert opened(shop.url, ITEMS).describe().rows == 1000
    assert opened(shop.url, replace(ITEMS, condition="true")).describe().rows is None


def test_the_session_cannot_write(
    shop: servers.Postgres, control: ControlSegment, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id int)",
        "INSERT INTO shop.items VALUES (1)",
        "CREATE FUNCTION shop.drop() RETURNS boolean LANGUAGE plpgsql AS"
        " 'BEGIN DELETE FROM shop.items; RETURN true; END'",
    )
    source = opened(shop.url, replace(ITEMS, condition="shop.drop()"))
    with pytest.raises(SourceError, match="read-only transaction"):
        load(control, source)


def test_a_slow_statement_is_ended(
    shop: servers.Postgres, control: ControlSegment, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id int)",
        "INSERT INTO shop.items VALUES (1)",
    )
    slow = replace(ITEMS, condition="pg_sleep(300) IS NOT NULL")
    source = opened(shop.url, slow, statement_timeout=0.3)
    with pytest.raises(SourceError, match="statement timeout"):
        load(control, source)


def test_all_tables_are_of_one_moment(shop: servers.Postgres, opened: Open) -> None:
    shop.run(
        "CREATE TABLE shop.one (item_id int, x int)",
        "CREATE TABLE shop.two (item_id int, y int)",
        "INSERT INTO shop.one VALUES (1, 1)",
        "INSERT INTO shop.two VALUES (1, 1)",
    )
    source = opened(
        shop.url, TableFor("shop.one", "item_id"), TableFor("shop.two", "item_id")
    )
    with source._link.transaction() as transaction:  # type: ignore[attr-defined]
        assert transaction.table("", "SELECT x FROM shop.one")["x"].to_pylist() == [1]
        shop.run("UPDATE shop.one SET x = 2", "UPDATE shop.two SET y = 2")
        assert transaction.table("", "SELECT y FROM shop.two")["y"].to_pylist() == [1]


def test_a_server_that_knows_less(
    shop: servers.Postgres,
    control: ControlSegment,
    opened: Open,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The ways for servers without our isolation level, and without COPY."""
    beginnings = (("BEGIN ISOLATION LEVEL AS NOWHERE",), postgres_link.BEGINNINGS[1])
    monkeypatch.setattr(postgres_link, "BEGINNINGS", beginnings)
    shop.run(
        "CREATE TABLE shop.items (item_id int, n numeric, t text[])",
        "INSERT INTO shop.items VALUES (1, 1.5, '{a,b}'), (2, NULL, NULL)",
    )
    source = opened(shop.url, ITEMS)
    source._link.copy = False  # type: ignore[attr-defined]
    generation = load(control, source)
    assert "not read as of one moment" in caplog.text
    assert generation.get(1) == {"item_id": 1, "n": 1.5, "t": ["a", "b"]}
    assert generation.get(2) == {"item_id": 2, "n": None, "t": None}


def test_static_tables_are_loaded_once(
    shop: servers.Postgres, control: ControlSegment, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id int, x int)",
        "INSERT INTO shop.items VALUES (1, 1)",
        "CREATE TABLE shop.fixed (item_id int, y int)",
        "INSERT INTO shop.fixed VALUES (1, 1)",
    )
    tables = (ITEMS, TableFor("shop.fixed", "item_id", static=True))
    assert load(control, opened(shop.url, *tables)).get(1) == {
        "item_id": 1,
        "x": 1,
        "y": 1,
    }
    shop.run("UPDATE shop.items SET x = 2", "UPDATE shop.fixed SET y = 2")
    again = load(control, opened(shop.url, *tables))
    assert again.get(1) == {"item_id": 1, "x": 2, "y": 1}
    # Alone it is what a full load is about.
    fixed = replace(tables[1], name='shop."fixed"')
    assert load(control, opened(shop.url, fixed)).get(1) == {"item_id": 1, "y": 2}
    shop.run("UPDATE shop.fixed SET y = 3")
    assert load(control, opened(shop.url, fixed)).get(1) == {"item_id": 1, "y": 3}


def test_a_cut_load_publishes_nothing(
    shop: servers.Postgres, control: ControlSegment, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id int, t text)",
        "INSERT INTO shop.items VALUES (1, 'first')",
    )
    assert load(control, opened(shop.url, ITEMS)).item_count == 1
    shop.run(
        "INSERT INTO shop.items SELECT i, repeat('x', 1000)"
        " FROM generate_series(2, 80000) i"
    )
    source = opened(shop.url, ITEMS)
    _, batches = source.snapshot()
    first = next(iter(batches))
    assert 0 < first.num_rows < 80_000
    shop.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'procserver'"
    )
    with pytest.raises(SourceError, match=r"item table 'shop\.items'"):
        for _ in batches:
            pass
    # The same within a build: the generation before stays.
    failing = _Failing(source, shop)
    with pytest.raises(SourceError, match="item table"):
        refresh.build(failing, control)
    assert CacheReader(control.name).current().item_count == 1


class _Failing:
    """A source whose connection is cut after the first batch."""

    def __init__(self, source: ItemSource, server: servers.Postgres) -> None:
        self._source = source
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def snapshot(self) -> Any:
        cursor, batches = self._source.snapshot()

        def cut() -> Any:
            for batch in batches:
                self._server.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'procserver'"
                )
                yield batch

        return cursor, cut()


def test_a_snapshot_left_alone_gives_its_connection_back(
    shop: servers.Postgres, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id int, t text)",
        "INSERT INTO shop.items SELECT i, repeat('x', 1000)"
        " FROM generate_series(1, 60000) i",
    )

    def connections() -> int:
        import psycopg

        with psycopg.connect(shop.url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name = 'procserver'"
            ).fetchone()
        assert row is not None
        return int(row[0])

    source = opened(shop.url, ITEMS)
    _, unread = source.snapshot()
    _, begun = source.snapshot()
    next(iter(begun))
    begun.close()  # type: ignore[attr-defined]
    del unread
    source.close()
    until(lambda: connections() == 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace(servers.QUOTED, "wrong-secret"),
        lambda url: url.replace("/postgres", "/nosuch"),
        lambda url: url.replace("127.0.0.1", "[bad"),
        lambda url: url.replace(servers.QUOTED, f"with space{servers.PASSWORD}"),
        lambda url: url + "?nosuch=secret-value",
        lambda url: "host=127.0.0.1 password=secret-value nosuch=1",
    ],
)
def test_messages_have_no_credentials(
    change: Callable[[str], str], shop: servers.Postgres
) -> None:
    url = change(shop.url)
    with pytest.raises(SourceError) as caught:
        open_source(SourceFor(url, (ITEMS,), "hologres")).describe()
    chain: BaseException | None = caught.value
    while chain is not None:
        if not chain.__suppress_context__:
            assert chain.__context__ is None
        for secret in (
            "wrong-secret",
            "s3cr",
            "secret-value",
            "with space",
            'r "shop"',
        ):
            assert secret not in str(chain)
        chain = chain.__cause__


def test_rows_come_with_their_times_where_items_end_by_age(
    shop: servers.Postgres, opened: Open
) -> None:
    shop.run(
        "CREATE TABLE shop.items (item_id text, price float8, at timestamptz)",
        "CREATE TABLE shop.late (sku text, stock int, seconds int8)",
        "CREATE TABLE shop.numbered (item_id text, size int, version int8)",
        "INSERT INTO shop.items VALUES ('a', 1, 'epoch'), ('b', 2, NULL),"
        " ('c', 3, '2025-01-01 00:00:00.5+00')",
        "INSERT INTO shop.late VALUES ('a', 1, 1735689600), ('c', 3, 1600000000)",
        "INSERT INTO shop.numbered VALUES ('a', 1, 7)",
    )
    items = TableFor("shop.items", "item_id", timekey="at")
    late = TableFor("shop.late", "sku", ("stock",), timekey="seconds")
    numbered = TableFor("shop.numbered", "item_id", ("size",), timekey="version")

    def times(*tables: TableFor, **more: Any) -> list[dict[str, Any]]:
        source = opened(shop.url, *tables, **more)
        assert ROW_TIME not in source.describe().schema
        _, batches = source.snapshot()
        rows = [row for batch in batches for row in batch.to_pylist()]
        return sorted(rows, key=lambda row: str(row["item_id"]))

    new_year = 1_735_689_600_000_000
    ends = {"item_ttl_minutes": 60.0}
    assert [row[ROW_TIME] for row in times(items, **ends)] == [
        0,
        None,
        new_year + 500_000,
    ]
    # The later one of both tables; "b" has no time in the only one that has it.
    both = times(items, late, **ends)
    assert [row[ROW_TIME] for row in both] == [new_year, None, new_year + 500_000]
    assert both[0] | {ROW_TIME: 0} == {
        "item_id": "a",
        "price": 1.0,
        "stock": 1,
        ROW_TIME: 0,
    }
    assert [row[ROW_TIME] for row in times(numbered, **ends)] == [None]
    assert ROW_TIME not in times(items)[0]


def test_items_of_a_table_end_by_their_timekey(
    shop: servers.Postgres,
    opened: Open,
    control: ControlSegment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Loaded, asked for changes, swept: the whole loop on a real server."""
    hand = by_hand(monkeypatch, time.time_ns() // 1000)
    shop.run(
        "CREATE TABLE shop.items (item_id text PRIMARY KEY, n int8, at timestamptz)",
        "INSERT INTO shop.items SELECT 'i' || i, i, now() - interval '1 hour' * i"
        " FROM generate_series(0, 99) i",
    )
    table = TableFor("shop.items", "item_id", timekey="at")

    def open_it() -> ItemSource:
        return opened(shop.url, table, item_ttl_minutes=50.5 * 60)

    def get(item: str) -> Any:
        return CacheReader(control.name).current().get(item)

    plan = replace(QUICK, ttl=50.5 * 3600, period=0.2)
    loop = Loop(control, open_it, plan, limits=Limits())
    try:
        built = loop.built()
        assert (built.rows, built.skipped["expired"]) == (51, 49)
        assert get("i50")["n"] == 50
        assert get("i51") is None
        shop.run("UPDATE shop.items SET n = 7, at = now() WHERE item_id IN ('i51')")
        eventually(lambda: get("i51") is not None)
        assert get("i51")["n"] == 7
        hand.go(3600)
        eventually(lambda: get("i50") is None)
        assert get("i49") is not None
    finally:
        loop.end()
