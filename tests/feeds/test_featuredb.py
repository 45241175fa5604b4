"""FeatureDB, by a server that answers as its public SDKs expect."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import featuredb_server
import pytest
from featuredb_server import PASSWORD, TOKEN, USER, FeatureDB, View, encode

from cython_ext.column import Kind
from procserver.config.secret import Secret
from procserver.errors import SourceError
from procserver.itemcache.sources import (
    CursorLost,
    Delete,
    ItemSource,
    Upsert,
    featuredb,
    open_source,
)

TYPES = {
    "i": "int32",
    "l": "int64",
    "f": "float32",
    "d": "float64",
    "s": "string",
    "b": "bool",
    "t": "timestamp",
    "ls": "list<string>",
    "ll": "list<int64>",
    "lf": "list<float32>",
    "m": "map<string,float32>",
    "n": "map<int64,string>",
    "v": "list<list<float32>>",
}
ROW: dict[str, Any] = {
    "i": -7,
    "l": 2**40,
    "f": 0.5,
    "d": 1e300,
    "s": "grün\0",
    "b": True,
    "t": 1_700_000_000_123,
    "ls": ["a", "", "äö"],
    "ll": [1, -(2**60)],
    "lf": [0.25],
    "m": {"x": 1.5, "": -2.0},
    "n": {5: "five", -1: ""},
    "v": [[1.0, 2.0], [], [3.0]],
}
READ = {**ROW, "b": 1, "m": list(ROW["m"].items()), "n": list(ROW["n"].items())}
NAME = "inst-1/shop/items"


@dataclass(frozen=True)
class Table:
    name: str | None = "items"
    key: str | None = "item_id"
    value: tuple[str, ...] | None = None
    condition: str | None = None
    timekey: str | None = None
    static: bool = False
    overlap: float | None = None
    types: tuple[tuple[str, str], ...] | None = tuple(TYPES.items())


@dataclass(frozen=True)
class Config:
    url: object
    tables: tuple[Table, ...] = (Table(),)
    remote_type: str = "featuredb"
    fs_project: str | None = "shop"
    featuredb_username: str | None = USER
    featuredb_password: object = Secret(PASSWORD)
    featuredb_token: object = Secret(TOKEN)


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[FeatureDB]:
    monkeypatch.setattr(featuredb, "POLL", 0.0)
    server = FeatureDB()
    server.views[NAME] = View({"a": encode(TYPES, ROW), "b": encode(TYPES, {})})
    yield server
    server.stop()


def rows_of(source: ItemSource) -> tuple[object, dict[str, dict[str, Any]]]:
    cursor, batches = source.snapshot()
    rows = [row for batch in batches for row in batch.to_pylist()]
    return cursor, {row.pop("item_id"): row for row in rows}


def test_every_type_of_a_snapshot(database: FeatureDB) -> None:
    source = open_source(Config(database.url))
    about = source.describe()
    assert (about.key, about.follows) == ("item_id", True)
    assert about.schema["v"] == Kind.LISTS_FLOAT32
    assert about.schema["b"] == Kind.INT32
    cursor, rows = rows_of(source)
    assert cursor == [1000]
    assert rows == {"a": READ, "b": dict.fromkeys(TYPES)}


def test_rows_older_than_a_field_and_chosen_columns(database: FeatureDB) -> None:
    older = {name: TYPES[name] for name in ("i", "l")}
    database.views[NAME].rows["c"] = encode(older, {"i": 1, "l": 2})
    table = Table(value=("l", "v"))
    _, rows = rows_of(open_source(Config(database.url, (table,))))
    assert rows["a"] == {"l": ROW["l"], "v": ROW["v"]}
    assert rows["c"] == {"l": 2, "v": None}


def test_random_rows(database: FeatureDB) -> None:
    chance = random.Random(7)

    def some(kind: str) -> Any:
        if kind == "string":
            return "".join(chance.choices("aß漢\0 ", k=chance.randrange(5)))
        if kind == "float32":
            return chance.randrange(-100, 100) / 4
        return chance.randrange(-(2**31), 2**31)

    def value(kind: str) -> Any:
        if chance.random() < 0.2:
            return None
        if kind == "bool":
            return chance.random() < 0.5
        if kind == "list<list<float32>>":
            count = chance.randrange(4)
            return [[some("float32")] * chance.randrange(3) for _ in range(count)]
        if kind.startswith("list<"):
            return [some(kind[5:-1]) for _ in range(chance.randrange(4))]
        if kind.startswith("map<"):
            key, _, held = kind[4:-1].partition(",")
            return {some(key): some(held) for _ in range(chance.randrange(4))}
        return some(kind)

    expected = {}
    for number in range(200):
        row = {name: value(kind) for name, kind in TYPES.items()}
        database.views[NAME].rows[f"r{number}"] = encode(TYPES, row)
        expected[f"r{number}"] = {
            name: list(cell.items())
            if isinstance(cell, dict)
            else (int(cell) if isinstance(cell, bool) else cell)
            for name, cell in row.items()
        }
    _, rows = rows_of(open_source(Config(database.url)))
    assert {name: rows[name] for name in expected} == expected


def test_rows_cut_anywhere_are_bad_or_shorter(database: FeatureDB) -> None:
    whole = encode(TYPES, ROW)
    view = database.views[NAME]
    view.rows = {str(end): whole[:end] for end in range(2, len(whole) + 1)}
    source = open_source(Config(database.url))
    _, rows = rows_of(source)
    assert rows[str(len(whole))] == READ
    assert rows["2"] == dict.fromkeys(TYPES)
    assert len(rows) + source.skipped["bad_row"] == len(whole) - 1
    assert source.skipped["bad_row"] > 100


@pytest.mark.parametrize(
    "data",
    [
        b"G1\x01",
        b"F2\x01",
        b"F1" + b"\x01" * 4 + b"\x00\xff\xff\xff\xff",
        b"F1" + b"\x01" * 4 + b"\x00\x01\x00\x00\x00\xff",
        b"F1" + b"\x01" * 7 + b"\x00\xff\xff\xff\xff",
        b"F1" + b"\x01" * 8 + b"\x00\xff\xff\xff\xff",
        b"F1" + b"\x01" * 12 + b"\x00\xff\xff\xff\xff\x00\x00\x00\x00",
        b"F1" + b"\x01" * 12 + b"\x00\x01\0\0\0\x02\0\0\0\x01\0\0\0" + b"\0" * 8,
    ],
)
def test_rows_of_garbage_are_counted(database: FeatureDB, data: bytes) -> None:
    database.views[NAME].rows["bad"] = data
    source = open_source(Config(database.url))
    _, rows = rows_of(source)
    assert set(rows) == {"a", "b"}
    assert source.skipped["bad_row"] == 1


def test_changes_and_deletions(database: FeatureDB) -> None:
    source = open_source(Config(database.url))
    cursor, _ = rows_of(source)
    database.now = 1010
    database.views[NAME].changes = [
        (999, {"b": encode(TYPES, {"i": 0})}),
        (1005, {"a": encode(TYPES, {"i": 1}), "c": encode(TYPES, {"i": 2})}),
        (1006, {"b": None}),
    ]
    changes = source.changes(cursor)
    assert changes is not None
    assert changes.next_cursor == [1010]
    upserts = [step for step in changes.steps if isinstance(step, Upsert)]
    cells = [row for step in upserts for row in step.batch.to_pylist()]
    assert [(row["item_id"], row["i"]) for row in cells] == [("a", 1), ("c", 2)]
    deletes = [step for step in changes.steps if isinstance(step, Delete)]
    assert [key for step in deletes for key in step.keys.to_pylist()] == ["b"]
    again = source.changes(changes.next_cursor)
    assert again is not None
    assert not again.steps


def test_looks_keep_their_distance(
    database: FeatureDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featuredb, "POLL", 3600.0)
    source = open_source(Config(database.url))
    cursor, _ = rows_of(source)
    assert source.changes(cursor) is not None
    asked = len(database.asked)
    changes = source.changes(cursor, 0.01)
    assert changes is not None
    assert (list(changes.steps), changes.next_cursor) == ([], cursor)
    assert len(database.asked) == asked


def test_several_views_are_merged(database: FeatureDB) -> None:
    texts = {"title": "string", "i": "int32"}
    database.views["inst-1/shop/texts"] = View(
        {"a": encode(texts, {"title": "Apple"}), "t": encode(texts, {"i": 3})}
    )
    tables = (Table(value=("i",)), Table("texts", types=tuple(texts.items())))
    source = open_source(Config(database.url, tables))
    cursor, rows = rows_of(source)
    assert cursor == [1000, 1000]
    assert rows == {
        "a": {"i": -7, "title": "Apple"},
        "b": {"i": None, "title": None},
        "t": {"i": 3, "title": None},
    }


def test_a_cursor_that_is_too_old(database: FeatureDB) -> None:
    source = open_source(Config(database.url))
    database.views[NAME].oldest = 500
    with pytest.raises(CursorLost, match="410"):
        source.changes([10])
    for cursor in (None, [1, 2], "x"):
        with pytest.raises(CursorLost, match="other tables"):
            source.changes(cursor)


def test_an_answer_that_ends_early(database: FeatureDB) -> None:
    for number in range(50):
        database.views[NAME].rows[f"r{number}"] = encode(TYPES, ROW)
    whole = len(featuredb_server.stream(database.views[NAME].rows))
    source = open_source(Config(database.url))
    assert len(rows_of(source)[1]) == 52
    taken, batches = source.snapshot()
    assert taken == [1000]
    database.cut = whole // 2
    with pytest.raises(SourceError, match="'items' cannot be read"):
        list(batches)


def test_failures_are_told_without_secrets(database: FeatureDB) -> None:
    source = open_source(Config(database.url))
    database.fault = 503
    with pytest.raises(SourceError, match=r"answers 503: .*not now") as refused:
        source.snapshot()
    assert PASSWORD not in str(refused.value)
    database.fault = 0
    wrong = open_source(Config(database.url, featuredb_password=Secret("wrong")))
    with pytest.raises(SourceError, match="401"):
        wrong.snapshot()
    unknown = open_source(Config(database.url, (Table("nothing"),)))
    with pytest.raises(SourceError, match="'nothing': FeatureDB answers 404"):
        unknown.snapshot()
    database.stop()
    with pytest.raises(SourceError, match="refused"):
        source.snapshot()
    database.__post_init__()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Config("http://h/i", fs_project=None), "fs_project is missing"),
        (Config("http://h:80"), "names no instance"),
        (Config("http://h/i", ()), "tables are missing"),
        (Config("http://h/i", (Table(types=None),)), "types are missing"),
        (Config("http://h/i", (Table(value=("x",)),)), "no type of 'x'"),
        (Config("http://h/i", (Table(name=None),)), "needs a name"),
        (
            Config("http://h/i", (Table(types=(("x", "list<list<int32>>"),)),)),
            "no type list<list<int32>>",
        ),
        (Config("http://h/i", featuredb_username=None), "featuredb_username"),
    ],
)
def test_what_is_missing_is_named(config: Config, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        open_source(config)


def test_the_encoder_of_the_tests_agrees_with_the_description() -> None:
    assert encode({"a": "int32", "b": "string"}, {"a": 1, "b": "x"}) == (
        b"F1\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00x"
    )
    assert encode({"l": "list<string>"}, {"l": ["ab", "c"]}) == (
        b"F1\x00\x02\0\0\0" + b"\0\0\0\0\x02\0\0\0\x03\0\0\0" + b"abc"
    )
