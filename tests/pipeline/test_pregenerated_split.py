"""Features generated ahead or at once: the same bytes, through real shared memory."""

import itertools
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from cython_ext.column import Column, Kind, kind_of_arrow
from procserver.errors import BadFeature
from procserver.fg import FeatureGenerator, parts
from procserver.fg.pregenerated import Pregenerator
from procserver.itemcache import companion, refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.sources import Changes, Description
from procserver.pipeline import RankingPipeline
from procserver.wire.torchrec import TorchRecRequest

sys.path.insert(0, str(Path(__file__).parent.parent / "fg"))

import test_ops_agreement as operators

SERVICE = f"t{os.getpid()}-split"
NUMBERS = itertools.count()
SETTINGS = settings(
    max_examples=int(os.environ.get("FG_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
ITEM_COLUMNS = ("a", "b", "c")


class Rows:
    """An item source in memory; some batches may lack columns."""

    skipped: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, schema: dict[str, Kind], batches: list[pa.RecordBatch]) -> None:
        self.schema = schema
        self.batches = batches

    def describe(self) -> Description:
        return Description("id", self.schema)

    def snapshot(self) -> tuple[object, Iterator[pa.RecordBatch]]:
        return None, iter(self.batches)

    def changes(self, cursor: object) -> Changes | None:
        return None

    def close(self) -> None:
        pass


def source_of(columns: dict[str, pa.Array], ids: pa.Array, cuts: int = 1) -> Rows:
    table = pa.table({"id": ids, **columns})
    size = max(1, len(ids) // cuts)
    kinds = {name: kind_of_arrow(array.type) for name, array in columns.items()}
    return Rows(kinds, table.to_batches(max_chunksize=size))


class Pair:
    """One service twice, with and without features generated ahead."""

    def __init__(
        self, fg_json: Any, source: Rows, *, tile: bool, farm: bool, threads: int = 1
    ) -> None:
        self.control = ControlSegment.create(f"{SERVICE}-{next(NUMBERS)}")
        fg = FeatureGenerator(fg_json, farm_hash=farm)
        self.report = refresh.build(source, self.control, companion=Pregenerator(fg))
        package = SimpleNamespace(input_tile=2 if tile else 0)
        self.ahead, self.plain = (
            RankingPipeline(
                FeatureGenerator(
                    fg_json, farm_hash=farm, threads=threads if digest else 1
                ),
                SimpleNamespace(package=package),  # type: ignore[arg-type]
                CacheReader(self.control.name, digest=digest),
            )
            for digest in (fg.digest, None)
        )

    def close(self) -> None:
        self.control.unlink()
        left = [name for name in os.listdir("/dev/shm") if f".{SERVICE}-" in name]
        assert left == []

    def compare(self, request: TorchRecRequest) -> tuple[int, bool]:
        """Compares bytes; how many tensors were ready, and whether refused."""
        try:
            gathered = self.plain.gather(request)
            wanted = self.plain.generate(gathered)
        except BadFeature as error:
            # With threads, which of several refusals comes first is not told.
            message = f"^{re.escape(str(error))}$"
            if self.ahead._fg.threads > 1:
                message = "."
            with pytest.raises(BadFeature, match=message):
                self.ahead.generate(self.ahead.gather(request))
            return 0, True
        gathered = self.ahead.gather(request)
        found = self.ahead.generate(gathered)
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            assert found[name].dtype == array.dtype, name
            assert found[name].shape == array.shape, name
            assert found[name].tobytes() == array.tobytes(), name
            assert found[name].flags.c_contiguous
            assert found[name].flags.writeable
        return len(gathered.ready), False


def ask(ids: Column, **columns: dict[str, Column]) -> TorchRecRequest:
    parts: dict[str, Any] = {"user": {}, "item": {}, "context": {}} | columns
    return TorchRecRequest(
        debug_level=0, item_ids=ids, faiss_neigh_num=0, meta={}, **parts
    )


# ---------------------------------------------------------------- random services

TEXTS = st.sampled_from(
    [
        *("", "x", "y", "x|y", "|", "x:2", "x:0.5|y:1e9|:3", "7", "-1", "0.1"),
        *("1e99", "0.25|0.5", "中|é", "nan", "k" * 30),
    ]
)
TYPES = {
    "string": (pa.string(), TEXTS | operators.TEXTS),
    "int32": (pa.int32(), st.integers(-3, 9)),
    "int64": (pa.int64(), st.sampled_from([0, 1, -1, 2**62, -(2**63), 12345678901])),
    "float": (pa.float32(), st.sampled_from([0.0, -0.0, 0.1, 2.5, 1e30])),
    "double": (pa.float64(), st.sampled_from([0.0, 0.1, 2.5, 1e300, float("nan")])),
}


@st.composite
def arrays(draw: Any, rows: int, *, steady: bool = False) -> pa.Array:
    """``steady``: every cell has one value, as in most columns of most tables."""
    type_, values = TYPES[draw(st.sampled_from(sorted(TYPES)))]
    shapes = ["scalar", "scalar", "scalar", "list", "pairs", "map", "null"]
    shape = draw(st.sampled_from(shapes))
    cells: Any = values
    if shape == "null":
        return pa.nulls(rows)
    if shape == "list":
        cells = st.lists(st.none() | values, max_size=3)
    elif shape == "pairs":
        cells = st.lists(values, min_size=2, max_size=2)
    elif shape == "map":
        pairs = st.tuples(st.sampled_from(["p", "q", "r"]), values)
        cells = st.lists(pairs, max_size=2, unique_by=lambda pair: pair[0])
    if shape in ("list", "pairs"):
        type_ = pa.list_(type_)
    elif shape == "map":
        type_ = pa.map_(pa.string(), type_)
    if not steady:
        cells = st.none() | cells
    return pa.array(draw(st.lists(cells, min_size=rows, max_size=rows)), type_)


BUCKETS = [
    {"hash_bucket_size": 1000},
    {"hash_bucket_size": 2**32},
    {"num_buckets": 8},
    {"boundaries": [-1.0, 0.5, 5.0]},
    {"vocab_list": ["", "x", "y", "7"], "default_bucketize_value": 3},
]
INPUTS = ["item:a", "item:b", "item:c"] * 4 + ["user:u", "context:x", "item:absent"]
INPUTS += ["const:k"]
CS = ["item:c", "user:c"]


@st.composite
def entries(draw: Any, number: int) -> dict[str, Any]:
    kind = draw(st.sampled_from(["id", "raw", "combo", "expr", "regex", "operator"]))
    inputs = INPUTS + [f"feature:f{i}" for i in range(number)]
    one = st.sampled_from(inputs)
    if kind == "operator":
        columns = [ref for ref in inputs if not ref.startswith("const:")]
        name = draw(st.sampled_from(operators.KINDS))
        made: dict[str, Any] = draw(operators.features(f"f{number}", columns, name))
        return made
    entry: dict[str, Any] = {
        "feature_name": f"f{number}",
        "feature_type": f"{kind}_feature",
        "expression": draw(one),
        "separator": "|",
        "stub_type": draw(st.sampled_from([False, False, False, True])),
    }
    if kind == "raw":
        entry["value_dim"] = draw(st.sampled_from([1, 1, 2]))
        entry["default_value"] = draw(st.sampled_from(["", "0.5"]))
        entry |= draw(st.sampled_from([{}, *BUCKETS[2:4]]))
        entry["normalizer"] = draw(
            st.sampled_from(["", "", "method=log10,threshold=0.01,default=-2"])
        )
    elif kind == "expr":
        formulas = ["a + 1", "a > b ? a : c", "dot(a, b)", "reduce_mean(a) * b"]
        entry["expression"] = draw(st.sampled_from(formulas))
        entry["variables"] = ["item:a", "item:b", draw(st.sampled_from(CS))]
        entry["value_dim"] = draw(st.sampled_from([0, 1, 1, 2]))
        entry |= draw(st.sampled_from([{}, *BUCKETS[2:4]]))
    elif kind == "regex":
        entry["feature_type"] = "regex_replace_feature"
        entry |= {"regex_pattern": "[xy1]+", "replacement": "z"}
        entry |= draw(st.sampled_from([*BUCKETS, {}]))
    elif kind == "id":
        entry["default_value"] = draw(st.sampled_from(["", "7"]))
        entry["value_dim"] = draw(st.sampled_from([0, 1, 2]))
        entry["weighted"] = draw(st.booleans())
        entry |= draw(st.sampled_from([*BUCKETS, {}]))
    else:
        entry["expression"] = [draw(one), draw(one)]
        entry["default_value"] = draw(st.sampled_from(["", "7"]))
        entry |= draw(st.sampled_from([BUCKETS[0], BUCKETS[1], BUCKETS[4], {}]))
    if draw(st.sampled_from([False] * 9 + [True])) and kind != "regex":
        entry["feature_type"] = f"sequence_{kind}_feature"
    return entry


@SETTINGS
@given(st.data())
def test_every_split_gives_identical_bytes(data: Any) -> None:
    count = data.draw(st.sampled_from([0, *range(1, 13)]), label="items")
    steady = data.draw(st.booleans())
    table = {name: data.draw(arrays(count, steady=steady)) for name in ITEM_COLUMNS}
    numbers = data.draw(st.booleans(), label="integer ids")
    # A duplicate: the later row of the same id counts.
    ids: list[Any] = [n // 2 if n < 2 else n for n in range(count)]
    ids = ids if numbers else [f"i{n}" for n in ids]
    source = source_of(
        table,
        pa.array(ids, pa.int64() if numbers else pa.string()),
        data.draw(st.integers(1, 3)),
    )
    if source.batches and data.draw(st.booleans()):
        source.batches[-1] = source.batches[-1].drop_columns(["b"])
    size = data.draw(st.integers(1, 6), label="features")
    fg_json = {"features": [data.draw(entries(i)) for i in range(size)]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(companion, "SAMPLE", data.draw(st.sampled_from([1, 3, 99])))
        patch.setattr(companion, "BATCH", data.draw(st.sampled_from([1, 4, 99])))
        tile = data.draw(st.booleans(), label="tile")
        patch.setattr(parts, "VALUES_PER_THREAD", 1)
        threads = data.draw(st.sampled_from([1, 1, 2, 3]), label="threads")
        farm = data.draw(st.booleans())
        pair = Pair(fg_json, source, tile=tile, farm=farm, threads=threads)
        try:
            assert pair.report.companion_problem == ""
            for _ in range(3):
                ready, refused = pair.compare(data.draw(requests(ids, numbers)))
                event(f"ready: {min(ready, 3)}, refused: {refused}")
        finally:
            pair.close()


@st.composite
def requests(draw: Any, ids: list[Any], numbers: bool) -> TorchRecRequest:
    strangers = [77, -5] if numbers else ["nobody", "", "i99"]
    some_ids = st.sampled_from([*ids, *ids, *strangers])
    asked = draw(
        st.lists(some_ids, min_size=draw(st.sampled_from([0, 1, 1])), max_size=6)
    )
    type_ = pa.int64() if numbers else pa.string()
    rows = len(asked)

    def some(names: tuple[str, ...], sizes: list[int]) -> dict[str, Column]:
        chosen = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
        return {
            name: Column.from_arrow(draw(arrays(draw(st.sampled_from(sizes)))))
            for name in chosen
        }

    item = some((*ITEM_COLUMNS, "absent", "other"), [1, rows, rows + 1])
    if draw(st.integers(0, 2)):
        item = {}
    return ask(
        Column.from_arrow(pa.array(asked, type_)),
        user=some(("u",), [1]),
        context=some(("x",), [1, rows]),
        item={name: column for name, column in item.items() if len(column)},
    )


# ------------------------------------------------------------- what is split, exactly

FG = {
    "features": [
        {"feature_type": "id_feature", "feature_name": "one", "expression": "item:a",
         "hash_bucket_size": 99, "default_value": "7"},
        {"feature_type": "id_feature", "feature_name": "some", "expression": "item:b",
         "hash_bucket_size": 99, "separator": "|", "weighted": True},
        {"feature_type": "raw_feature", "feature_name": "wide", "expression": "item:c",
         "value_dim": 2, "default_value": "0.5"},
        {"feature_type": "id_feature", "feature_name": "user", "expression": "user:u",
         "hash_bucket_size": 99},
        {"feature_type": "combo_feature", "feature_name": "cross",
         "expression": ["user:u", "item:a"], "hash_bucket_size": 99},
    ]
}  # fmt: skip
TABLE = {
    "a": pa.array(["x", None, "z", "w"]),
    "b": pa.array(["x:2|y", "", "z:0.5", "v"]),
    "c": pa.array([[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]]),
}
IDS = pa.array(["i0", "i1", "i2", "i3"])


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair(FG, source_of(TABLE, IDS), tile=True, farm=True)
    yield pair
    pair.close()


def asked(*ids: str) -> Column:
    return Column.from_texts(ids)


@pytest.mark.parametrize(
    "ids", [(), ("i0",), ("i3", "i1", "i3"), ("no", "i0"), ("no",)]
)
def test_item_features_come_from_the_cache(pair: Pair, ids: tuple[str, ...]) -> None:
    assert pair.report.pregenerated == 3
    ready, _ = pair.compare(ask(asked(*ids), user={"u": asked("me")}))
    # one: values, lengths; some: values, lengths, weights; wide: values.
    assert ready == (6 if ids else 0)


def test_only_what_is_left_is_gathered_and_generated(pair: Pair) -> None:
    gathered = pair.ahead.gather(ask(asked("i0", "i2")))
    assert gathered.item.keys() == {"a"}, "the cross reads it"
    assert gathered.part is not None
    assert gathered.part.features == ("user", "cross")
    assert gathered.ready["some.weights"].tolist() == [2, 1, 0.5]


def test_given_columns_are_generated_from(pair: Pair) -> None:
    request = ask(asked("i0", "no"), item={"b": asked("q", "r")})
    assert pair.compare(request) == (3, False)
    gathered = pair.ahead.gather(request)
    assert gathered.part is not None
    assert gathered.part.features == ("some", "user", "cross")
    request = ask(asked("i0"), item={"other": asked("q")})
    assert pair.compare(request) == (6, False)


def test_an_item_that_a_feature_refuses_costs_that_feature_only() -> None:
    table = {**TABLE, "c": pa.array([[1.0, 2.0], None, [3.0], [5.0, 6.0]])}
    pair = Pair(FG, source_of(table, IDS), tile=False, farm=True)
    assert pair.report.pregenerated == 2
    assert pair.report.companion_problem == ""
    assert pair.compare(ask(asked("i0", "i1", "i3", "no"))) == (5, False)
    assert pair.compare(ask(asked("i0", "i2"))) == (0, True)
    pair.close()


def test_a_single_valued_column_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(companion, "SAMPLE", 1)
    monkeypatch.setattr(companion, "BATCH", 2)
    table = {**TABLE, "b": pa.array(["x", "y", "z:3|w", ""])}
    pair = Pair(FG, source_of(table, IDS), tile=False, farm=True)
    generation = pair.ahead._cache.current()  # type: ignore[union-attr]
    kinds = {
        "one.values": Kind.INT32,
        "some.values": Kind.LIST_INT32,
        "some.weights": Kind.LIST_FLOAT32,
        "wide.values": Kind.LIST_FLOAT32,
    }
    assert generation.companion is not None
    assert generation.companion.schema == kinds
    assert pair.compare(ask(asked("i2", "i0", "no", "i3"))) == (6, False)
    pair.close()


def test_another_fg_json_sees_no_companion(pair: Pair) -> None:
    other = FeatureGenerator(FG, farm_hash=False)
    reader = CacheReader(pair.control.name, digest=other.digest)
    assert reader.current().companion is None


def test_two_fg_jsons_are_served_from_one_generation(pair: Pair) -> None:
    other = FeatureGenerator(FG, farm_hash=False)
    generation = CacheReader(pair.control.name).current()
    companion.make_companion(generation, pair.control, Pregenerator(other))
    assert len(os.listdir("/dev/shm")) >= 4
    reader = CacheReader(pair.control.name, digest=other.digest)
    both = [reader.current().companion, pair.ahead._cache.current().companion]
    rows = np.arange(4)
    values = [one.gather(rows, ["one.values"])["one.values"] for one in both if one]
    assert len(values) == 2
    assert values[0].to_pylist() != values[1].to_pylist()
    pair.control.sweep()
    assert CacheReader(pair.control.name, digest=other.digest).current().companion
