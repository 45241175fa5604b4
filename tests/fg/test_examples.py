"""Complete fg.json files: TorchEasyRec's example configurations load and run.

A file that uses a feature type or an expression that is not implemented is refused
by feature and key; which files those are follows from what is implemented.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from text_models import train_bpe

from procserver.errors import FgConfigError
from procserver.fg import FeatureGenerator
from procserver.fg.types import TYPES

DATA = Path(__file__).parent.parent / "data" / "fg"
EXAMPLES = sorted((DATA / "fg_examples").glob("*.json"))
# Written to show spellings, with references to features that it does not have.
FRAGMENT = "vendor_style_legacy_keys"


def entries(content):
    for entry in content["features"]:
        yield from entry.get("features", [entry])


def lacks(content):
    """Features that are not implemented, and the key that says so."""
    for one in entries(content):
        if one["feature_type"].removeprefix("sequence_") not in TYPES:
            yield one["feature_name"], "feature_type"
        elif (
            "expression" in one.get("normalizer", "")
            and "expr_feature" not in TYPES
        ):  # fmt: skip
            yield one["feature_name"], "normalizer"


@pytest.fixture
def assets(tmp_path):
    """Call for a folder that holds assets as the files name them."""

    def folder():
        shutil.copytree(DATA / "fg_assets", tmp_path / "data" / "test")
        train_bpe(tmp_path / "data" / "test" / "tokenizer.json")
        return tmp_path

    return folder


def columns_for(generator, rows):
    """Numbers as text, as many as a dense row is wide, and a null."""
    columns = {}
    for one in generator.spec.features:
        width = one.width if one.numeric else 1
        for ref in one.inputs:
            if ref.side in ("const", "feature"):
                continue
            text = one.separator.decode().join(["1"] * max(width, 1))
            if ref.key == "map":
                text = "1:1"
            columns.setdefault(ref.column, pa.array([text, None] * (rows // 2)))
    return columns


def run(generator):
    tensors = generator.transform(columns_for(generator, 4))
    assert set(tensors) == set(generator.tensor_names())
    assert tensors
    for name, array in tensors.items():
        if array.dtype == np.float32:
            assert np.isfinite(array).all(), name
        if name.endswith(".lengths"):
            assert len(array) == 4, name
    row = generator.default_row()
    assert set(row) == {one["name"] for one in generator.describe() if one["tensors"]}
    assert len(generator.dump(tensors)) == 4


def test_all_examples_are_here():
    assert len(EXAMPLES) == 12


@pytest.mark.parametrize(
    "path",
    [path for path in EXAMPLES if FRAGMENT not in path.name],
    ids=lambda path: path.stem,
)
def test_exported_examples(path, assets):
    content = json.loads(path.read_text())
    refused = list(lacks(content))
    if refused:
        with pytest.raises(FgConfigError) as caught:
            FeatureGenerator(path, asset_dir=assets())
        assert (caught.value.feature.split("__")[-1], caught.value.key) in refused
        return
    folder = assets()
    rtp = "_rtp_" in path.name
    run(FeatureGenerator(path, asset_dir=folder, rtp=rtp, farm_hash=True))
    given = FeatureGenerator(content, asset_dir=folder, bucketize_only=True)
    assert set(given.tensor_names()) == set(
        FeatureGenerator(content, asset_dir=folder).tensor_names()
    )


def test_the_fragment_is_refused_for_what_it_lacks():
    (path,) = (path for path in EXAMPLES if FRAGMENT in path.name)
    content = json.loads(path.read_text())
    with pytest.raises(FgConfigError) as caught:
        FeatureGenerator(content)
    known = [*lacks(content), ("dist_bin", "operator_name")]
    assert (caught.value.feature, caught.value.key) in known


def test_legacy_spellings_of_the_fragment():
    """Completed by the features that it refers to, less a vendor's library."""
    (path,) = (path for path in EXAMPLES if FRAGMENT in path.name)
    content = copy.deepcopy(json.loads(path.read_text()))
    known = [
        entry for entry in content["features"]
        if not list(lacks({"features": [entry]}))
        and entry.get("feature_type") != "custom_feature"
    ]  # fmt: skip
    missing = [
        {
            "feature_type": "id_feature",
            "feature_name": name,
            "expression": "user:hist_text",
            "stub_type": True,
        }
        for name in ("weekday", "hist__iid_kept", "seq_keep")
        if name not in {entry.get("feature_name") for entry in known}
    ]
    generator = FeatureGenerator(content | {"features": [*known, *missing]})
    described = {one["name"]: one for one in generator.describe()}
    assert described["wk_level"]["stub"]
    assert described["price_ctx"]["values"] == "numbers"
    assert generator.spec.reserves == ("label", "request_id")
    if "level_clk_cnt" in described:
        columns = {
            "kv_level_clk": pa.array(["3:2\x1d4:6"]),
            "level": pa.array(["3\x1d4"]),
            "cate_clk": pa.array(["a:1\x1db:5"]),
            "cate": pa.array(["a\x1db"]),
            "price": pa.array([None], pa.float64()),
            "hist__ts": pa.array(["1;2"]),
        }
        tensors = generator.transform(columns)
        assert tensors["level_clk_cnt.values"].tolist() == [[4.0]]
        assert tensors["cate_clk_max.values"].tolist() == [[5.0]]
        assert tensors["price_ctx.values"].tolist() == [[-1999999.0]]
        assert tensors["hist__ts.values"].tolist() == [[1.0], [2.0]]
