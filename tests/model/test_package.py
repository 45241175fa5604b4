"""Model folders of every kind, found and refused."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from exports import distributed, export, hot_version, publish

from procserver.errors import ModelError
from procserver.model.kinds import Kind
from procserver.model.package import open_package


def test_an_export_directory(tmp_path: Path) -> None:
    package = open_package(export(tmp_path / "export"))
    assert package.script.name == "scripted_model.pt"
    assert package.fg_json == tmp_path / "export" / "fg.json"
    assert package.input_tile == 0
    assert package.version.startswith("export-")
    assert (package.kind, package.notices) == (Kind.EXPORT, ())
    assert open_package(package.script) == package


@pytest.mark.parametrize(
    ("recorded", "environment", "tile"),
    [("2", 3, 2), ("3_online", None, 3), ("", 2, 0), (None, 2, 0), (None, None, 0)],
)
def test_the_recorded_input_tile_wins_over_the_environment(
    tmp_path: Path, recorded: str | None, environment: int | None, tile: int
) -> None:
    acc = {} if recorded is None else {"INPUT_TILE": recorded}
    path = export(tmp_path / "export", **acc)
    assert open_package(path, input_tile=environment).input_tile == tile
    (path / "model_acc.json").unlink()
    assert open_package(path, input_tile=environment).input_tile == (environment or 0)


def test_the_version_changes_with_the_script(tmp_path: Path) -> None:
    path = export(tmp_path / "export")
    before = open_package(path).version
    os.utime(path / "scripted_model.pt", (1, 1))
    assert open_package(path).version != before


def test_a_version_fits_a_header(tmp_path: Path) -> None:
    version = open_package(export(tmp_path / "模型 a\nb")).version
    assert version.startswith("___a_b-")


def test_a_bare_script(tmp_path: Path) -> None:
    (tmp_path / "ranker.pt").write_bytes(b"PK")
    for path in (tmp_path, tmp_path / "ranker.pt"):
        package = open_package(path)
        assert package.script == tmp_path / "ranker.pt"
        assert package.fg_json is None
        assert package.kind is Kind.SCRIPT
        assert package.version.startswith("ranker-")


def test_a_script_of_another_name_takes_the_features_beside_it(tmp_path: Path) -> None:
    folder = export(tmp_path, INPUT_TILE="2")
    (folder / "scripted_model.pt").rename(folder / "mine.pt")
    package = open_package(folder / "mine.pt")
    assert package.fg_json == folder / "fg.json"
    assert package.input_tile == 2


def test_two_scripts_are_ambiguous(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK")
    (tmp_path / "b.pt").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"2 other scripts: a\.pt, b\.pt"):
        open_package(tmp_path)


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda path: export(path, ENABLE_AOT="1"), "AOTInductor"),
        (lambda path: export(path, ENABLE_AOT="2"), "AOTInductor"),
        (lambda path: export(path, UNIFIED_AOT="1"), "AOTInductor"),
        (lambda path: (path / "aoti").mkdir(parents=True), "AOTInductor"),
        (lambda path: _touch(path / "scripted_sparse_model.pt"), "AOTInductor"),
        (lambda path: export(path, ENABLE_TRT="1"), "TensorRT"),
        (
            lambda path: _touch(path / "model-000000-of-000002.safetensors"),
            "RTP export",
        ),
    ],
    ids=["aot1", "aot2", "unified", "aoti", "sparse-script", "trt", "rtp"],
)
@pytest.mark.parametrize("inside", ["", "5"])
def test_other_runtimes_are_refused_by_name(
    tmp_path: Path, make: Callable[[Path], object], named: str, inside: str
) -> None:
    make(tmp_path / "export" / inside)
    with pytest.raises(ModelError, match=named) as caught:
        open_package(tmp_path / "export")
    assert "\n" not in str(caught.value)


def test_what_is_off_is_not_refused(tmp_path: Path) -> None:
    open_package(export(tmp_path, ENABLE_AOT="0", ENABLE_TRT="0", UNIFIED_AOT="0"))


def test_a_match_export_serves_the_user_tower_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "dssm"
    for tower in ("user", "item"):
        export(path / tower)
    package = open_package(path)
    assert package.directory == path / "user"
    assert package.part == "user"
    assert package.version.startswith("dssm-user-")
    assert package.notices == (
        "this is a match export, of which user/ is served; "
        '"model_entry" chooses another part (user, item)',
    )


@pytest.mark.parametrize("tower", ["user", "item"])
def test_a_tower_by_entry_or_by_path(tmp_path: Path, tower: str) -> None:
    path = tmp_path / "dssm"
    for name in ("user", "item"):
        export(path / name)
    package = open_package(path, entry=tower)
    assert package == open_package(path / tower)
    assert package.fg_json == path / tower / "fg.json"
    assert (package.part, package.notices) == (tower, ())
    with pytest.raises(ModelError, match="no dense hot exports of match"):
        open_package(path, entry=tower, hot_export=tmp_path)


def test_half_a_match_export(tmp_path: Path) -> None:
    export(tmp_path / "item")
    assert open_package(tmp_path).part == "item"


def test_a_tdm_export_serves_the_model(tmp_path: Path) -> None:
    for part in ("model", "embedding"):
        export(tmp_path / part)
    assert open_package(tmp_path).part == "model"
    assert open_package(tmp_path, entry="embedding").part == "embedding"


def test_a_folder_called_model_is_no_part(tmp_path: Path) -> None:
    assert open_package(export(tmp_path / "model")).part is None


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    export(tmp_path / "user")
    with pytest.raises(ModelError, match="model_entry: there is no itm in"):
        open_package(tmp_path, entry="itm")


def test_distributed_embeddings_mean_tile_3_and_files_beside_the_script(
    tmp_path: Path,
) -> None:
    path = distributed(tmp_path / "export")
    package = open_package(path, input_tile=2)
    assert package.kind is Kind.DISTRIBUTED
    assert package.input_tile == 3
    assert package.sparse is not None
    assert package.sparse.dense_meta == path / "dense_meta.json"
    assert [shard.name for shard in package.sparse.shards] == [
        "sparse_embeddings-00-of-02.npz",
        "sparse_embeddings-01-of-02.npz",
    ]
    assert package.sparse.dynamic_shards == ()
    (path / "model_acc.json").unlink()
    assert open_package(path).kind is Kind.DISTRIBUTED


@pytest.mark.parametrize(
    "name",
    ["dense_meta.json", "sparse/sparse_embedding.json", "sparse/sparse_features.json"],
)
def test_distributed_embeddings_that_miss_a_file(tmp_path: Path, name: str) -> None:
    (distributed(tmp_path) / name).unlink()
    with pytest.raises(ModelError, match=f"distributed embeddings, but no {name}"):
        open_package(tmp_path)


def test_distributed_embeddings_without_tables(tmp_path: Path) -> None:
    for shard in (distributed(tmp_path) / "sparse").glob("*.npz"):
        shard.unlink()
    with pytest.raises(ModelError, match=r"no tables \(\.npz\) in sparse/"):
        open_package(tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base export with two dense versions below it, the older one published."""
    path = distributed(tmp_path / "base")
    root = path / "dense_hot_export"
    for name in ("20261120080000", "20261121080000", "20261122080000"):
        hot_version(root, name)
    (root / "versions" / "20261123080000.tmp.77").mkdir()
    publish(root, "20261121080000")
    return path


def test_a_hot_export_below_its_base(base: Path) -> None:
    package = open_package(base)
    hot = base / "dense_hot_export" / "versions" / "20261121080000"
    assert package.kind is Kind.HOT
    assert package.directory == hot
    assert package.script == hot / "scripted_model.pt"
    assert package.sparse is not None
    assert package.sparse.dense_meta == hot / "dense_meta.json"
    assert package.sparse.folder == base / "sparse"
    assert package.fg_json == base / "fg.json"
    assert package.base == base
    assert package.input_tile == 3
    name, _, version = package.version.partition("+")
    assert name.startswith("base-")
    assert version == "20261121080000"


def test_an_older_version_may_be_published_again(base: Path) -> None:
    publish(base / "dense_hot_export", "20261120080000")
    assert open_package(base).version.endswith("+20261120080000")


@pytest.mark.parametrize("below", ["", "dense_hot_export"])
def test_a_hot_export_elsewhere(base: Path, tmp_path: Path, below: str) -> None:
    (base / "dense_hot_export").rename(tmp_path / "dense_hot_export")
    assert open_package(base).kind is Kind.DISTRIBUTED
    package = open_package(base, hot_export=tmp_path / below)
    assert package.version.endswith("+20261121080000")
    assert package.base == base


def test_a_hot_export_over_a_version_of_its_base(base: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    base.rename(tmp_path / "root" / "3")
    assert open_package(tmp_path / "root").version == "3+20261121080000"


@pytest.mark.parametrize("folder", ["hot", "hot/dense_hot_export"])
def test_before_the_first_publication_the_base_is_served(
    tmp_path: Path, folder: str
) -> None:
    base = distributed(tmp_path / "base")
    (tmp_path / folder).mkdir(parents=True)
    package = open_package(base, hot_export=tmp_path / "hot")
    assert package.kind is Kind.DISTRIBUTED
    assert "no published version yet" in package.notices[0]


@pytest.mark.parametrize("file", ["READY", "scripted_model.pt", "dense_meta.json"])
def test_a_hot_version_must_be_ready(base: Path, file: str) -> None:
    (base / "dense_hot_export/versions/20261121080000" / file).unlink()
    with pytest.raises(ModelError, match=f"20261121080000, which has no {file}"):
        open_package(base)


@pytest.mark.parametrize(
    "version", ["../versions/20261121080000", "/etc", "..", ".", "a/b", "x.tmp.1", ""]
)
def test_a_hot_pointer_cannot_lead_elsewhere(base: Path, version: str) -> None:
    publish(base / "dense_hot_export", version)
    with pytest.raises(ModelError, match=r"current\.json: .* is not the name"):
        open_package(base)


def test_a_hot_version_that_is_not_there(base: Path) -> None:
    publish(base / "dense_hot_export", 20261124080000)
    with pytest.raises(ModelError, match="20261124080000, which is not there"):
        open_package(base)


def test_a_hot_export_needs_its_base(base: Path) -> None:
    root = base / "dense_hot_export"
    loose = base.parent / "online"
    loose.mkdir()
    root.rename(loose / "dense_hot_export")
    root = loose / "dense_hot_export"
    for path in (loose, root, root / "versions" / "20261121080000"):
        with pytest.raises(ModelError, match=r"procserver\.hot_export to this folder"):
            open_package(path)


def test_a_hot_export_over_an_ordinary_export(base: Path, tmp_path: Path) -> None:
    plain = export(tmp_path / "plain")
    with pytest.raises(ModelError, match="has no distributed embeddings"):
        open_package(plain, hot_export=base)
    with pytest.raises(ModelError, match="there is no folder"):
        open_package(plain, hot_export=tmp_path / "nowhere")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        open_package(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"holds no scripted_model\.pt"):
        open_package(tmp_path)
    path = export(tmp_path / "export")
    for text in ("{", "[]", '{"a": "\xff"}', "[" * 100_000):
        (path / "model_acc.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(ModelError, match=r"model_acc\.json is not"):
            open_package(path)
