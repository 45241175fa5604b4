"""Distributed-embedding exports: every refusal, and scores of the undivided model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exports
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

import sparse_export as made

from procserver import shm
from procserver.errors import BadTensor, ModelError
from procserver.model.loading import load
from procserver.model.package import open_package
from procserver.model.runner import ModelRunner
from procserver.model.shared import attach, publish
from procserver.model.sparse import SparseEmbeddings, names_read
from procserver.model.tables import SLOTS, read_tables

FORMS = ["float32", "float16", "int8"]
TAGS = f"{made.EBC}tags_emb"
WIRE = {"int32": 3, "int64": 9, "float32": 1}


def embeddings(path: Path) -> SparseEmbeddings:
    package = open_package(path)
    return SparseEmbeddings(package, read_tables(package))


def runner(path: Path) -> ModelRunner:
    return ModelRunner(load(open_package(path)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("items", [1, 3, 40])
@pytest.mark.parametrize("default", [True, False])
def test_tensors_and_scores_of_the_undivided_model(
    tmp_path: Path, form: str, items: int, default: bool
) -> None:
    path = made.write_export(tmp_path / "export", form, default=default)
    tensors = made.request_tensors(items, seed=items)
    joined = embeddings(path).join(tensors)
    expected = made.looked_up(tensors, form, default=default)
    assert joined.keys() == expected.keys()
    for name, array in expected.items():
        # The ids of a mean are summed in the same order, then divided.
        assert np.allclose(joined[name], array, rtol=0, atol=1e-6), name
        if name not in ("deep__ebc",):
            assert np.array_equal(joined[name], array), name
    scores = runner(path).run(tensors)
    for name, array in made.full_forward(tensors, form, default=default).items():
        assert scores[name].shape == (items,)
        assert np.allclose(scores[name], array, rtol=0, atol=1e-6)


def test_named_tensors_from_clients_give_the_same_scores(tmp_path: Path) -> None:
    ours = runner(made.write_export(tmp_path / "export"))
    for width in (np.int32, np.int64):
        tensors = made.request_tensors(7, width=width)
        named = {n: (WIRE[a.dtype.name], a) for n, a in tensors.items()}
        expected = ours.run(tensors)
        scores = ours.run_map(named)
        named["user_id.values"] = (3, tensors["user_id.values"].astype(np.int32))
        narrow = ours.run_map(named)
        for name, array in expected.items():
            assert np.array_equal(scores[name], array)
            assert np.array_equal(narrow[name], array)


def test_several_shards_are_one_table(tmp_path: Path) -> None:
    for form in FORMS:
        one = read_tables(open_package(made.write_export(tmp_path / f"1{form}", form)))
        three = read_tables(
            open_package(made.write_export(tmp_path / f"3{form}", form, shards=3))
        )
        assert one.keys() == three.keys()
        for name, table in one.items():
            assert np.array_equal(table, three[name]), name
            assert table.flags.c_contiguous
            assert type(table) is np.ndarray


@pytest.mark.parametrize("form", FORMS)
def test_shared_tables_give_the_same_scores(tmp_path: Path, form: str) -> None:
    package = open_package(made.write_export(tmp_path / "export", form))
    own = load(package)
    assert f"{made.SHOP}{SLOTS}" in own.tables
    name = shm.segment_name("sparse-tables", shm.this_process(), "weights-1")
    publish(own, name, shm.this_process())
    try:
        attached = attach(package, name)
    finally:
        shm.unlink(name)
    for table in attached.tables.values():
        assert not table.flags.owndata
    tensors = made.request_tensors(9)
    expected = ModelRunner(own).run(tensors)
    scores = ModelRunner(attached).run(tensors)
    for output, array in expected.items():
        assert np.array_equal(scores[output], array)


def test_no_items_and_no_ids(tmp_path: Path) -> None:
    ours = embeddings(made.write_export(tmp_path / "export"))
    joined = ours.join(made.request_tensors(0, steps=0))
    assert joined["deep__ebc"].shape == (0, 14)
    assert joined["deep__ebc_user"].shape == (1, 4)
    assert joined["category"].shape == (0, 8)
    assert joined["clicks__tags"].shape == (0, 6)
    assert joined["clicks__tags__lengths"].tolist() == [0]


@pytest.mark.parametrize(
    ("tensor", "value", "said"),
    [
        ("category.values", 8, r"category\.values\[0\]: id 8 .* of 8 rows"),
        ("user_id.values", -1, r"user_id\.values\[0\]: id -1 .* of 50 rows"),
        ("clicks__tags.values", 30, r"clicks__tags\.values\[0\]: id 30 .* 30 rows"),
        ("tags.lengths", 90, r"tags\.lengths: .* (values|entries)"),
        ("clicks__tags.key_lengths", -1, r"clicks__tags\.key_lengths"),
        ("clicks__tags.lengths", 6, r"clicks__tags\.lengths"),
    ],
)
def test_a_request_that_does_not_fit_is_named(
    tmp_path: Path, tensor: str, value: int, said: str
) -> None:
    ours = runner(made.write_export(tmp_path / "export"))
    tensors = made.request_tensors(12, seed=3)
    tensors[tensor] = tensors[tensor].copy()
    tensors[tensor][0] = value
    with pytest.raises(BadTensor, match=said):
        ours.run(tensors)
    with pytest.raises(BadTensor, match=said):
        ours.run_map({n: (WIRE[a.dtype.name], a) for n, a in tensors.items()})


def test_missing_tensors_and_unequal_rows(tmp_path: Path) -> None:
    ours = embeddings(made.write_export(tmp_path / "export"))
    tensors = made.request_tensors(4)
    for name in ("tags.values", "tags.lengths"):
        with pytest.raises(BadTensor, match=rf"needs tensor '{name}'"):
            ours.join({n: a for n, a in tensors.items() if n != name})
    tensors["tags.lengths"] = np.append(tensors["tags.lengths"], np.int32(0))
    with pytest.raises(BadTensor, match=r"tags\.lengths: 5 rows, but category"):
        ours.join(tensors)
    tensors = made.request_tensors(4)
    tensors["tags.values"] = tensors["tags.values"].astype(np.float32)
    with pytest.raises(BadTensor, match=r"tags\.values: not a vector of int64"):
        ours.join(tensors)


def _json(name: str, change: Callable[[dict[str, Any]], object]) -> Any:
    def apply(path: Path) -> None:
        file = path / name
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return apply


def _npz(name: str, change: Callable[[dict[str, Any]], object]) -> Any:
    def apply(path: Path) -> None:
        file = path / "sparse" / name
        with np.load(file) as archive:
            content = dict(archive)
        change(content)
        np.savez(file, **content)

    return apply


FIXED = "sparse_embeddings-00-of-01.npz"
KEYED = "sparse_dynamic_embedding-00-of-01.npz"
TABLES_JSON = "sparse/sparse_embedding.json"
FEATURES_JSON = "sparse/sparse_features.json"


def _cut(path: Path) -> None:
    file = path / "sparse" / FIXED
    file.write_bytes(file.read_bytes()[:-100])


def _flip(path: Path) -> None:
    # Bytes of a table: the archive's directory stays as it is.
    file = path / "sparse" / FIXED
    content = bytearray(file.read_bytes())
    content[400:440] = bytes(40)
    file.write_bytes(content)


def _plain(path: Path) -> None:
    with (path / "sparse" / FIXED).open("wb") as out:
        np.save(out, np.zeros((3, 3)))


def _pickled(path: Path) -> None:
    user = f"{made.USER}user_id_emb"
    np.savez(path / "sparse" / FIXED, **{user: np.array([{}], object)})


def _stale(path: Path) -> None:
    shard = (path / "sparse" / KEYED).read_bytes()
    (path / "sparse" / "sparse_dynamic_embedding-00-of-02.npz").write_bytes(shard)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_cut, [FIXED, "not a readable"]),
        (_flip, [FIXED, "unreadable"]),
        (_plain, [FIXED, "not a .npz"]),
        (_pickled, [FIXED, "user_id_emb"]),
        (_stale, [KEYED, "sparse_dynamic_embedding-00-of-02.npz", "different exports"]),
        (_npz(FIXED, lambda c: c.pop(TAGS)), [TAGS, FIXED]),
        (_npz(FIXED, lambda c: c.update({TAGS: c[TAGS][1:]})), [TAGS, FIXED, "[29]"]),
        (_npz(FIXED, lambda c: c.update({TAGS: c[TAGS][:, 1:]})), [TAGS, FIXED]),
        (_npz(FIXED, lambda c: c.update({TAGS: c[TAGS][0]})), [TAGS, FIXED]),
        (
            _npz(FIXED, lambda c: c.update({TAGS: c[TAGS].astype(np.float64)})),
            [TAGS, FIXED, "float64"],
        ),
        (_npz(KEYED, lambda c: c.pop(f"{made.SHOP}.keys")), [made.SHOP, KEYED]),
        (_npz(KEYED, lambda c: c.pop(f"{made.SHOP}.values")), [made.SHOP, KEYED]),
        (
            _npz(
                KEYED,
                lambda c: c.update({f"{made.SHOP}.keys": c[f"{made.SHOP}.keys"][1:]}),
            ),
            [made.SHOP, KEYED, "keys int64[8]"],
        ),
        (
            _npz(
                KEYED,
                lambda c: c.update({f"{made.SHOP}.default_value": np.zeros(3, "f4")}),
            ),
            [made.SHOP, KEYED],
        ),
        (
            _json(TABLES_JSON, lambda c: c[made.SHOP].update(shape=[8, 4])),
            [made.SHOP, KEYED, "9 rows"],
        ),
        (
            _json(TABLES_JSON, lambda c: c[TAGS].update(shape=[30])),
            [TAGS, "sparse_embedding.json", "shape"],
        ),
        (
            _json(TABLES_JSON, lambda c: c[TAGS].update(shape=[30, True])),
            [TAGS, "sparse_embedding.json", "shape"],
        ),
        (
            _json(TABLES_JSON, lambda c: c[TAGS].update(dimension=7)),
            [TAGS, "sparse_embedding.json", "dimension"],
        ),
        (
            _json(TABLES_JSON, lambda c: c[TAGS].update(dtype="bfloat16")),
            [TAGS, "sparse_embedding.json", "bfloat16"],
        ),
        (
            _json(TABLES_JSON, lambda c: c[TAGS].update(dtype="float16")),
            [TAGS, FIXED, "float16"],
        ),
        (
            _json(TABLES_JSON, lambda c: c[TAGS].update(quant={"format": "INT4"})),
            [TAGS, "sparse_embedding.json", "INT4"],
        ),
        (
            _json(TABLES_JSON, lambda c: c.update({TAGS: 3})),
            [TAGS, "sparse_embedding.json"],
        ),
        (
            _json(TABLES_JSON, lambda c: c.pop(TAGS)),
            [TAGS, "tags__ebc", "sparse_embedding.json"],
        ),
        (
            _json(FEATURES_JSON, lambda c: c.pop("tags__ebc")),
            ["tags__ebc", "sparse_features.json"],
        ),
        (
            _json(FEATURES_JSON, lambda c: c["tags__ebc"].update(pooling="MAX")),
            ["tags__ebc", "MAX", "sparse_features.json"],
        ),
        (
            _json("dense_meta.json", lambda c: c.update(deep__ebc="tags__ebc")),
            ["deep__ebc", "dense_meta.json"],
        ),
        (
            _json("dense_meta.json", lambda c: c["sequence__ec"].append("tags")),
            ["'tags'", "dense_meta.json"],
        ),
        (lambda p: (p / "dense_meta.json").write_text("["), ["dense_meta.json"]),
        (lambda p: (p / "dense_meta.json").write_text("[]"), ["dense_meta.json"]),
    ],
)
def test_damaged_and_contradictory_exports_are_refused_by_name(
    tmp_path: Path, damage: Callable[[Path], object], said: list[str]
) -> None:
    path = made.write_export(tmp_path / "export")
    damage(path)
    with pytest.raises(ModelError) as refused:
        runner(path)
    for part in said:
        assert part in str(refused.value), refused.value


def test_default_rows_that_differ_are_refused(tmp_path: Path) -> None:
    path = made.write_export(tmp_path / "export", shards=2)
    name = "sparse_dynamic_embedding-01-of-02.npz"
    entry = f"{made.SHOP}.default_value"
    _npz(name, lambda c: c.update({entry: c[entry] + 1}))(path)
    with pytest.raises(ModelError, match=name):
        read_tables(open_package(path))


@pytest.mark.parametrize("kind", ["sparse_embeddings", "sparse_dynamic_embedding"])
def test_a_missing_shard_is_noticed(tmp_path: Path, kind: str) -> None:
    path = made.write_export(tmp_path / "export", shards=3)
    (path / "sparse" / f"{kind}-01-of-03.npz").unlink()
    with pytest.raises(ModelError, match=rf"_emb'.* rows in {kind}-00-of-03\.npz"):
        read_tables(open_package(path))


def test_a_table_that_every_rank_wrote_is_taken_once(tmp_path: Path) -> None:
    path = made.write_export(tmp_path / "export", shards=2)
    whole = made.tables("float32")[TAGS]
    for rank in range(2):
        _npz(
            f"sparse_embeddings-0{rank}-of-02.npz",
            lambda c: c.update({TAGS: whole}),
        )(path)
    assert np.array_equal(read_tables(open_package(path))[TAGS], whole)
    _npz("sparse_embeddings-01-of-02.npz", lambda c: c.update({TAGS: whole + 1}))(path)
    with pytest.raises(ModelError, match=r"tags_emb.*\[30, 30\] rows"):
        read_tables(open_package(path))


class Composing(made.Dense):
    """Reads the same tensors, one of them by a name that it makes."""

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        lost = torch.zeros(1)
        for part in ["lengths", "values"]:
            lost = data["user_id." + part].float().sum()
        return {"probs_ctr": data["deep__ebc"].sum(1) + lost}


def test_ids_that_the_script_does_not_read_end_here(tmp_path: Path) -> None:
    package = open_package(made.write_export(tmp_path / "export"))
    loaded = load(package)
    read = names_read(loaded.module)
    assert read is not None
    ours = SparseEmbeddings(package, loaded.tables, read)
    tensors = made.request_tensors(3)
    joined = ours.join(tensors)
    # Extra ones that are not of looked-up features are left alone.
    assert read - joined.keys() == set()
    assert joined.keys() - read == set()
    assert "clicks__tags.key_lengths" in joined
    assert "extra" in ours.join({**tensors, "extra": np.zeros(3)})

    composing = torch.jit.script(Composing())
    assert names_read(composing) is None
    composing.save(str(package.script))
    scores = runner(package.base).run(tensors)["probs_ctr"]
    expected = made.looked_up(tensors, "float32")["deep__ebc"].sum(1)
    assert np.allclose(scores, expected + tensors["user_id.values"].sum(), atol=1e-5)


def test_a_feature_of_several_tables_is_looked_up_in_each(tmp_path: Path) -> None:
    """As a wide and a deep part read it: ``sparse_features.json`` knows one table."""
    path = made.write_export(tmp_path / "export")
    deep, wide = f"{made.EBC}category_emb", f"{made.EBC}category_emb_wide"
    seq, short = (f"{made.SEQ}{n}.embeddings.category_{n}" for n in (8, 3))
    rng = np.random.default_rng(3)
    added = {
        name: rng.normal(size=(rows, dim)).astype(np.float32)
        for name, rows, dim in [(wide, 8, 2), (seq, 20, 8), (short, 20, 3)]
    }
    readers = {wide: "category__ebc", seq: "category__ec", short: "category__ec"}
    sparse = path / "sparse"
    file = sparse / "sparse_embeddings-00-of-01.npz"
    with np.load(file) as archive:
        stored = {**archive, **added}
    np.savez(file, **stored)
    tables = json.loads((sparse / "sparse_embedding.json").read_text())
    known = json.loads((sparse / "sparse_features.json").read_text())
    for name, table in added.items():
        tables[name] = {
            "feat_name_impl": [readers[name]],
            "dtype": "float32",
            "dimension": table.shape[1],
            "shape": list(table.shape),
        }
        known[readers[name]]["embedding_name"] = name
    made.put(sparse / "sparse_embedding.json", tables)
    made.put(sparse / "sparse_features.json", known)
    meta = {
        "deep__wide__ebc": [
            "category@category_emb_wide__ebc",
            "tags__ebc",
            "category@category_emb__ebc",
        ],
        "sequence__ec": [
            *("category@category_8__ec", "category@category_8__lengths"),
            *("category@category_3__ec", "category@category_3__lengths"),
        ],
    }
    made.put(path / "dense_meta.json", meta)
    tensors = made.request_tensors(5)
    joined = embeddings(path).join(tensors)
    ids, lengths = tensors["category.values"], tensors["category.lengths"]
    pooled = joined["deep__wide__ebc"]
    for name, columns in [(wide, slice(0, 2)), (deep, slice(8, 16))]:
        expected = np.zeros_like(pooled[:, columns])
        expected[lengths == 1] = stored[name][ids]
        assert np.array_equal(pooled[:, columns], expected), name
    for dim, name in [(8, seq), (3, short)]:
        assert np.array_equal(joined[f"category@category_{dim}"], stored[name][ids])
        assert np.array_equal(joined[f"category@category_{dim}__lengths"], lengths)

    meta["deep__wide__ebc"][0] = "category@nowhere__ebc"
    made.put(path / "dense_meta.json", meta)
    with pytest.raises(ModelError, match=r"category@nowhere__ebc.*table '\*\.nowhere'"):
        embeddings(path)


def test_a_hot_dense_part_reads_the_tables_of_its_base(tmp_path: Path) -> None:
    path = made.write_export(tmp_path / "export", "int8")
    folder = exports.hot_version(path / "dense_hot_export", "20261121080000")
    torch.manual_seed(99)
    newer = made.Dense().eval()
    torch.jit.script(newer).save(str(folder / "scripted_model.pt"))
    # Its groups have another order than those of the base export.
    meta = dict(made.DENSE_META, deep__ebc=["tags__ebc", "category__ebc"])
    made.put(folder / "dense_meta.json", meta)
    exports.publish(path / "dense_hot_export", "20261121080000")
    tensors = made.request_tensors(6)
    scores = runner(path).run(tensors)
    joined = made.looked_up(tensors, "int8")
    joined["deep__ebc"] = np.roll(joined["deep__ebc"], 6, axis=1)
    batch = {n: torch.from_numpy(np.asarray(a)) for n, a in joined.items()}
    with torch.inference_mode():
        expected = newer(batch)
    for name, array in scores.items():
        assert np.allclose(array, expected[name].numpy(), rtol=0, atol=1e-6)


def test_other_exports_have_no_tables(tmp_path: Path) -> None:
    path = made.write_export(tmp_path / "export")
    for name in ("model_acc.json", "dense_meta.json"):
        (path / name).unlink()
    package = open_package(path)
    assert read_tables(package) == {}
    with pytest.raises(ModelError, match="no sparse tables"):
        SparseEmbeddings(package, {})
