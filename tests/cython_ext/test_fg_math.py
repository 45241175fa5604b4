"""Operations of expressions, one number at a time."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cython_ext.fg_math import fold

sys.path.insert(0, str(Path(__file__).parent.parent / "reference"))

import fg_expr_oracle as oracle

UNARY = (
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh"),
    *("acosh", "atanh", "log", "log2", "log10", "exp", "sqrt", "sign", "rint", "abs"),
    *("floor", "ceil", "trunc", "round", "sigmoid", "isnan", "cot", "coth"),
)
BINARY = (
    *("+", "-", "*", "/", "^", "<", "<=", ">", ">=", "==", "!=", "&&", "||", "&", "|"),
    *("min", "max", "mod", "atan2", "roundp"),
)
SPECIAL = (0.0, -0.0, 0.5, -0.5, 2.5, math.inf, -math.inf, math.nan, 1e308, 5e-324)


def same(found, expected):
    expected = float(expected)
    if math.isnan(expected):
        return math.isnan(found)
    return found == expected and math.copysign(1, found) == math.copysign(1, expected)


@pytest.mark.parametrize("name", UNARY)
@given(st.floats())
def test_unary(name, x):
    with np.errstate(all="ignore"):
        for one in (x, *SPECIAL):
            assert same(fold(name, [one]), oracle.apply(name, [np.float64(one)])), one


@pytest.mark.parametrize("name", BINARY)
@given(st.floats(), st.one_of(st.floats(), st.sampled_from(SPECIAL)))
@example(0.0, -0.0)
@example(-0.0, 0.0)
@example(math.nan, 1.0)
@example(1.0, math.nan)
@example(2.0**63, 1.0)
@example(-3.7, 5.9)
def test_binary(name, x, y):
    with np.errstate(all="ignore"):
        expected = oracle.apply(name, [np.float64(x), np.float64(y)])
    assert same(fold(name, [x, y]), expected)


@given(st.tuples(*[st.floats(-200, 200)] * 4))
def test_haversine(points):
    expected = oracle.kilometres(*map(np.float64, points))
    assert same(fold("haversine", points), expected)


def test_choice_and_negation():
    assert fold("?:", [math.nan, 1.0, 2.0]) == 1.0
    assert fold("?:", [-0.0, 1.0, 2.0]) == 2.0
    assert math.copysign(1, fold("neg", [0.0])) == -1


def test_only_element_wise_operations_fold():
    for name in ("dot", "len", "load", "expand", "rnd"):
        with pytest.raises(ValueError, match="element-wise"):
            fold(name, [1.0])
    with pytest.raises(KeyError):
        fold("none", [1.0])
    with pytest.raises(ValueError, match="element-wise"):
        fold("+", [1.0] * 5)
