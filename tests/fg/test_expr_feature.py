"""expr_feature, SeqExpr and expression normalizers against their oracles."""

import math
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from procserver.errors import BadFeature, FgConfigError
from procserver.fg import FeatureGenerator

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

import fg_expr_oracle as language
from fg_expr_features import ExprOracle
from fg_oracle import Refused

SETTINGS = settings(
    max_examples=int(os.environ.get("FG_EXAMPLES", "60")) * 3,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
ARROW = {
    "string": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
}
FORMULAS = (
    "a + b * 2",
    "a / b",
    "dot(a, b)",
    "dot(a, b) / (l2_norm(a) * l2_norm(b)) + c",
    "a - reduce_mean(a)",
    "a > b ? a : c",
    "len(a) + len(b) * 10",
    "reduce_max(a + b) - min(c, 3)",
    "log(a) + sqrt(b) + isnan(c)",
    "euclid_dist(a, b + reduce_sum(c))",
    "std_dev(a) + pop_variance(b) * c^2",
    "1 + 2",
)


def generator_of(*entries, **options):
    return FeatureGenerator({"features": list(entries)}, **options)


def expr(expression="a + b", variables=("user:a", "item:b"), **more):
    return {
        "feature_type": "expr_feature",
        "feature_name": "e",
        "expression": expression,
        "variables": list(variables),
    } | more


def seq_expr(formula="a + b", inputs=("user:a", "user:b"), **more):
    return {
        "feature_type": "custom_feature",
        "feature_name": "s",
        "operator_name": "SeqExpr",
        "formula": formula,
        "expression": list(inputs),
        "is_sequence": True,
    } | more


def grouped(*entries, **more):
    return {
        "sequence_name": "clk",
        "sequence_delim": "|",
        "features": list(entries),
    } | more


# ------------------------------------------------------------ random features

number_texts = st.one_of(
    st.integers(-50, 50).map(str),
    st.floats(-1e3, 1e3, allow_nan=False).map(repr),
    st.sampled_from(["nan", "inf", "x", "", "1e400", " 2 ", "0"]),
)
SCALARS = {
    "string": st.lists(number_texts, max_size=3).map("\x1d".join),
    "int32": st.integers(-100, 100),
    "int64": st.integers(-(2**60), 2**60),
    "float": st.floats(width=32),
    "double": st.floats(),
}


def cells_of(scalar, shape):
    one = SCALARS[scalar]
    if scalar == "string" and shape == "sequence text":
        one = st.lists(one, max_size=4).map("|".join)
    if shape == "list":
        one = st.lists(st.one_of(st.none(), one, one, one), max_size=4)
    elif shape == "lists":
        one = st.lists(st.lists(one, max_size=3), max_size=3)
    return st.one_of(st.none(), one, one, one, one)


def type_of(scalar, shape):
    kind = ARROW[scalar]
    for _ in range({"list": 1, "lists": 2}.get(shape, 0)):
        kind = pa.list_(kind)
    return kind


def oracle_type(scalar, shape):
    return {"list": f"list<{scalar}>", "lists": f"list<list<{scalar}>>"}.get(
        shape, scalar
    )


@st.composite
def drawn_columns(draw, names, shapes):
    rows = draw(st.sampled_from([1, 2, 3, 5]))
    arrow, plain = {}, {}
    for name in names:
        scalar = draw(st.sampled_from(sorted(SCALARS)))
        shape = draw(st.sampled_from(shapes))
        count = draw(st.sampled_from([1, rows, rows]))
        values = draw(st.lists(cells_of(scalar, shape), min_size=count, max_size=count))
        arrow[name] = pa.array(values, type_of(scalar, shape))
        plain[name] = (oracle_type(scalar, shape), arrow[name].to_pylist())
    return arrow, plain


outputs = st.fixed_dictionaries(
    {},
    optional={
        "default_value": st.sampled_from(["", "0", "1.5", "-3"]),
        "value_dim": st.sampled_from([0, 1, 2]),
        "boundaries": st.just([-1.0, 0.0, 0.5, 10.0]),
    },
)


def check(entry, oracle, arrow, plain, group=None):
    generator = generator_of(grouped(entry, **group) if group is not None else entry)
    try:
        expected = oracle.transform(plain)
    except Refused:
        with pytest.raises(BadFeature):
            generator.transform(arrow)
        return
    found = generator.transform(arrow)
    assert set(found) == set(expected)
    for name, array in found.items():
        wanted = np.array(expected[name], dtype=array.dtype).reshape(array.shape)
        assert np.array_equal(array, wanted, equal_nan=array.dtype.kind == "f"), name


@given(st.data(), st.sampled_from(FORMULAS), outputs)
@SETTINGS
def test_expr_features_agree_with_the_oracle(data, formula, output):
    if data.draw(st.booleans()):
        output["fill_missing"] = data.draw(st.sampled_from([0, -1.5, "nan"]))
    entry = expr(formula, ["user:a", "item:b", "context:c"], **output)
    arrow, plain = data.draw(drawn_columns("abc", ["scalar", "scalar", "list"]))
    check(entry, ExprOracle(entry), arrow, plain)


@given(st.data(), st.sampled_from(FORMULAS), outputs)
@SETTINGS
def test_sequence_expr_features_agree_with_the_oracle(data, formula, output):
    group = data.draw(st.sampled_from([{}, {"sequence_length": 2}, None]))
    fields = data.draw(st.sampled_from([None, ["a"], ["b", "c"], ["a", "b", "c"]]))
    more = {} if fields is None else {"sequence_fields": fields}
    sides = data.draw(st.sampled_from([("user", "item"), ("user", "user")]))
    entry = expr(
        formula, [f"{sides[0]}:a", f"{sides[1]}:b", "user:c"], **more, **output
    )
    if group is None:
        entry["feature_type"] = "sequence_expr_feature"
        entry |= {"sequence_delim": "|", "sequence_length": 3}
    oracle = ExprOracle(entry, (group and grouped(entry, **group)) or None)
    if group == {}:
        oracle = ExprOracle(entry, grouped(entry))
    shapes = ["scalar", "sequence text", "sequence text", "list", "lists"]
    arrow, plain = data.draw(drawn_columns(oracle.columns, shapes))
    check(entry, oracle, arrow, plain, group)


@given(st.data(), outputs)
@SETTINGS
def test_seq_expr_agrees_with_the_oracle(data, output):
    formula = data.draw(st.sampled_from(["a - b", "a * b + 1", "mod(a, 3)"]))
    fields = data.draw(st.sampled_from([None, ["a"], ["a", "b"]]))
    more = {} if fields is None else {"sequence_fields": fields}
    if data.draw(st.booleans()):
        more["normalizer"] = "method=minmax,min=-3,max=7"
    entry = seq_expr(formula, **more, **output)
    in_group = data.draw(st.booleans())
    if not in_group:
        entry["sequence_delim"] = "|"
    oracle = ExprOracle(entry, grouped(entry) if in_group else None)
    shapes = ["scalar", "sequence text", "sequence text", "list"]
    arrow, plain = data.draw(drawn_columns(oracle.columns, shapes))
    check(entry, oracle, arrow, plain, {} if in_group else None)


# ---------------------------------------------------------- written-out cases


def test_dense_rows_are_as_wide_as_computed():
    found = generator_of(expr()).transform(
        {
            "a": pa.array([[1.0, 2.0], None, [5.0]]),
            "b": pa.array([10.0, 20.0, 30.0]),
        }
    )
    assert found["e.values"].tolist() == [[11, 12], [0, 0], [35, 35]]


def test_a_wrong_number_of_values_is_refused_by_name():
    generator = generator_of(expr(value_dim=3))
    columns = {"a": pa.array([[1.0, 2.0]]), "b": pa.array([1.0])}
    with pytest.raises(BadFeature, match=r"'e'.*gives 2 values, not 3"):
        generator.transform(columns)
    assert generator.transform(columns | {"a": pa.array([[1.0, 2.0, 3.0, 4.0]])})[
        "e.values"
    ].tolist() == [[2, 3, 4]]


def test_null_numbers_are_missing_unlike_raw():
    generator = generator_of(expr(boundaries=[0.0, 1.0], default_value=""))
    found = generator.transform({"a": pa.array([None, 1.0]), "b": pa.array([1.0, 1.0])})
    assert found["e.values"].tolist() == [2]
    assert found["e.lengths"].tolist() == [0, 1]


def test_doubles_are_not_rounded_before_the_end():
    found = generator_of(expr("a - b")).transform(
        {"a": pa.array([16777217.0]), "b": pa.array(["16777216"])}
    )
    assert found["e.values"].tolist() == [[1.0]]


def test_a_stub_feeds_a_consumer():
    generator = generator_of(
        expr("a * 2", ["user:a"], feature_name="x", stub_type=True),
        expr("x + b", ["feature:x", "item:b"]),
        {
            "feature_type": "id_feature",
            "feature_name": "i",
            "expression": "feature:x",
            "num_buckets": 100,
        },
    )
    found = generator.transform({"a": pa.array(["3"]), "b": pa.array([1.0, None])})
    assert set(found) == {"e.values", "i.values", "i.lengths"}
    assert found["e.values"].tolist() == [[7.0], [0.0]]
    assert found["i.values"].tolist() == [6, 6]


def test_user_side_keeps_one_row_when_tiling():
    generator = generator_of(expr("a + 1", ["user:a"]))
    from cython_ext.column import Column

    user = {"a": Column.from_arrow(pa.array([2.0]))}
    assert generator.generate(user, {}, {}, 3, tile=True)["e.values"].tolist() == [[3]]
    assert generator.generate(user, {}, {}, 3, tile=False)["e.values"].shape == (3, 1)


def test_zero_rows_and_default_rows():
    generator = generator_of(expr(default_value="0.5", value_dim=2))
    empty = {"a": pa.array([], pa.string()), "b": pa.array([], pa.float64())}
    assert generator.transform(empty)["e.values"].shape == (0, 2)
    assert generator.default_row()["e"].tolist() == [0.5, 0.5]


def test_distances_take_fields_by_position():
    entry = seq_expr(
        "spherical_distance",
        ["user:x-1", "user:2", "user:x-1", "user:2b"],
        is_sequence=False,
    )
    found = generator_of(entry).transform(
        {"x-1": pa.array(["1"]), "2": pa.array(["0"]), "2b": pa.array(["180"])}
    )
    assert found["s.values"].item() == np.float32(math.pi * 6371)


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        (expr("a +"), "expression"),
        (expr("a + z"), "expression"),
        (expr(variables=()), "variables"),
        (expr(variables=["a"]), "variables"),
        (expr(variables=["user:a", "item:a"]), "expression"),
        (expr(fill_missing="none"), "fill_missing"),
        (expr(hash_bucket_size=10), "hash_bucket_size"),
        (expr(default_value="x"), "default_value"),
        (expr(value_dim=10**9), "value_dim"),
        (seq_expr("a +"), "formula"),
        (seq_expr("spherical_distance"), "expression"),
        ({k: v for k, v in seq_expr().items() if k != "formula"}, "formula"),
        (seq_expr(inputs=()), "expression"),
    ],
)
def test_refusals_name_feature_and_key(entry, key):
    with pytest.raises(FgConfigError) as caught:
        generator_of(entry)
    assert caught.value.feature == entry["feature_name"]
    assert caught.value.key == key


# ------------------------------------------------------ expression normalizers


def raw(expression, **more):
    return {
        "feature_type": "raw_feature",
        "feature_name": "r",
        "expression": "user:a",
        "default_value": "-9",
        "normalizer": f"method=expression,expr={expression}",
    } | more


@given(
    st.sampled_from(
        ["log(x+3)", "x > 0 ? x^2 : -x", "min(x, 3) + max(1,x)", "roundp(x,2)", "x==1"]
    ),
    st.sampled_from(["string", "int32", "int64", "float", "double"]),
    st.data(),
    st.booleans(),
)
@SETTINGS
def test_expression_normalizers_agree_with_the_oracle(formula, kind, data, sparse):
    one = SCALARS[kind] if kind != "string" else st.floats(allow_nan=False).map(repr)
    values = data.draw(st.lists(st.one_of(st.none(), one), min_size=1, max_size=5))
    array = pa.array(values, ARROW[kind])
    entry = raw(formula, **({"boundaries": [-1.0, 0.0, 1.5, 3.0]} if sparse else {}))
    found = generator_of(entry).transform({"a": array})["r.values"].reshape(-1)
    tree = language.parse(formula)
    with np.errstate(all="ignore"):
        for value, one in zip(array.to_pylist(), found, strict=True):
            expected = np.float32(-9)
            if value is not None:
                # Texts are read as doubles, numbers as float32 (section 6).
                x = float(value) if kind == "string" else float(np.float32(value))
                expected = np.float32(language.evaluate(tree, {"x": [x]})[0])
            if sparse:
                bounds = np.array([-1.0, 0.0, 1.5, 3.0], dtype=np.float32)
                expected = (
                    4
                    if np.isnan(expected)
                    else np.searchsorted(bounds, expected, side="right")
                )
            assert np.array_equal(one, expected, equal_nan=not sparse)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("x,y", "position 2"),
        ("", "unexpected end"),
        ("y + 1", "unknown variable"),
        ("len(x)", "vector functions"),
    ],
)
def test_expression_normalizers_refuse(expression, reason):
    with pytest.raises(FgConfigError, match=reason) as caught:
        generator_of(raw(expression))
    assert caught.value.key == "normalizer"


def test_a_normalizer_without_its_expression_is_refused():
    entry = raw("x") | {"normalizer": "method=expression"}
    with pytest.raises(FgConfigError, match="expr is missing"):
        generator_of(entry)


def test_an_expression_may_hold_commas_and_equal_signs():
    found = generator_of(raw("max(x, 2) == 2")).transform({"a": pa.array([1.0, 3.0])})
    assert found["r.values"].tolist() == [[1.0], [0.0]]
