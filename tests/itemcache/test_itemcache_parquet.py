"""Parquet and Arrow files: where they may be, which columns, how tables merge."""

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from item_sources import SourceFor, TableFor

from cython_ext.column import Kind
from procserver.errors import SourceError
from procserver.itemcache import refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader, Generation
from procserver.itemcache.sources import ItemSource, files, open_source


class Secret:
    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text


def write(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def load(control: ControlSegment, url: object, *tables: TableFor) -> Generation:
    refresh.build(open_source(SourceFor(url, tables)), control)
    return CacheReader(control.name).current()


def test_one_file(control: ControlSegment, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=[1, 2], item_id=["a", "b"])
    source = open_source(SourceFor(Secret(str(path))))
    assert isinstance(source, ItemSource)
    about = source.describe()
    assert (about.key, about.rows) == ("item_id", 2)
    assert about.schema == {"item_id": Kind.STRING, "x": Kind.INT64}
    assert load(control, Secret(str(path))).get("b") == {"item_id": "b", "x": 2}
    assert load(control, f"file://{path}").get("a") == {"item_id": "a", "x": 1}


def test_the_first_column_is_the_key_unless_told(
    control: ControlSegment, tmp_path: Path
) -> None:
    url = str(write(tmp_path / "a.parquet", sku=["a"], x=[5], asin=["q"]))
    assert load(control, url).get("a") == {"sku": "a", "x": 5, "asin": "q"}
    generation = load(control, url, TableFor(key="asin", value=("x",)))
    assert generation.key == "asin"
    assert generation.get("q") == {"asin": "q", "x": 5}


def test_directories_globs_and_hive_partitions(
    control: ControlSegment, tmp_path: Path
) -> None:
    write(tmp_path / "t/dt=20250101/a.parquet", item_id=["a", "both"], x=[1, 1])
    write(tmp_path / "t/dt=20250102/b.parquet", item_id=["b", "both"], x=[2, 2])
    write(tmp_path / "t/_temporary/c.parquet", item_id=["c"], x=[3])
    write(tmp_path / "t/.hidden.parquet", item_id=["d"], x=[4])
    (tmp_path / "t/_SUCCESS").touch()
    (tmp_path / "t/READY").touch()
    generation = load(control, str(tmp_path / "t"))
    assert generation.get("a") == {"item_id": "a", "x": 1, "dt": 20250101}
    assert generation.get("both") == {"item_id": "both", "x": 2, "dt": 20250102}
    assert [generation.get(i) for i in "cd"] == [None, None]
    generation = load(control, str(tmp_path / "t/dt=*/b*.parquet"))
    assert generation.item_count == 2
    generation = load(control, str(tmp_path / "t/**/*.parquet"))
    assert generation.item_count == 3


def test_files_without_a_suffix(control: ControlSegment, tmp_path: Path) -> None:
    write(tmp_path / "t/000000_0", item_id=["a"], x=[1])
    write(tmp_path / "t/000001_0", item_id=["b"], x=[2])
    assert load(control, str(tmp_path / "t")).item_count == 2


def test_schemas_of_several_files_are_united(
    control: ControlSegment, tmp_path: Path
) -> None:
    write(tmp_path / "t/1.parquet", item_id=["a"], x=pa.array([1], pa.int32()))
    write(
        tmp_path / "t/2.parquet",
        item_id=["b"],
        x=pa.array([2**40], pa.int64()),
        y=[["n"]],
    )
    generation = load(control, str(tmp_path / "t"))
    assert generation.schema["x"] == Kind.INT64
    assert generation.get("a") == {"item_id": "a", "x": 1, "y": None}
    assert generation.get("b") == {"item_id": "b", "x": 2**40, "y": ["n"]}
    write(tmp_path / "t/3.parquet", item_id=["c"], x=["text"])
    with pytest.raises(SourceError, match="x"):
        open_source(SourceFor(str(tmp_path / "t"))).describe()


def test_other_file_systems(control: ControlSegment) -> None:
    memory = fsspec.filesystem("memory")
    for name, item in (("d/a.parquet", "a"), ("d/k=7/b.parquet", "b")):
        with memory.open(f"/shop/{name}", "wb") as file:
            pq.write_table(pa.table({"item_id": [item], "x": [1]}), file)
    try:
        assert load(control, "memory://shop/d/a.parquet").item_count == 1
        generation = load(control, "memory://shop/d")
        assert generation.get("b") == {"item_id": "b", "x": 1, "k": 7}
        assert load(control, "memory://shop/d/*.parquet").item_count == 1
        with pytest.raises(SourceError, match="no such file"):
            load(control, "memory://shop/none")
    finally:
        memory.rm("/shop", recursive=True)


@pytest.mark.parametrize(
    ("url", "extra"), [("s3://b/k", "s3"), ("oss://b/k", "oss"), ("gs://b/k", "gcs")]
)
def test_a_missing_driver_names_the_extra(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(url: str) -> None:
        raise ImportError("Install something")

    monkeypatch.setattr(files.fsspec.core, "url_to_fs", missing)
    with pytest.raises(SourceError, match=rf"install procserver\[{extra}\]"):
        open_source(SourceFor(url)).describe()


def test_an_unknown_scheme() -> None:
    with pytest.raises(SourceError, match="nosuch"):
        open_source(SourceFor("nosuch://user:secret@host/x")).describe()


def test_arrow_files(control: ControlSegment, tmp_path: Path) -> None:
    table = pa.table(
        {
            "item_id": [1, 2],
            "m": pa.array([[("k", 1.5)]] * 2, pa.map_(pa.string(), pa.float32())),
        }
    )
    feather.write_feather(table, tmp_path / "a.feather")
    ds.write_dataset(table, tmp_path / "d", format="ipc")
    for url in (tmp_path / "a.feather", tmp_path / "d"):
        generation = load(control, str(url))
        assert generation.get(2) == {"item_id": 2, "m": [("k", 1.5)]}


def test_missing_things_are_named(tmp_path: Path) -> None:
    good = str(write(tmp_path / "a.parquet", item_id=["a"], x=[1]))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "mix/a.parquet", item_id=["a"])
    feather.write_feather(pa.table({"item_id": ["a"]}), tmp_path / "mix/b.feather")
    for url, tables, message in (
        (str(tmp_path / "none.parquet"), (), "none.parquet.*no such file"),
        (str(tmp_path / "*.orc"), (), "no such file"),
        (str(tmp_path / "empty"), (), "empty"),
        (str(tmp_path / "bad.parquet"), (), "bad.parquet.*cannot be read"),
        (str(tmp_path / "mix"), (), "mixes"),
        (good, (TableFor(key="nope"),), "no column 'nope'"),
        (good, (TableFor(value=("x", "gone")),), "no column 'gone'"),
        (good, (TableFor(condition="x > 1"),), "condition"),
        (str(tmp_path), (TableFor(name="other.parquet"),), "other.parquet"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(SourceFor(url, tables)).describe()


def test_a_file_cut_off_during_the_read(
    control: ControlSegment, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.parquet", item_id=[str(i) for i in range(100_000)])
    data = path.read_bytes()
    path.write_bytes(data[:1000] + b"\0" * 200_000 + data[201_000:])
    with pytest.raises(SourceError, match="cannot be read"):
        load(control, str(path))


def test_unsupported_columns_only_matter_if_asked_for(
    control: ControlSegment, tmp_path: Path
) -> None:
    times = pa.array([0], pa.timestamp("us"))
    url = str(write(tmp_path / "a.parquet", item_id=["a"], x=[1], at=times))
    with pytest.raises(SourceError, match="column 'at' has Arrow type timestamp"):
        load(control, url)
    generation = load(control, url, TableFor(value=("x",)))
    assert generation.get("a") == {"item_id": "a", "x": 1}


def test_tables_are_merged_by_key(control: ControlSegment, tmp_path: Path) -> None:
    write(
        tmp_path / "base.parquet",
        item_id=["a", "b", None, "b"],
        price=[1.0, 2.0, 9.0, 3.0],
        tags=[["x"], None, ["n"], ["y", None]],
    )
    write(
        tmp_path / "late.parquet",
        sku=["b", "c", "a"],
        price=[30.0, 40.0, None],
        stock=[7, 8, 9],
        extra=["-"] * 3,
    )
    source = open_source(
        SourceFor(
            str(tmp_path),
            (
                TableFor(name="base.parquet"),
                TableFor(name="late.parquet", key="sku", value=("price", "stock")),
            ),
        )
    )
    about = source.describe()
    assert about.schema == {
        "item_id": Kind.STRING,
        "price": Kind.FLOAT64,
        "tags": Kind.LIST_STRING,
        "stock": Kind.INT64,
    }
    report = refresh.build(source, control)
    assert report.skipped == {"null_key": 1, "duplicate_key": 1}
    generation = CacheReader(control.name).current()
    assert generation.item_count == 3
    assert [generation.get(i) for i in "abc"] == [
        {"item_id": "a", "price": 1.0, "tags": ["x"], "stock": 9},
        {"item_id": "b", "price": 30.0, "tags": ["y", None], "stock": 7},
        {"item_id": "c", "price": 40.0, "tags": None, "stock": 8},
    ]


def test_text_and_integer_keys_merge(control: ControlSegment, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", item_id=[1, 2], x=pa.array([1, 2], pa.int32()))
    write(tmp_path / "b.parquet", item_id=["2", "z"], x=[2**40, 5])
    tables = [TableFor(name=f"{name}.parquet") for name in "ab"]
    generation = load(control, str(tmp_path), *tables)
    assert [generation.get(i) for i in (1, "2", "z")] == [
        {"item_id": "1", "x": 1},
        {"item_id": "2", "x": 2**40},
        {"item_id": "z", "x": 5},
    ]


def test_three_tables_of_many_rows(control: ControlSegment, tmp_path: Path) -> None:
    rows = 70_000
    for number in range(3):
        part = range(number * 10_000, rows)
        write(
            tmp_path / f"{number}.parquet",
            item_id=pa.array(part, pa.int64()),
            **{f"c{number}": [[f"{number}-{i}"] for i in part]},
            shared=[f"{number}" for i in part],
        )
    tables = [TableFor(name=f"{number}.parquet") for number in range(3)]
    generation = load(control, str(tmp_path), *tables)
    assert generation.item_count == rows
    for i, shared in ((0, "0"), (12_345, "1"), (69_999, "2")):
        cells = generation.get(i)
        assert cells is not None
        assert cells["shared"] == shared
        for number in range(3):
            expected = [f"{number}-{i}"] if i >= number * 10_000 else None
            assert cells[f"c{number}"] == expected


def test_unknown_sources_and_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        SourceError, match=r"no item source .mystery.; there are: .*hologres, parquet"
    ):
        open_source(SourceFor("x", remote_type="mystery"))

    class Entry:
        name = "mystery"

        def __init__(self, target: object) -> None:
            self.target = target

        def load(self) -> object:
            return self.target

    def offer(target: object) -> None:
        monkeypatch.setattr(
            "procserver.itemcache.sources.entry_points",
            lambda group: [Entry(target)] if group == "procserver.item_sources" else [],
        )

    offer(lambda config: open_source(SourceFor(config.url)))
    assert isinstance(open_source(SourceFor("x", remote_type="mystery")), ItemSource)
    offer(lambda config: object())
    with pytest.raises(SourceError, match="lacks a method"):
        open_source(SourceFor("x", remote_type="mystery"))
