"""Random specs and columns: the kernels against ``tests/reference/fg_oracle.py``.

``FG_EXAMPLES`` in the environment sets how many of each (120).
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from procserver.errors import BadFeature
from procserver.fg import FeatureGenerator

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

from fg_oracle import Oracle, Refused

EXAMPLES = int(os.environ.get("FG_EXAMPLES", "120"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SCALARS = ("string", "int32", "int64", "float", "double")
ARROW = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
}

number_texts = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-5, 120).map(str),
    st.floats(allow_nan=True, allow_infinity=True).map(repr),
    st.sampled_from(["0.1", "+01", "-0.0", ".5", "5.", "1e3", " 7 ", "0x1p3", "1_0"]),
)
words = st.one_of(
    number_texts,
    st.text(alphabet="ab1|;:,_\x1d\0é中🙂 .-+e", max_size=12),
    st.text(max_size=4).filter(lambda t: t.isprintable()),
    st.sampled_from(["", "a", "b", "xyz", "a" * 40, "ab" * 50, "k:0.5", "k:x", ":1"]),
)
VALUES = {
    "string": words,
    "int32": st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 110),
    "int64": st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 110),
    "float": st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0, 5.0, -0.0]),
    "double": st.floats() | st.sampled_from([0.0, 0.1, 1.5, 5.2, -0.0, 1e16]),
}


def maybe(values):
    return st.none() | values


@st.composite
def column_types(draw, *, maps=True):
    scalar = draw(st.sampled_from(SCALARS))
    shapes = ["{}", "{}", "list<{}>", "list<list<{}>>"]
    shape = draw(st.sampled_from([*shapes, "map", "null"] if maps else shapes[:3]))
    if shape == "null":
        return "null"
    if shape == "map":
        key = draw(st.sampled_from(SCALARS[:3]))
        return f"map<{key}, {scalar}>"
    return shape.format(scalar)


def cells_of(kind):
    if kind == "null":
        return st.none()
    if kind.startswith("map<"):
        key, value = kind[4:-1].split(", ")
        pairs = st.tuples(VALUES[key], maybe(VALUES[value]))
        return maybe(st.lists(pairs, max_size=3, unique_by=lambda p: p[0]))
    if kind.startswith("list<"):
        return maybe(st.lists(cells_of(kind[5:-1]), max_size=3))
    return maybe(VALUES[kind])


def arrow_type(kind):
    if kind == "null":
        return pa.null()
    if kind.startswith("map<"):
        key, value = kind[4:-1].split(", ")
        return pa.map_(ARROW[key], ARROW[value])
    if kind.startswith("list<"):
        return pa.list_(arrow_type(kind[5:-1]))
    return ARROW[kind]


@st.composite
def columns(draw, rows, *, maps=True):
    kind = draw(column_types(maps=maps))
    count = draw(st.sampled_from([rows, rows, 1]))
    values = draw(st.lists(cells_of(kind), min_size=count, max_size=count))
    return kind, values


@st.composite
def bucketizers(draw, kinds):
    kind = draw(st.sampled_from(kinds))
    if kind is None:
        return {}
    if kind in ("hash_bucket_size", "num_buckets"):
        sizes = st.sampled_from([1, 10, 100, 2147483659, 2**63 - 1])
        return {kind: draw(sizes)}
    if kind == "vocab_list":
        listed = draw(st.lists(words, min_size=1, max_size=5))
        return {kind: listed, "default_bucketize_value": draw(st.integers(0, 3))}
    if kind == "vocab_dict":
        mapped = draw(st.dictionaries(words, st.integers(0, 9), min_size=1, max_size=5))
        return {kind: mapped, "default_bucketize_value": 1}
    bounds = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=6)
    return {kind: sorted(draw(bounds))}


normalizers = st.sampled_from(
    [
        "",
        "method=log10",
        "method=log10,threshold=0.05,default=-5",
        "method=log10,threshold=-1e30,default=2",
        "method=zscore,mean=0.1,standard_deviation=0.3",
        "method=minmax,min=0.1,max=0.8",
    ]
)


@st.composite
def features(draw, name, inputs, *, sequence=False):
    """One feature over one or more of the ``side:name`` inputs."""
    kind = draw(st.sampled_from(["id", "id", "raw", "combo"]))
    feature = {"feature_name": name, "feature_type": f"{kind}_feature"}
    if draw(st.booleans()):
        feature["separator"] = draw(st.sampled_from(["|", ",", "\x1d"]))
    if kind == "raw":
        dim = draw(st.sampled_from([1, 1, 2]))
        feature["value_dim"] = dim
        separator = feature.get("separator", "\x1d")
        numbers = draw(st.lists(st.floats(-5, 5), min_size=dim, max_size=dim))
        defaults = ["", "0", "0.25", separator.join(map(str, numbers))]
        feature["default_value"] = draw(st.sampled_from(defaults))
        feature["normalizer"] = draw(normalizers)
        feature |= draw(bucketizers([None, "boundaries", "num_buckets"]))
    else:
        feature["default_value"] = draw(st.sampled_from(["", "7", "+3"]))
        if draw(st.booleans()):
            feature["value_dim"] = draw(st.integers(0, 3))
        feature["need_prefix"] = draw(st.booleans())
        kinds = ["hash_bucket_size", "vocab_list", "vocab_dict", "boundaries", None]
        if kind == "id":
            feature["weighted"] = draw(st.booleans())
            kinds.append("num_buckets")
        feature |= draw(bucketizers(kinds))
    count = draw(st.integers(2, 3)) if kind == "combo" else 1
    some = st.lists(st.sampled_from(inputs), min_size=count, max_size=count)
    chosen = draw(some)
    feature["expression"] = chosen if kind == "combo" else chosen[0]
    if sequence and draw(st.booleans()):
        names = [text.split(":", 1)[1] for text in chosen]
        feature["sequence_fields"] = draw(st.lists(st.sampled_from(names), min_size=1))
    feature["stub_type"] = draw(st.sampled_from([False, False, True]))
    return feature


def same(found, expected, name):
    if found.dtype == np.float32:
        wanted = np.array(expected, dtype=np.float32).reshape(found.shape)
        nan = np.isnan(found) & np.isnan(wanted)
        equal = (found.view(np.uint32) == wanted.view(np.uint32)) | nan
        assert equal.all(), (name, found, wanted)
    else:
        assert found.tolist() == expected, name


def check(fg_json, data, *, farm):
    arrays = {
        name: pa.array(values, arrow_type(kind))
        for name, (kind, values) in data.items()
    }
    # Values as Arrow rounded them.
    data = {name: (kind, arrays[name].to_pylist()) for name, (kind, _) in data.items()}
    generator = FeatureGenerator(json.loads(json.dumps(fg_json)), farm_hash=farm)
    try:
        expected = Oracle(fg_json, farm_hash=farm).transform(data)
    except Refused:
        expected = None
    try:
        found = generator.transform(arrays)
    except BadFeature:
        assert expected is None
        return
    assert expected is not None
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        same(found[name], values, name)


@SETTINGS
@given(st.data(), st.sampled_from([0, 1, 2, 3, 40]), st.booleans())
def test_plain_features(data, rows, farm):
    names = ["a", "b", "c"]
    cells = {name: data.draw(columns(rows)) for name in names}
    inputs = ["user:a", "item:b", "context:c", "item:missing", "const:k|1"]
    count = data.draw(st.integers(1, 3))
    entries = [data.draw(features(f"f{i}", inputs)) for i in range(count)]
    check({"features": entries}, cells, farm=farm)


@SETTINGS
@given(st.data(), st.integers(0, 3))
def test_one_column_of_the_right_shape(data, rows):
    """No maps and no nesting: nothing is refused, so values are always compared."""
    cells = {"a": data.draw(columns(rows, maps=False))}
    entry = data.draw(features("f", ["user:a"]))
    check({"features": [entry]}, cells, farm=True)


@SETTINGS
@given(st.data(), st.integers(0, 3))
def test_stand_alone_sequences(data, rows):
    cells = {name: data.draw(columns(rows)) for name in ("a", "b")}
    entry = data.draw(features("f", ["user:a", "item:b"], sequence=True))
    entry["feature_type"] = "sequence_" + entry["feature_type"]
    entry["sequence_delim"] = data.draw(st.sampled_from([";", "|"]))
    entry["sequence_length"] = data.draw(st.integers(0, 2))
    check({"features": [entry]}, cells, farm=False)


@SETTINGS
@given(st.data(), st.integers(1, 3))
def test_groups_and_graphs(data, rows):
    cells = {name: data.draw(columns(rows)) for name in ("s__a", "s__b", "b")}
    first = data.draw(features("x", ["item:a", "user:b"], sequence=True))
    first["stub_type"] = data.draw(st.booleans())
    second = data.draw(features("y", ["feature:x", "item:a", "user:b"], sequence=True))
    if any("feature:x" in text for text in second["expression"]):
        second["sequence_fields"] = ["x", "a"]
    group = {
        "sequence_name": "s",
        "sequence_delim": ";",
        "sequence_length": data.draw(st.integers(0, 2)),
        "features": [second, first],
    }
    outer = data.draw(features("z", ["feature:s__x", "user:b", "feature:s__y"]))
    check({"features": [outer, group]}, cells, farm=False)


def test_the_oracle_reproduces_the_hash_vectors():
    from fg_oracle import farm_hash, std_hash

    path = Path(__file__).parent.parent / "data" / "fg" / "fg_hash_vectors.json"
    for vector in json.loads(path.read_text())["vectors"]:
        data = bytes.fromhex(vector["hex"])
        assert std_hash(data) == int(vector["std"])
        assert farm_hash(data) == int(vector["farm"])
