"""Redis hashes: patterns, types told and inferred, what is no item."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import servers
from item_sources import SourceFor, TableFor

from cython_ext.column import Kind
from procserver.errors import SourceError
from procserver.itemcache import refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.sources import ItemSource, open_source, texts

Open = Callable[..., ItemSource]
ITEMS = TableFor("item:*", "item_id")


def load(control: ControlSegment, source: ItemSource) -> Generation:
    refresh.build(source, control)
    return CacheReader(control.name).current()


def put(client: Any, **hashes: dict[str, Any]) -> None:
    for key, fields in hashes.items():
        client.hset(key.replace("__", ":"), mapping=fields)


def test_inferred_types(
    client: Any, redis_server: servers.Redis, control: ControlSegment, opened: Open
) -> None:
    put(
        client,
        item__a={"price": "1.5", "stock": 7, "code": "007", "title": "é"},
        item__b={"price": "2", "stock": "", "code": "12", "extra": "x"},
        other__c={"price": "n/a"},
    )
    source = opened(redis_server.url, ITEMS, kind="redis")
    assert isinstance(source, ItemSource)
    about = source.describe()
    assert about.schema == {
        "item_id": Kind.STRING,
        "code": Kind.STRING,
        "extra": Kind.STRING,
        "price": Kind.FLOAT64,
        "stock": Kind.INT64,
        "title": Kind.STRING,
    }
    assert (about.key, about.exact, about.follows) == ("item_id", False, False)
    generation = load(control, source)
    assert generation.item_count == 2
    empty = {"extra": None, "title": None}
    assert generation.get("a") == empty | {
        "item_id": "a",
        "price": 1.5,
        "stock": 7,
        "code": "007",
        "title": "é",
    }
    assert generation.get("b") == empty | {
        "item_id": "b",
        "price": 2.0,
        "stock": None,
        "code": "12",
        "extra": "x",
    }
    assert source.changes(None) is None


def test_told_types_and_chosen_fields(
    client: Any, redis_server: servers.Redis, control: ControlSegment, opened: Open
) -> None:
    put(
        client,
        item__1={
            "price": "1.5",
            "tags": '["x", null, "y"]',
            "codes": "1\x1d2",
            "weights": '{"a": 0.5, "b": 1}',
            "pairs": "k:1\x1dlong:key:2",
            "nested": "[[1.5], [], [2, 3]]",
            "unused": "z",
        },
        item__2={"price": "dear", "tags": "alone", "codes": "1\x1dx"},
    )
    table = TableFor(
        "item:*",
        "item_id",
        ("price", "tags", "codes", "weights", "pairs", "nested", "absent"),
        types=(
            ("price", "float32"),
            ("tags", "list<string>"),
            ("codes", "list<int64>"),
            ("weights", "map<string,float32>"),
            ("pairs", "map<string,int32>"),
            ("nested", "list<list<float32>>"),
            ("absent", "int32"),
        ),
    )
    source = opened(redis_server.unix_url, table, kind="redis")
    report = refresh.build(source, control)
    assert report.skipped == {"bad_value": 2}
    generation = CacheReader(control.name).current()
    assert generation.schema["weights"] == Kind.MAP_STRING_FLOAT32
    assert generation.get("1") == {
        "item_id": "1",
        "price": 1.5,
        "tags": ["x", None, "y"],
        "codes": [1, 2],
        "weights": [("a", 0.5), ("b", 1.0)],
        "pairs": [("k", 1), ("long:key", 2)],
        "nested": [[1.5], [], [2.0, 3.0]],
        "absent": None,
    }
    second = generation.get("2")
    assert second is not None
    assert second["tags"] == ["alone"]
    assert (second["price"], second["codes"]) == (None, None)


def test_what_is_no_item(
    redis_server: servers.Redis, client: Any, control: ControlSegment, opened: Open
) -> None:
    put(client, item__a={"x": "1"}, item__b={"y": "1"}, itemx={"x": "1"})
    client.set("item:text", "no hash")
    client.hset(b"item:\xff", mapping={"x": "1"})
    client.hset("item:bytes", mapping={"x": b"\xff"})
    client.hset("item:", mapping={"x": "1"})
    table = TableFor("item:*", "item_id", ("x",), types=(("x", "string"),))
    report = refresh.build(opened(redis_server.url, table, kind="redis"), control)
    assert report.skipped == {
        "not_a_hash": 1,
        "bad_key": 1,
        "bad_value": 1,
        "no_field": 1,
    }
    generation = CacheReader(control.name).current()
    assert generation.item_count == 2
    assert generation.get("a") == {"item_id": "a", "x": "1"}
    assert generation.get("bytes") == {"item_id": "bytes", "x": None}


def test_patterns(
    redis_server: servers.Redis, client: Any, control: ControlSegment, opened: Open
) -> None:
    put(client, **{"i[a]1:x": {"n": "1"}, "ia1:x": {"n": "2"}, "i[a]2:y": {"n": "3"}})
    generation = load(
        control, opened(redis_server.url, TableFor("i[a]*:x", "id"), kind="redis")
    )
    assert generation.item_count == 1
    assert generation.get("1") == {"id": "1", "n": 1}


def test_several_tables_and_many_hashes(
    redis_server: servers.Redis, client: Any, control: ControlSegment, opened: Open
) -> None:
    pipe = client.pipeline(transaction=False)
    for i in range(10_000):
        pipe.hset(f"item:{i}", mapping={"price": i / 4, "title": f"t{i}"})
        if i % 2:
            pipe.hset(f"stock:{i}", mapping={"stock": i, "price": -1})
    pipe.execute()
    one = load(control, opened(redis_server.url, ITEMS, kind="redis"))
    assert one.item_count == 10_000
    assert one.get("9999") == {"item_id": "9999", "price": 9999 / 4, "title": "t9999"}
    source = opened(
        redis_server.url,
        ITEMS,
        TableFor("stock:*", "sku", types=(("price", "float64"),)),
        kind="redis",
    )
    both = load(control, source)
    assert both.item_count == 10_000
    assert both.get("8") == {
        "item_id": "8",
        "price": 2.0,
        "title": "t8",
        "stock": None,
    }
    assert both.get("9") == {"item_id": "9", "price": -1, "title": "t9", "stock": 9}


def test_nothing_there(redis_server: servers.Redis, client: Any, opened: Open) -> None:
    with pytest.raises(SourceError, match="no such hash"):
        opened(redis_server.url, ITEMS, kind="redis").describe()
    told = TableFor("item:*", "item_id", types=(("x", "int32"),))
    source = opened(redis_server.url, told, kind="redis")
    assert source.describe().schema == {"item_id": Kind.STRING, "x": Kind.INT32}
    _, batches = source.snapshot()
    assert list(batches) == []
    with pytest.raises(SourceError, match="is to have a"):
        opened(redis_server.url, TableFor("items", "id"), kind="redis").describe()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda url: url.replace(servers.QUOTED, "wrong-secret"), "password"),
        (lambda url: url.replace("127.0.0.1", "host.invalid"), "host.invalid"),
        (lambda url: url.replace("redis://", "tcp://"), "scheme"),
        (lambda url: url.replace("/0", "/?socket_timeout=secret"), "socket_timeout"),
    ],
)
def test_messages_have_no_credentials(
    change: Callable[[str], str], text: str, redis_server: servers.Redis
) -> None:
    with pytest.raises(SourceError, match=text) as caught:
        open_source(SourceFor(change(redis_server.url), (ITEMS,), "redis")).describe()
    for secret in ("wrong-secret", "s3cr"):
        assert secret not in str(caught.value)


def test_an_outage_during_the_load(control: ControlSegment, opened: Open) -> None:
    server = servers.start_redis()
    try:
        client = server.client()
        pipe = client.pipeline(transaction=False)
        for i in range(40_000):
            pipe.hset(f"item:{i}", "x", i)
        pipe.execute()
        client.close()
        source = opened(server.url, ITEMS, kind="redis")
        _, batches = source.snapshot()
        next(iter(batches))
        server.stop()
        with pytest.raises(SourceError, match=r"item table 'item:\*'"):
            for _ in batches:
                pass
        with pytest.raises(SourceError):
            refresh.build(source, control)
        assert control.state(0) == (0, 0)
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("cells", "type_", "values", "bad"),
    [
        ([b"1", b"", None, b"-3"], "int32", [1, None, None, -3], 0),
        ([b"1", b"2.0", b"2.5", b"x", b"99999999999"], "int32", [1, 2] + [None] * 3, 3),
        ([b"9223372036854775807"], "int64", [2**63 - 1], 0),
        ([b"1", b"9223372036854775807.0"], "int64", [1, None], 1),
        ([b"1e3", b"nan?", b".5"], "float32", [1000.0, None, 0.5], 1),
        ([b"", b"a"], "string", ["", "a"], 0),
        ([b"\xff", b"a"], "string", [None, "a"], 1),
        ([b"[1, 2.5]", b"[1, 2]"], "list<int64>", [None, [1, 2]], 1),
        ([b'[1, true, "a"]'], "list<string>", [["1", "true", "a"]], 0),
        ([b'{"1": "a"}', b"[1]"], "map<int64,string>", [[(1, "a")], None], 1),
        ([b"[[1], 2]", b"1"], "list<list<int32>>", [None, None], 2),
        ([b"[" * 100_000], "list<int32>", [None], 1),
        ([b"[1" + b"0" * 400 + b"]"], "list<float64>", [None], 1),
    ],
)
def test_cells(
    cells: list[bytes | None], type_: str, values: list[Any], bad: int
) -> None:
    array, found = texts.to_array(cells, texts.type_named(type_))
    assert (array.to_pylist(), found) == (values, bad)
    assert array.type == texts.type_named(type_)


@pytest.mark.parametrize(
    ("cells", "type_"),
    [
        ([b"1", b"-20", b""], pa.int64()),
        ([b"1", b"0.5"], pa.float64()),
        ([b"1", b"1e400"], pa.string()),
        ([b"007"], pa.string()),
        ([b"1", b"00.5"], pa.string()),
        ([b"1234567890123456789012"], pa.float64()),
        ([b"nan"], pa.string()),
        ([b"", b""], pa.string()),
        ([json.dumps([1]).encode()], pa.string()),
    ],
)
def test_inference(cells: list[bytes], type_: pa.DataType) -> None:
    assert texts.inferred(cells) == type_
