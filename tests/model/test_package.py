"""Export directories, found and refused."""

import json
from pathlib import Path

import pytest

from procserver.errors import ModelError
from procserver.model.package import open_package


def export(path: Path, **acc: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "scripted_model.pt").write_bytes(b"PK")
    (path / "fg.json").write_text('{"features": []}')
    (path / "model_acc.json").write_text(json.dumps({"SPARSE_INT64": "1", **acc}))
    return path


def test_an_export_directory(tmp_path: Path) -> None:
    package = open_package(export(tmp_path / "export"))
    assert package.script.name == "scripted_model.pt"
    assert package.fg_json == tmp_path / "export" / "fg.json"
    assert package.input_tile == 0
    assert package.version.startswith("export-")


@pytest.mark.parametrize(
    ("recorded", "environment", "tile"),
    [("2", 3, 2), ("3_online", None, 3), ("", 2, 0), (None, 2, 2), (None, None, 0)],
)
def test_the_recorded_input_tile_wins_over_the_environment(
    tmp_path: Path, recorded: str | None, environment: int | None, tile: int
) -> None:
    acc = {} if recorded is None else {"INPUT_TILE": recorded}
    path = export(tmp_path / "export", **acc)
    assert open_package(path, input_tile=environment).input_tile == tile


def test_the_version_changes_with_the_script(tmp_path: Path) -> None:
    path = export(tmp_path / "export")
    before = open_package(path).version
    import os

    os.utime(path / "scripted_model.pt", (1, 1))
    assert open_package(path).version != before


def test_a_bare_script(tmp_path: Path) -> None:
    (tmp_path / "ranker.pt").write_bytes(b"PK")
    for path in (tmp_path, tmp_path / "ranker.pt"):
        package = open_package(path)
        assert package.script == tmp_path / "ranker.pt"
        assert package.fg_json is None


def test_two_scripts_are_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK")
    (tmp_path / "b.pt").write_bytes(b"PK")
    with pytest.raises(ModelError, match="2 other"):
        open_package(tmp_path)


@pytest.mark.parametrize(
    ("acc", "named"),
    [
        ({"ENABLE_AOT": "2"}, "AOTInductor"),
        ({"ENABLE_TRT": "1"}, "TensorRT"),
        ({"DISTRIBUTED_EMBEDDING": "1"}, r"dense_meta\.json"),
    ],
)
def test_other_runtimes_are_refused_by_name(
    tmp_path: Path, acc: dict[str, str], named: str
) -> None:
    with pytest.raises(ModelError, match=named):
        open_package(export(tmp_path / "export", **acc))


def test_two_towers_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "item").mkdir()
    with pytest.raises(ModelError, match="user/ or item/"):
        open_package(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        open_package(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"no scripted_model\.pt"):
        open_package(tmp_path)
    path = export(tmp_path / "export")
    (path / "model_acc.json").write_text("{")
    with pytest.raises(ModelError, match=r"model_acc\.json"):
        open_package(path)


def test_distributed_embeddings_mean_tile_3_and_files_beside_the_script(
    tmp_path: Path,
) -> None:
    path = export(tmp_path / "export", DISTRIBUTED_EMBEDDING="1")
    (path / "sparse").mkdir()
    for name in ("dense_meta.json", "sparse/sparse_embedding.json"):
        (path / name).write_text("{}")
    with pytest.raises(ModelError, match=r"sparse_features\.json"):
        open_package(path)
    (path / "sparse/sparse_features.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no tables"):
        open_package(path)
    for rank in (1, 0):
        (path / f"sparse/sparse_embeddings-0{rank}-of-02.npz").write_bytes(b"PK")
    package = open_package(path, input_tile=2)
    assert package.input_tile == 3
    assert package.sparse is not None
    assert [shard.name for shard in package.sparse.shards] == [
        "sparse_embeddings-00-of-02.npz",
        "sparse_embeddings-01-of-02.npz",
    ]
    assert package.sparse.dynamic_shards == ()
