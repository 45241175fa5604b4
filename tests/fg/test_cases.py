"""The conformance cases of ``tests/data/fg/fg_cases.json``, in all their modes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from procserver.errors import BadFeature, FgConfigError
from procserver.fg import FeatureGenerator
from procserver.fg.types import TYPES
from procserver.fg.types.custom import OPERATORS

DATA = Path(__file__).parent.parent / "data" / "fg"
CASES = json.loads((DATA / "fg_cases.json").read_text())["cases"]
MODES = ("fg", "default_row", "unbucketized", "error", "dump", "bucketize_only")


def features_of(fg_json):
    for entry in fg_json["features"]:
        yield from entry.get("features", [entry])


def has_known_type(feature):
    kind = feature["feature_type"].removeprefix("sequence_")
    if kind == "custom_feature":
        return feature["operator_name"] in OPERATORS
    return kind in TYPES


def is_known(case):
    return all(map(has_known_type, features_of(case["fg_json"])))


def is_covered(case):
    return case["mode"] in MODES and is_known(case)


def arrow_type(text):
    if text.startswith("list<"):
        return pa.list_(arrow_type(text[5:-1]))
    if text.startswith("map<"):
        key, value = text[4:-1].split(", ")
        return pa.map_(arrow_type(key), arrow_type(value))
    return {
        "string": pa.string(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "null": pa.null(),
    }[text]


def columns_of(case):
    columns = {}
    for name, column in case["inputs"].items():
        values = column["values"]
        if column["type"].startswith("map<"):
            # JSON has no tuples.
            values = [cell and [tuple(pair) for pair in cell] for cell in values]
        columns[name] = pa.array(values, arrow_type(column["type"]))
    return columns


def generator_of(case, asset_dir=DATA):
    farm = case["env"].get("USE_FARM_HASH_TO_BUCKETIZE") == "true"
    return FeatureGenerator(
        case["fg_json"],
        asset_dir=asset_dir,
        farm_hash=farm,
        bucketize_only=case["mode"] == "bucketize_only",
    )


def assert_ints(found, expected, dtype, what):
    assert found.dtype == dtype, what
    assert found.tolist() == expected, what


def assert_floats(case, found, expected, what):
    assert found.dtype == np.float32, what
    expected = np.array(expected, dtype=np.float32).reshape(found.shape)
    if case["id"].startswith("oracle"):
        assert found.tobytes() == expected.tobytes(), what
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=what)


def sorted_pairs(ids, weights, lengths):
    pairs, at = [], 0
    for length in lengths:
        row = zip(ids[at : at + length], weights[at : at + length], strict=True)
        pairs.append(sorted(row))
        at += length
    return pairs


def check_tensors(case, tensors):
    for name, expected in case["expected"].items():
        what = f"{case['id']}: {name}"
        values = tensors[f"{name}.values"]
        if "dense" in expected:
            assert values.ndim == 2, what
            if "shape" in expected:
                assert list(values.shape) == expected["shape"], what
            elif expected["dense"]:
                assert len(values) == len(expected["dense"]), what
            assert_floats(case, values, expected["dense"], what)
        elif "weights" in expected and case.get("order_insensitive"):
            lengths = expected["lengths"]
            found = tensors[f"{name}.weights"].tolist()
            weights = np.array(expected["weights"], dtype=np.float32).tolist()
            assert sorted_pairs(values.tolist(), found, lengths) == sorted_pairs(
                expected["values"], weights, lengths
            ), what
        else:
            assert_ints(values, expected["values"], np.int64, what)
            if "weights" in expected:
                weights = tensors[f"{name}.weights"]
                assert_floats(case, weights, expected["weights"], what)
        if "lengths" in expected:
            assert_ints(tensors[f"{name}.lengths"], expected["lengths"], np.int32, what)
        # key_lengths of 1 are implied where the contract leaves them out.
        if "key_lengths" in expected:
            keys = tensors.get(f"{name}.key_lengths")
            if keys is None:
                keys = np.ones(len(values), dtype=np.int32)
            assert_ints(keys, expected["key_lengths"], np.int32, what)


def check_default_row(case, row):
    for name, expected in case["expected"].items():
        wanted = expected["default_row"]
        if not isinstance(wanted, list):
            wanted = [] if wanted is None else [wanted]
        if row[name].dtype == np.float32:
            wanted = np.array(wanted, dtype=np.float32).tolist()
        assert row[name].tolist() == wanted, case["id"]


COVERED = [case for case in CASES if is_covered(case)]


def test_the_covered_cases_are_those_of_the_known_types():
    assert len(CASES) == 348
    assert len(COVERED) == 348


@pytest.mark.parametrize("case", COVERED, ids=lambda case: case["id"])
def test_case(case, case_ran, case_assets):
    asset_dir = case_assets(case)
    if case["mode"] == "error":
        with pytest.raises((FgConfigError, BadFeature)):
            generator_of(case, asset_dir).transform(columns_of(case))
        case_ran(case["id"])
        return
    generator = generator_of(case, asset_dir)
    if case["mode"] in ("fg", "bucketize_only"):
        check_tensors(case, generator.transform(columns_of(case)))
    elif case["mode"] == "dump":
        lines = generator.dump(generator.transform(columns_of(case)))
        assert lines == case["expected"]["__dump__"], case["id"]
    elif case["mode"] == "default_row":
        check_default_row(case, generator.default_row())
    else:
        found = generator.unbucketized(columns_of(case))
        for name, expected in case["expected"].items():
            assert found[name] == expected["unbucketized"], case["id"]
    case_ran(case["id"])
