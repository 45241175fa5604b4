"""``procserver transform`` over real Parquet files."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from procserver import cli
from procserver.fg import FeatureGenerator
from procserver.offline import transform as module
from procserver.offline.progress import Progress


def feature(kind, name, expression, **more):
    return {
        "feature_type": f"{kind}_feature",
        "feature_name": name,
        "expression": expression,
    } | more


FG = {
    "reserves": ["label"],
    "features": [
        feature("id", "tags", "item:tags", hash_bucket_size=1000),
        feature("id", "likes", "user:likes", hash_bucket_size=1000, weighted=True),
        feature("raw", "price", "item:price", normalizer="method=log10"),
        feature("raw", "vector", "item:vector", value_dim=2, default_value="0"),
        feature("raw", "level", "item:price", boundaries=[1, 10, 100]),
        feature("id", "all", "const:x", num_buckets=10, default_value="3"),
        feature("id", "stub", "item:tags", stub_type=True),
        {
            "sequence_name": "clicks",
            "sequence_delim": ";",
            "features": [
                feature("id", "one", "item:id", num_buckets=100, value_dim=1),
                feature("id", "many", "item:id", num_buckets=100, value_dim=0),
                feature("raw", "price", "item:price", default_value="0"),
                feature("raw", "pair", "item:pair", value_dim=2, default_value="0"),
            ],
        },
    ],
}
TYPES = {
    "label": "int64",
    "tags": "list<element: int64>",
    "likes": "map<int64, float ('likes')>",
    "price": "float",
    "vector": "list<element: float>",
    "level": "list<element: int64>",
    "all": "list<element: int64>",
    "clicks__one": "list<element: int64>",
    "clicks__many": "list<element: list<element: int64>>",
    "clicks__price": "list<element: float>",
    "clicks__pair": "list<element: list<element: float>>",
}


def table(rows, seed=0):
    chosen = np.random.default_rng(seed)

    def pick(*values):
        return [values[i] for i in chosen.integers(0, len(values), rows)]

    return pa.table(
        {
            "tags": pa.array(pick("a", "b\x1dc", "", None)),
            "likes": pa.array(pick("a:0.5\x1db:2", None, "c")),
            "price": pa.array(pick(1.0, 50.0, None), pa.float32()),
            "vector": pa.array(pick([1.0, 2.0], None), pa.list_(pa.float32())),
            "clicks__id": pa.array(pick("1;2\x1d3;4", "", None, "7")),
            "clicks__price": pa.array(pick([1.5, 2.5], [], None)),
            "clicks__pair": pa.array(pick("1\x1d2;3\x1d4", None)),
            "label": pa.array(range(rows), pa.int64()),
            "unused": pa.array(pick(True, False)),
        }
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fg.json").write_text(json.dumps(FG))
    return tmp_path


def run(folder, source, output="out.parquet", *more):
    return cli.main(
        ["transform", "--fg", str(folder / "fg.json"), "--input", str(folder / source),
         "--output", str(folder / output), *more]
    )  # fmt: skip


def rows_of(tensors, name, lengths):
    ends = np.cumsum(lengths).tolist()
    return [
        tensors[name][end - length : end].tolist()
        for end, length in zip(ends, lengths, strict=True)
    ]


def assert_equal_to_generator(found, source, **options):
    """Every column against the tensors of one call of the generator."""
    tensors = FeatureGenerator(FG, **options).transform(
        {name: source.column(name) for name in source.column_names}
    )
    columns = found.to_pydict()

    def lengths(name):
        return tensors[f"{name}.lengths"].tolist()

    assert columns["label"] == source["label"].to_pylist()
    assert columns["price"] == tensors["price.values"][:, 0].tolist()
    assert columns["vector"] == tensors["vector.values"].tolist()
    for name in ("tags", "level", "all", "clicks__one"):
        assert columns[name] == rows_of(tensors, f"{name}.values", lengths(name)), name
    weighted = lengths("likes")
    ids = rows_of(tensors, "likes.values", weighted)
    weights = rows_of(tensors, "likes.weights", weighted)
    assert columns["likes"] == [
        list(zip(*pair, strict=True)) for pair in zip(ids, weights, strict=True)
    ]
    assert columns["clicks__price"] == [
        [number for (number,) in row]
        for row in rows_of(tensors, "clicks__price.values", lengths("clicks__price"))
    ]
    assert columns["clicks__pair"] == rows_of(
        tensors, "clicks__pair.values", lengths("clicks__pair")
    )
    keys = tensors["clicks__many.key_lengths"].tolist()
    elements = np.empty(len(keys), dtype=object)
    elements[:] = rows_of(tensors, "clicks__many.values", keys)
    assert columns["clicks__many"] == rows_of(
        {"x": elements}, "x", lengths("clicks__many")
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_equal_to_the_generator(folder, capsys, monkeypatch, threads):
    monkeypatch.setattr(module, "BATCH_ROWS", (64, 64))
    source = table(1000)
    pq.write_table(source, folder / "in.parquet", row_group_size=300)
    assert run(folder, "in.parquet", "out.parquet", "--threads", str(threads)) == 0
    found = pq.read_table(folder / "out.parquet")
    assert {field.name: str(field.type) for field in found.schema} == TYPES
    assert pq.ParquetFile(folder / "out.parquet").num_row_groups > 10
    assert_equal_to_generator(found, source)
    assert "1,000 of 1,000 rows, 100%" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == [
        "fg.json", "in.parquet", "out.parquet",
    ]  # fmt: skip


def test_hash_mode_is_a_switch_and_an_environment_variable(folder, monkeypatch):
    source = table(50)
    pq.write_table(source, folder / "in.parquet")

    def output(*more):
        assert run(folder, "in.parquet", "out.parquet", *more) == 0
        return pq.read_table(folder / "out.parquet")

    monkeypatch.delenv("USE_FARM_HASH_TO_BUCKETIZE", raising=False)
    assert_equal_to_generator(output(), source)
    farm = output("--farm-hash")
    assert_equal_to_generator(farm, source, farm_hash=True)
    monkeypatch.setenv("USE_FARM_HASH_TO_BUCKETIZE", "true")
    assert output() == farm
    assert output("--no-farm-hash") != farm


def test_folders_and_patterns(folder):
    (folder / "day=1").mkdir()
    (folder / "_logs").mkdir()
    tables = [table(30, seed) for seed in range(3)]
    pq.write_table(tables[1], folder / "day=1" / "b.parquet")
    pq.write_table(tables[0], folder / "day=1" / "a.parquet")
    pq.write_table(tables[2], folder / "day=1" / "c.pq")
    pq.write_table(tables[0], folder / "day=1" / ".hidden.parquet")
    (folder / "day=1" / "_SUCCESS").touch()
    assert run(folder, "day=1") == 0
    whole = pq.read_table(folder / "out.parquet")
    assert_equal_to_generator(whole, pa.concat_tables(tables))
    assert run(folder, "day=*/[ab].parquet") == 0
    assert pq.read_table(folder / "out.parquet") == whole.slice(0, 60)
    assert [path.name for path in module.find_files(str(folder / "**/*.pq"))] == [
        "c.pq"
    ]


def test_no_rows(folder):
    pq.write_table(table(0), folder / "in.parquet")
    assert run(folder, "in.parquet") == 0
    found = pq.read_table(folder / "out.parquet")
    assert {field.name: str(field.type) for field in found.schema} == TYPES
    assert len(found) == 0


def test_more_columns_passed_through(folder):
    pq.write_table(table(5), folder / "in.parquet")
    assert run(folder, "in.parquet", "out.parquet", "--reserves", "unused, label") == 0
    found = pq.read_table(folder / "out.parquet")
    assert found.column_names[:2] == ["label", "unused"]
    assert found["unused"] == table(5)["unused"]


def test_bucketize_only(folder):
    """What a first run left un-bucketized, a second one bucketizes."""
    fg = {"features": [feature("id", "tags", "item:tags", num_buckets=10)]}
    (folder / "fg.json").write_text(json.dumps(fg))
    pq.write_table(pa.table({"tags": [["1", "2"], ["30"]]}), folder / "in.parquet")
    assert run(folder, "in.parquet", "out.parquet", "--bucketize-only") == 0
    found = pq.read_table(folder / "out.parquet").to_pydict()
    assert found == {"tags": [[1, 2], [0]]}


def test_an_id_sequence_holds_all_ids_of_an_element(folder):
    """A lookup may give an element several ids although value_dim is 1."""
    lookup = {
        "feature_type": "lookup_feature",
        "feature_name": "f",
        "map": "user:m",
        "key": "item:k",
        "num_buckets": 100,
        "needDiscrete": True,
        "combiner": "",
        "value_dim": 1,
        "value_type": "string",
        "default_value": "0",
    }
    fg = {"features": [{"sequence_name": "s", "features": [lookup]}]}
    (folder / "fg.json").write_text(json.dumps(fg))
    columns = {"m": ["a:1\x1db:2", "a:5"], "s__k": ["a\x1db;b", "a;z"]}
    pq.write_table(pa.table(columns), folder / "in.parquet")
    assert run(folder, "in.parquet") == 0
    found = pq.read_table(folder / "out.parquet").to_pydict()
    assert found == {"s__f": [[1, 2, 2], [5, 0]]}


# ------------------------------------------------------------------ what goes wrong


def failed(folder, capsys, status, source="in.parquet", output="out.parquet", *more):
    assert run(folder, source, output, *more) == status
    assert not (folder / "out.parquet").exists()
    assert not list(folder.glob(".out*"))
    message = capsys.readouterr().err
    assert message.startswith("procserver transform: ")
    return message


def test_a_bad_file_of_features(folder, capsys):
    pq.write_table(table(5), folder / "in.parquet")
    (folder / "fg.json").write_text(json.dumps({"features": [feature("id", "x", "y")]}))
    message = failed(folder, capsys, 2)
    assert "'x'" in message
    assert "'expression'" in message
    (folder / "fg.json").unlink()
    assert "cannot be read" in failed(folder, capsys, 2)


def test_missing_columns_are_named_before_work_begins(folder, capsys):
    (folder / "in").mkdir()
    pq.write_table(table(5), folder / "in" / "a.parquet")
    pq.write_table(table(5).drop(["tags", "label"]), folder / "in" / "b.parquet")
    message = failed(folder, capsys, 2, "in")
    assert "b.parquet: columns are missing: tags, label" in message


def test_passed_columns_must_have_one_type(folder, capsys):
    (folder / "in").mkdir()
    pq.write_table(table(5), folder / "in" / "a.parquet")
    other = table(5)
    other = other.set_column(
        other.schema.get_field_index("label"), "label", other["label"].cast("string")
    )
    pq.write_table(other, folder / "in" / "b.parquet")
    assert "'label' is string, but int64" in failed(folder, capsys, 2, "in")


def test_a_passed_column_may_not_be_a_feature(folder, capsys):
    pq.write_table(table(5), folder / "in.parquet")
    more = ("in.parquet", "out.parquet", "--reserves", "price")
    assert "'price'" in failed(folder, capsys, 2, *more)


@pytest.mark.parametrize("source", ["none.parquet", "none*.parquet", "."])
def test_no_input(folder, capsys, source):
    assert "no Parquet file at" in failed(folder, capsys, 2, source)


def test_no_parquet(folder, capsys):
    (folder / "in.parquet").write_text("text")
    assert "in.parquet: is no readable Parquet file" in failed(folder, capsys, 2)


def test_output_paths(folder, capsys):
    pq.write_table(table(5), folder / "in.parquet")
    assert run(folder, "in.parquet", "in.parquet") == 2
    assert "is one of the input files" in capsys.readouterr().err
    assert "is a folder" in failed(folder, capsys, 2, "in.parquet", ".")
    assert "no folder" in failed(folder, capsys, 2, "in.parquet", "a/out.parquet")
    assert "--threads" in failed(
        folder, capsys, 2, "in.parquet", "out.parquet", "--threads", "-1"
    )


def test_bad_cells_name_file_and_place(folder, capsys, monkeypatch):
    monkeypatch.setattr(module, "BATCH_ROWS", (16, 16))
    source = table(100)
    vectors = [[1.0, 2.0]] * 100
    vectors[70] = [1.0, 2.0, 3.0]
    source = source.set_column(3, "vector", pa.array(vectors, pa.list_(pa.float32())))
    pq.write_table(source, folder / "in.parquet")
    message = failed(folder, capsys, 1)
    assert "in.parquet, rows from 64" in message
    assert "vector" in message


def test_a_column_of_a_type_that_no_feature_takes(folder, capsys):
    source = table(5)
    source = source.set_column(0, "tags", pa.array([{"a": 1}] * 5))
    pq.write_table(source, folder / "in.parquet")
    assert "column 'tags'" in failed(folder, capsys, 1)


def test_an_earlier_output_survives_a_failure(folder, capsys):
    pq.write_table(table(5), folder / "in.parquet")
    assert run(folder, "in.parquet") == 0
    before = (folder / "out.parquet").read_bytes()
    pq.write_table(table(5).drop(["tags"]), folder / "in.parquet")
    assert run(folder, "in.parquet") == 2
    assert (folder / "out.parquet").read_bytes() == before


# ---------------------------------------------------------------------- the process


def test_as_a_process(folder):
    pq.write_table(table(5), folder / "in.parquet")
    done = subprocess.run(
        [sys.executable, "-m", "procserver", "transform", "--fg", "fg.json",
         "--input", "in.parquet", "--output", "out.parquet"],
        cwd=folder, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout == ""
    assert done.stderr.startswith("5 of 5 rows, 100%")
    assert "\r" not in done.stderr
    assert len(pq.read_table(folder / "out.parquet")) == 5


def test_memory_does_not_grow_with_the_file(folder, monkeypatch):
    """Batches under way are bounded, whatever the number of rows."""
    monkeypatch.setattr(module, "BATCH_ROWS", (8, 8))
    pq.write_table(table(2000), folder / "in.parquet")
    generator = FeatureGenerator(FG, for_parser=True)
    job = module.prepare([folder / "in.parquet"], generator)
    started = written = most = 0
    generate = module._generate

    def counted(*arguments):
        nonlocal started, most
        started += 1
        most = max(most, started - written)
        return generate(*arguments)

    monkeypatch.setattr(module, "_generate", counted)

    class Counting(Progress):
        def advance(self, rows):
            nonlocal written
            written += 1

    progress = Counting(job.rows, io.StringIO())
    module.transform(job, folder / "out.parquet", threads=3, progress=progress)
    assert written == 250
    assert most <= 5


def test_batches_of_wide_rows_are_small(folder):
    wide = pa.table({"x": ["a" * 100_000 + str(i) for i in range(600)]})
    pq.write_table(wide, folder / "in.parquet", use_dictionary=False)
    generator = FeatureGenerator(
        {"features": [feature("id", "f", "item:x", hash_bucket_size=9)]},
        for_parser=True,
    )
    job = module.prepare([folder / "in.parquet"], generator)
    assert 256 <= job.batch_rows < 400


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    clock = iter([0.0, 1.0, 1.05, 2.0, 2.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stream = Terminal()
    progress = Progress(100, stream)
    progress.advance(50)
    progress.advance(10)
    progress.advance(40)
    progress.finish()
    assert stream.getvalue().count("\r") == 3
    assert f"[{'#' * 15}{' ' * 15}] 50 of 100 rows, 50%, 50 rows/s" in stream.getvalue()
    assert stream.getvalue().endswith("\n")


def test_progress_elsewhere_is_a_line_now_and_then(monkeypatch):
    clock = iter([0.0, 1.0, 11.0, 11.5, 12.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    progress = Progress(100, stream)
    for rows in (10, 40, 50):
        progress.advance(rows)
    progress.finish()
    lines = stream.getvalue().splitlines()
    assert [line.partition(" of")[0] for line in lines] == ["50", "100"]
    assert "\r" not in stream.getvalue()
