"""The expression language: grammar, refusals, and agreement with the oracle."""

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cython_ext.fg_expr import Expression
from procserver.errors import FgConfigError
from procserver.fg.expression import FUNCTIONS, MAX_DEPTH, VECTOR, compile_formula

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

import fg_expr_oracle as oracle

EXAMPLES = int(os.environ.get("FG_EXAMPLES", "60"))
NAMES = ("a", "b", "long_name_7")


def run(text, fill=math.nan, **cells):
    formula = compile_formula(text, tuple(cells), feature="f", key="expression")
    return Expression(formula.program).evaluate(list(cells.values()), fill)


def value(text, **numbers):
    ((found,),) = run(text, **{name: [[x]] for name, x in numbers.items()})
    return found


def bits(rows):
    """Rows of numbers as comparable bits, every NaN alike."""
    flat = np.array([x for row in rows for x in row], dtype=np.float64)
    return np.where(np.isnan(flat), -1, flat.view(np.int64)).tolist()


# ------------------------------------------------------------------- grammar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-2^2", -4.0),
        ("2^-2", 0.25),
        ("2^-2^2", 2.0**-4),
        ("2^3^2", 512.0),
        ("-2*3", -6.0),
        ("7-2-3", 2.0),
        ("16/4/2", 2.0),
        ("1+2*3^2", 19.0),
        ("1<2<3", 1.0),
        ("3>2>1", 0.0),
        ("1+1==2", 1.0),
        ("1==1&2", 0.0),
        ("6&3|8", 10.0),
        ("1||0&&0", 1.0),
        ("0.5&&0.1", 1.0),
        ("2.9|1.2", 3.0),
        ("1?2:3?4:5", 2.0),
        ("0?2:0?4:5", 5.0),
        ("1?0?1:2:3", 2.0),
        ("1?2:3+10", 2.0),
        ("0||1?2:3", 2.0),
        ("2--2", 4.0),
        ("2*-3", -6.0),
        ("+3", 3.0),
        (" \t( 1 + 2 )\n* 3 ", 9.0),
        (".5+1.", 1.5),
        ("1e3+1E-1+2.5e+0", 1002.6),
        ("_pi", math.pi),
        ("_e", math.e),
        ("rint(2.5)", 3.0),
        ("rint(-2.5)", -2.0),
        ("round(-2.5)", -3.0),
        ("trunc(-2.7)", -2.0),
        ("sign(-3)+sign(0)+sign(2)", 0.0),
        ("mod(7,3)", 1.0),
        ("mod(-7,3)", -1.0),
        ("roundp(3.14159,2)", 3.14),
        ("min(3,1,2)+max(3,1,2)", 4.0),
        ("sum(1,2,4)", 7.0),
        ("avg(1,2,6)", 3.0),
        ("ln(_e)", 1.0),
        ("sigmoid(0)", 0.5),
        ("isnan(0/0)+isnan(1)", 1.0),
        ("log10(1000)", math.log10(1000)),
        ("coth(1)*tanh(1)+cot(1)*tan(1)", 2.0),
        ("len(5)", 1.0),
    ],
)
def test_values(text, expected):
    assert value(text) == expected
    assert bits([oracle.evaluate(oracle.parse(text), {})]) == bits([[expected]])


def test_names_may_be_those_of_functions():
    assert value("len + sin", len=2.0, sin=3.0) == 5.0


def test_variables_are_multiplied_where_muparser_does():
    x = 1.1
    assert value("x^3", x=x) == x * x * x
    assert value("x^0", x=math.nan) == 1.0
    assert value("x^1", x=x) == x


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("len(a)", 3.0),
        ("l2_norm(a)", math.sqrt(14)),
        ("squared_norm(a)", 14.0),
        ("dot(a,b)", 4.0 + 4 + 9),
        ("euclid_dist(a,b)", 3.0),
        ("corr(a,a)", 1.0),
        ("std_dev(a)", math.sqrt(2 / 3)),
        ("variance(a)", 2 / 3),
        ("pop_std_dev(a)", 1.0),
        ("pop_variance(a)", 1.0),
        ("reduce_min(a)", 1.0),
        ("reduce_max(a)", 3.0),
        ("reduce_sum(a)", 6.0),
        ("reduce_mean(a)", 2.0),
        ("reduce_prod(a)", 6.0),
    ],
)
def test_vector_functions(text, expected):
    assert run(text, a=[[1.0, 2.0, 3.0]], b=[[4.0, 2.0, 3.0]]) == [
        [pytest.approx(expected, rel=1e-15)]
    ]


def test_distances_are_in_kilometres():
    assert value("haversine(116.4074,39.9042,121.4737,31.2304)") == pytest.approx(
        1067.3, abs=0.1
    )
    assert value("sphere_dist(0,0,180,0)") == pytest.approx(math.pi * 6371)
    assert value("sphere_dist(10,20,10,20)") == 0.0


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "position 1: unexpected end"),
        ("1+", "position 3: unexpected end"),
        ("a+bee", "position 3: unknown variable 'bee'"),
        ("a+foo(1)", "position 3: unknown function 'foo'"),
        ("sin()", "position 1: sin takes 1 argument, not 0"),
        ("1+atan2(1)", "position 3: atan2 takes 2 arguments, not 1"),
        ("dot(a)", "position 1: dot takes 2 arguments, not 1"),
        ("rnd(1)", "position 1: rnd takes 0 arguments, not 1"),
        ("min()", "position 1: min takes one argument or more"),
        ("sin(1,)", "position 7: unexpected ')'"),
        ("1 2", "position 3: unexpected '2'"),
        ("a a", "position 3: unexpected 'a'"),
        ("(1,2)", "position 3: unexpected ',', not ')'"),
        ("1,2", "position 2: unexpected ','"),
        ("--1", "two signs in a row"),
        ("((1)", "position 5: unexpected end, not ')'"),
        ("1)", "position 2: unexpected ')'"),
        ("a=1", "position 2: unexpected '='"),
        ("!a", "position 1: unexpected '!'"),
        ("7%3", "position 2: unexpected '%'"),
        ("1?2", "position 4: unexpected end, not ':'"),
        ("1:2", "position 2: unexpected ':'"),
        ("sin", "position 1: unknown variable 'sin'"),
        ("\u4ef7+1", "position 1: unexpected '\u4ef7'"),
        ("1\x01", "position 2: unexpected"),
        ("(" * 3000 + "1" + ")" * 3000, f"more than {MAX_DEPTH} levels"),
        ("2^" * 3000 + "1", f"more than {MAX_DEPTH} levels"),
        ("1?" * 3000 + "1", f"more than {MAX_DEPTH} levels"),
        ("1?1:" * 3000 + "1", f"more than {MAX_DEPTH} levels"),
        ("sin(" * 3000, f"more than {MAX_DEPTH} levels"),
        ("a+" * 9000 + "a", "longer than"),
        ("+".join(f"{i}.5*a" for i in range(400)), "too many numbers"),
    ],
)
def test_refusals_name_feature_key_and_position(text, reason):
    with pytest.raises(FgConfigError) as caught:
        compile_formula(text, ["a"], feature="clicks", key="expression")
    assert caught.value.feature == "clicks"
    assert caught.value.key == "expression"
    assert reason in caught.value.reason


def test_the_deepest_allowed_nesting_compiles():
    levels = "a||1&&1|1&1<1+1*"
    text = (levels + "len(") * (MAX_DEPTH - 1) + "a" + ")" * (MAX_DEPTH - 1)
    assert value(text, a=1.0) == 1.0


def test_two_variables_of_one_name_are_refused():
    with pytest.raises(FgConfigError, match="two variables named 'a'"):
        compile_formula("a", ["a", "a"], feature="f", key="expression")


def test_long_flat_formulas_compile():
    assert value("a" + "+a" * 5000, a=1.0) == 5001.0


@given(st.text(alphabet="ab1.()+-*/^?:<>=!&|,e _sinlen", max_size=40))
@settings(max_examples=EXAMPLES * 6, deadline=None)
def test_any_text_is_compiled_or_refused(text):
    try:
        found = run(text, a=[[1.0, 2.0]], b=[[3.0]])
    except FgConfigError:
        return
    if "rnd" not in text:
        expected = oracle.evaluate(oracle.parse(text), {"a": [1.0, 2.0], "b": [3.0]})
        assert bits(found) == bits([expected])


# -------------------------------------------------------------- random trees


numbers = st.one_of(
    st.integers(0, 9).map(float),
    st.floats(0, 1e6, allow_subnormal=False).map(abs),
    st.sampled_from([1e-300, 1e300, 0.1, 2.0, 3.0, 4.0, 63.0, 2.0**62]),
)
leaves = st.one_of(numbers, st.sampled_from(NAMES))
SIGNS = [sign for sign in oracle.PRIORITY if sign not in "?:" and "sign" not in sign]


def grown(children):
    calls = [
        st.tuples(st.just(name), *[children] * count)
        for name, (_, count) in sorted(FUNCTIONS.items())
    ]
    vectors = [
        st.tuples(st.just(name), *[children] * count)
        for name, count in sorted(VECTOR.items())
    ]
    variadic = st.tuples(
        st.sampled_from(("min", "max", "sum", "avg")),
        st.lists(children, min_size=1, max_size=4),
    ).map(lambda one: (one[0], *one[1]))
    return st.one_of(
        st.tuples(st.sampled_from(SIGNS), children, children),
        st.tuples(st.sampled_from(("sign-", "sign+")), children),
        st.tuples(st.just("?:"), children, children, children),
        st.one_of(calls),
        st.one_of(vectors),
        variadic,
    )


trees = st.recursive(leaves, grown, max_leaves=14)


def printed(tree, bracket):
    """The text of a tree, with no more brackets than it needs, and its priority."""
    if isinstance(tree, float):
        return repr(tree), 9
    if isinstance(tree, str):
        return tree, 9
    name, *operands = tree
    if name == "?:":
        parts = [printed(one, bracket) for one in operands]
        first = parts[0][0] if parts[0][1] > 0 else f"({parts[0][0]})"
        return f"{first} ? {parts[1][0]} : {parts[2][0]}", 0
    if name in ("sign-", "sign+"):
        text, priority = printed(operands[0], bracket)
        return f"{name[4:]}{text}" if priority > 7 else f"{name[4:]}({text})", 7
    if name in oracle.PRIORITY:
        mine = oracle.PRIORITY[name]
        (left, low), (right, high) = (printed(one, bracket) for one in operands)
        if low < mine or (name == "^" and low == mine) or bracket:
            left = f"({left})"
        signed = isinstance(operands[1], tuple) and operands[1][0].startswith("sign")
        if (high < mine or (name != "^" and high == mine)) and not (
            signed and high == 7
        ):
            right = f"({right})"
        return f"{left}{name}{right}", mine
    texts = [printed(one, bracket)[0] for one in operands]
    return f"{name}({', '.join(texts)})", 9


cells = st.lists(
    st.one_of(
        st.floats(-100, 100),
        st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan, 1e308, 5e-324]),
    ),
    min_size=1,
    max_size=4,
)


@given(
    trees,
    st.booleans(),
    st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=4),
)
@settings(max_examples=EXAMPLES * 10, deadline=None)
def test_random_trees_agree_with_the_oracle(tree, bracket, rows):
    text, _ = printed(tree, bracket)
    columns = dict(zip(NAMES, zip(*rows, strict=True), strict=True))
    found = run(text, fill=-7.5, **columns)
    reread = oracle.parse(text)
    for i, row in enumerate(rows):
        named = dict(zip(NAMES, row, strict=True))
        expected = oracle.evaluate(tree, named, -7.5)
        assert bits([oracle.evaluate(reread, named, -7.5)]) == bits([expected]), text
        assert bits([found[i]]) == bits([expected]), text


@given(trees, st.lists(st.floats(width=32), min_size=1, max_size=3))
@settings(max_examples=EXAMPLES * 3, deadline=None)
def test_programs_over_one_number_agree_with_columns(tree, numbers):
    text, _ = printed(tree, False)
    for name in NAMES:
        text = text.replace(name, "x")
    try:
        formula = compile_formula(text, ["x"], feature="f", key="k")
    except FgConfigError:
        return
    compiled = Expression(formula.program)
    if formula.scalar:
        for x in numbers:
            assert bits([[compiled.scalar(x)]]) == bits(compiled.evaluate([[[x]]]))
