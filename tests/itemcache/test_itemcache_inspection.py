"""What humans are told of a cache: segments, one item, statistics."""

import json
import math

import pyarrow as pa
from test_itemcache_companion import DIGEST, Doubled, Items, batch
from test_itemcache_guards import Table

from procserver import shm
from procserver.itemcache import adoption, inspection, refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.delta import DeltaWriter
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.sources import Delete, Upsert


def service_of(control: ControlSegment) -> str:
    return control.name.split(".")[1]


def test_nothing_and_nothing_yet(control: ControlSegment) -> None:
    assert inspection.find("no-such-service") == []
    [found] = inspection.find(service_of(control))
    assert (found.is_alive, found.is_kept) == (True, False)
    tree = inspection.describe(found)
    assert tree["generation"] == 0
    assert [one["name"] for one in tree["segments"]] == [control.name]


def test_what_is_published(control: ControlSegment) -> None:
    refresh.build(Items(batch(range(100))), control, companion=Doubled())
    [found] = inspection.find(service_of(control))
    tree = inspection.describe(found, verify=True)
    assert (tree["items"], tree["rows"], tree["generation"]) == (100, 100, 1)
    assert tree["schema"] == {"id": "STRING", "n": "INT64"}
    assert tree["companions"] == [
        {
            "digest": DIGEST[:12],
            "bytes": tree["companions"][0]["bytes"],
            "columns": {"double": "INT64"},
        }
    ]
    assert 0 <= tree["age_seconds"] < 600
    assert tree["verified"] is True
    assert {one["name"]: one["bytes"] > 0 for one in tree["segments"]} == dict.fromkeys(
        shm.list_segments(control.name.removesuffix("control")), True
    )
    json.dumps(tree)


def test_one_item(control: ControlSegment) -> None:
    refresh.build(Items(batch(range(100))), control, companion=Doubled())
    [found] = inspection.find(service_of(control))
    assert inspection.get(found, "nobody") is None
    tree = inspection.get(found, "i7")
    assert tree is not None
    assert tree["raw"] == {"id": "i7", "n": 7}
    assert tree["generated"] == {DIGEST[:12]: {"double": 14}}
    maps = pa.array([[("a", 1.5), ("b", math.nan)]], pa.map_(pa.string(), pa.float64()))
    lists = pa.array([[[1.0], None]], pa.list_(pa.list_(pa.float64())))
    refresh.build(Table(1, id=[12], m=maps, l=lists), control)
    tree = inspection.get(found, "12")
    assert tree is not None
    assert tree["raw"] == {"id": 12, "m": {"a": 1.5, "b": "nan"}, "l": [[1.0], None]}


def test_statistics(control: ControlSegment) -> None:
    rows = 10_000
    refresh.build(
        Table(
            rows,
            id=[f"i{i}" for i in range(rows)],
            n=[None if i % 4 == 0 else float(i) for i in range(rows)],
            v=[[1.0, 2.0]] * (rows - 1) + [[math.inf]],
            empty=pa.nulls(rows, pa.int32()),
        ),
        control,
    )
    [found] = inspection.find(service_of(control))
    tree = inspection.statistics(found, sample=None)
    assert (tree["rows"], tree["looked_at"]) == (rows, rows)
    columns = tree["columns"]
    assert list(columns) == ["v", "n", "id", "empty"]
    assert columns["n"]["null_share"] == 0.25
    assert columns["n"]["bytes"] == 8 * (rows - rows // 4)
    assert columns["n"]["values"]["most"] == rows - 1
    assert columns["v"]["widths"] == {
        **{"least": 1.0, "median": 2.0, "most": 2.0, "not_finite": 0}
    }
    assert (columns["v"]["distinct"], columns["v"]["more_distinct"]) == (2, False)
    assert columns["id"]["more_distinct"] is True
    assert columns["empty"]["null_share"] == 1
    json.dumps(tree)
    tree = inspection.statistics(found, sample=100)
    assert tree["looked_at"] == 100
    assert tree["columns"]["n"]["kind"] == "FLOAT64"


def test_an_empty_table_and_what_was_kept(control: ControlSegment) -> None:
    refresh.build(Table(0, id=pa.array([], pa.string())), control)
    service = service_of(control)
    [found] = inspection.find(service)
    assert inspection.statistics(found)["columns"]["id"]["null_share"] == 0
    assert inspection.get(found, "x") is None
    adoption.keep(control)
    [found] = inspection.find(service)
    assert found.is_kept
    assert inspection.describe(found)["items"] == 0
    for name in shm.list_segments(f"/{adoption.KEPT}{service}."):
        shm.unlink(name)
    assert inspection.find(service) == []


def test_changes_are_counted(control: ControlSegment) -> None:
    refresh.build(Items(batch(range(100))), control, companion=Doubled())
    generation = CacheReader(control.name).current()
    with DeltaWriter(control, generation, makers=[Doubled()]) as delta:
        delta.apply([Upsert(batch(range(95, 110)))])
        delta.apply([Delete(pa.array(["i0", "i1", "i109", "nobody"]))])
        # One that ends and comes again is one item.
        delta.apply([Upsert(batch([1, 109]))])
        # What is not published does not count.
        delta.apply([Upsert(batch([500]))], publish=False)
        assert delta.view().count_items() == 110
    [found] = inspection.find(service_of(control))
    for tree in (inspection.describe(found), inspection.statistics(found)):
        assert (tree["items"], tree["rows"]) == (109, 100)
        assert tree["delta_rows"] == 20
        assert tree["delta_bytes"] > 0
    assert tree["bytes"] == generation.nbytes
