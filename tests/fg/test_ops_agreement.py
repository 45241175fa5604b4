"""Random lookups, matches, overlaps, ...: the kernels against the oracle."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_oracle_agreement import (
    EXAMPLES,
    bucketizers,
    cells_of,
    check,
    column_types,
    normalizers,
    words,
)

SETTINGS = settings(
    max_examples=EXAMPLES // 4,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
WHOLE = ("lookup", "match")
KINDS = ["combine", "lookup", "match", "overlap", "kv_dot_product", "bool_mask"]
COMBINERS = ["", "sum", "mean", "AVG", "min", "Max", "count", "gap_min", "gap_max"]
METHODS = [
    "query_common_ratio", "title_common_ratio", "is_contain", "is_equal", "index_of",
    "proximity_min_cover", "proximity_min_dist", "proximity_max_dist",
    "proximity_avg_dist",
]  # fmt: skip
NUMERIC = [None, "boundaries", "num_buckets"]
TEXTUAL = ["hash_bucket_size", "vocab_list", "vocab_dict", "num_buckets", "boundaries"]

keys = st.sampled_from(["a", "b", "c", "é中", "1", "2", "", "ALL", "a" * 40])
numbers = st.sampled_from(
    ["1", "2", "-0.5", "0.1", "x", "", "1e3", "nan", "7:8", "inf"]
)
bits = st.sampled_from(["true", "TRUE", "false", "1", "0", "", "yes", "0.5", "nan"])
pairs = st.one_of(st.builds("{}:{}".format, keys, numbers), keys, words)
items = st.lists(pairs, max_size=4).map(",".join)
blocks = st.one_of(st.builds("{}^{}".format, keys, items), items)


def joined(parts, separators, least=0):
    return st.builds(
        lambda separator, found: separator.join(found),
        st.sampled_from(separators),
        st.lists(parts, min_size=least, max_size=5),
    )


SEPARATORS = ["|", ",", "\x1d", ";", "\x1d;"]
TEXTS = st.one_of(
    joined(keys, SEPARATORS),
    joined(pairs, SEPARATORS),
    joined(bits, SEPARATORS),
    joined(numbers, SEPARATORS),
    joined(blocks, ["|", "|;"]),
    words,
)
SCALARS = ["string", "string", "string", "int64", "int32", "float", "double"]


def texts_in(kind):
    """Cells as those of ``cells_of``, with texts of this module's grammars."""
    if kind == "string":
        return st.none() | TEXTS
    if kind == "list<string>":
        return st.none() | st.lists(st.none() | keys | pairs | bits | TEXTS, max_size=5)
    if kind == "list<list<string>>":
        inner = st.lists(st.none() | keys | pairs | numbers, max_size=3)
        return st.none() | st.lists(st.none() | inner, max_size=3)
    if kind.startswith("map<string, "):
        value = kind[len("map<string, ") : -1]
        values = st.none() | numbers | items if value == "string" else cells_of(value)
        found = st.lists(st.tuples(keys, values), max_size=4, unique_by=lambda p: p[0])
        return st.none() | found
    return cells_of(kind)


@st.composite
def columns(draw, rows, *, plain=False):
    shapes = ["string", "string", "string", "list<string>"]
    if not plain:
        shapes += ["list<list<string>>", "map<string, string>", "map<string, float>"]
        shapes += ["map<int64, string>", "map<string, int64>", "list<int64>"]
    kind = draw(st.sampled_from(shapes) | column_types(maps=not plain))
    count = draw(st.sampled_from([rows, rows, 1]))
    return kind, draw(st.lists(texts_in(kind), min_size=count, max_size=count))


def inputs_of(draw, kind, inputs):
    one = st.sampled_from(inputs)
    if kind == "combine":
        return {"expression": draw(one)}
    if kind == "bool_mask":
        return {"expression": [draw(one), draw(one)]}
    if kind == "lookup":
        return {"map": draw(one), "key": draw(one)}
    if kind == "overlap":
        return {"query": draw(one), "title": draw(one)}
    if kind == "kv_dot_product":
        return {"query": draw(one), "document": draw(one)}
    some = one | st.just("ALL")
    return {"user": draw(one), "category": draw(some), "item": draw(some)}


def own_keys(draw, kind):
    if kind == "combine":
        value_map = st.dictionaries(keys, st.floats(-9, 9), max_size=4)
        return {
            "combiner": draw(st.sampled_from(COMBINERS)),
            "value_map": draw(st.just({}) | value_map),
        }
    if kind == "lookup":
        spelling = draw(st.sampled_from(["needDiscrete", "need_discrete"]))
        return {
            spelling: draw(st.booleans()),
            draw(st.sampled_from(["needKey", "need_key"])): draw(st.booleans()),
            "combiner": draw(st.sampled_from(COMBINERS)),
            "value_type": draw(st.sampled_from(["string", "float", "int64"])),
        }
    if kind == "match":
        spelling = draw(st.sampled_from(["matchType", "match_type"]))
        return {
            spelling: draw(st.sampled_from(["hit", "multihit"])),
            "needDiscrete": draw(st.booleans()),
            "show_category": draw(st.booleans()),
            "show_item": draw(st.booleans()),
        }
    if kind == "overlap":
        return {"method": draw(st.sampled_from(METHODS))}
    if kind == "kv_dot_product":
        return {"kv_delimiter": draw(st.sampled_from([":", ":", "^"]))}
    return {}


@st.composite
def features(draw, name, inputs, kind, *, sequence=False):
    feature = {"feature_name": name, "feature_type": f"{kind}_feature"}
    if kind == "kv_dot_product":
        feature["feature_type"] = kind
    feature |= inputs_of(draw, kind, inputs) | own_keys(draw, kind)
    feature["separator"] = draw(st.sampled_from(["|", ",", "\x1d"]))
    feature["default_value"] = draw(st.sampled_from(["", "0", "7", "3"]))
    numeric = kind in ("combine", "overlap", "kv_dot_product")
    feature |= draw(bucketizers(NUMERIC if numeric else [*TEXTUAL, None]))
    if kind not in ("bool_mask", "kv_dot_product"):
        feature["normalizer"] = draw(normalizers)
    if kind in ("bool_mask", "lookup", "match"):
        feature["need_prefix"] = draw(st.booleans())
        if draw(st.booleans()):
            feature["value_dim"] = draw(st.integers(0, 2))
    if sequence and draw(st.booleans()):
        texts = [t for t in feature.values() if isinstance(t, str) and ":" in t]
        texts = [t for t in texts if t.split(":")[0] in ("user", "item", "feature")]
        texts += feature.get("expression", []) if kind == "bool_mask" else []
        names = [text.split(":", 1)[1] for text in texts]
        if names:
            some = st.lists(st.sampled_from(names), min_size=1)
            feature["sequence_fields"] = draw(some)
    feature["stub_type"] = draw(st.sampled_from([False, False, True]))
    return feature


few = st.sampled_from(["a", "b", "c", "1", "2"])
values = st.sampled_from(["1", "2", "-0.5", "0.1", "3", "17"])
good_pairs = st.builds("{}:{}".format, few, values)
good_blocks = st.builds("{}^{}".format, few, joined(good_pairs, [",", "\x1d"], 2))
flags = st.sampled_from(["true", "false", "1", "0"])
FORMS = {
    "combine": [joined(values, "|", 2)],
    "lookup": [joined(good_pairs, "\x1d", 3), joined(few, "|", 2)],
    "match": [joined(good_blocks, "|", 2), few, joined(few, "|", 2)],
    "overlap": [joined(few, "|", 2), joined(few, "|", 2)],
    "kv_dot_product": [joined(good_pairs, "|", 2), joined(good_pairs, "|", 2)],
    "bool_mask": [joined(few, "|", 2), joined(flags, "|", 2)],
}
BUCKETS = [
    {},
    {"boundaries": [-1.0, 0.2, 1.0, 2.5, 5.0]},
    {"num_buckets": 20},
]
TEXT_BUCKETS = [
    *BUCKETS[1:],
    {"hash_bucket_size": 10**6},
    {"vocab_list": ["1", "2", "a", "b", "3", "-0.5"], "default_bucketize_value": 9},
    {"vocab_dict": {"1": 4, "2": 5, "a": 6, "c": 7}, "default_bucketize_value": 9},
]


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(data=st.data(), rows=st.integers(2, 6), sequence=st.booleans())
def test_well_formed_texts(kind, data, rows, sequence):
    """Nearly every row has a result that is not the default."""
    forms = FORMS[kind]
    cells = {}
    for name, form in zip("abc", forms, strict=False):
        whole = name == "a" and kind in ("lookup", "match")
        if sequence and not whole:
            form = st.lists(form, min_size=1, max_size=3).map(";".join)
        count = data.draw(st.sampled_from([rows, 1]))
        cells[name] = (
            "string",
            data.draw(st.lists(form, min_size=count, max_size=count)),
        )
    names = [f"user:{name}" for name in cells]
    entry = {
        "feature_name": "f",
        "feature_type": kind if kind == "kv_dot_product" else f"{kind}_feature",
        "separator": "|",
        "default_value": "7",
        "is_sequence": sequence,
        "sequence_fields": [n for n in cells if n != "a" or kind not in WHOLE],
    }
    entry |= own_keys(data.draw, kind)
    if kind == "kv_dot_product":
        entry["kv_delimiter"] = ":"
    fields = {"lookup": ["map", "key"], "match": ["user", "category", "item"]}
    fields |= {"overlap": ["query", "title"], "kv_dot_product": ["query", "document"]}
    if kind in fields:
        entry |= dict(zip(fields[kind], names, strict=True))
    else:
        entry["expression"] = names
    numeric = kind in ("combine", "overlap", "kv_dot_product")
    entry |= data.draw(st.sampled_from(BUCKETS if numeric else TEXT_BUCKETS))
    check({"features": [entry]}, cells, farm=True)


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(data=st.data(), rows=st.integers(0, 4), farm=st.booleans())
def test_plain_features(kind, data, rows, farm):
    cells = {name: data.draw(columns(rows, plain=name != "a")) for name in "abc"}
    inputs = ["user:a", "user:a", "item:b", "context:c", "item:missing"]
    inputs += ["const:a:1,b:2", "const:a|b"]
    count = data.draw(st.integers(1, 2))
    entries = [data.draw(features(f"f{i}", inputs, kind)) for i in range(count)]
    check({"features": entries}, cells, farm=farm)


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(data=st.data(), rows=st.integers(0, 3))
def test_stand_alone_sequences(kind, data, rows):
    cells = {name: data.draw(columns(rows, plain=name != "c")) for name in "abc"}
    inputs = ["user:a", "item:b", "user:c"]
    entry = data.draw(features("f", inputs, kind, sequence=True))
    if data.draw(st.booleans()):
        entry["feature_type"] = "sequence_" + entry["feature_type"]
    else:
        entry["is_sequence"] = True
    entry["sequence_delim"] = data.draw(st.sampled_from([";", "|"]))
    entry["sequence_length"] = data.draw(st.integers(0, 2))
    check({"features": [entry]}, cells, farm=False)


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(data=st.data(), rows=st.integers(1, 3))
def test_groups_and_graphs(kind, data, rows):
    """Features of a group read columns and each other; one outside reads them."""
    names = ("s__a", "s__b", "b", "c")
    cells = {name: data.draw(columns(rows, plain=True)) for name in names}
    first = data.draw(features("x", ["item:a", "user:b"], kind, sequence=True))
    other = data.draw(st.sampled_from(KINDS))
    inputs = ["feature:x", "item:a", "user:c"]
    second = data.draw(features("y", inputs, other, sequence=True))
    second.pop("sequence_fields", None)
    group = {
        "sequence_name": "s",
        "sequence_length": data.draw(st.integers(0, 2)),
        "features": [second, first],
    }
    outer = data.draw(features("z", ["feature:s__x", "user:b", "feature:s__y"], kind))
    check({"features": [outer, group]}, cells, farm=False)
