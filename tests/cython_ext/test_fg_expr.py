"""Compiled expressions: chunks, scopes, folding, and what loading refuses."""

import math

import numpy as np
import pytest

from cython_ext.fg_expr import MAX_REGISTER_COUNT, Expression
from procserver.errors import BadFeature
from procserver.fg.expression import compile_formula


def expression(text, *names):
    formula = compile_formula(text, names, feature="f", key="expression")
    return Expression(formula.program)


def same(found, expected):
    found, expected = np.array(found), np.array(expected)
    assert found.shape == expected.shape
    both = np.isnan(found) & np.isnan(expected)
    assert (both | (found.view(np.int64) == expected.view(np.int64))).all()


@pytest.mark.parametrize("units", [0, 1, 511, 512, 513, 2000])
def test_chunks_of_single_numbers(units):
    rng = np.random.default_rng(units)
    a, b = rng.normal(size=(2, units))
    found = expression("a * b - 1 / a", "a", "b").evaluate(
        [[[x] for x in a], [[x] for x in b]] if units else [[], []]
    )
    same(np.array(found).reshape(-1), a * b - 1 / a)


def test_chunks_of_vectors_longer_than_a_chunk():
    rng = np.random.default_rng(5)
    rows = [rng.normal(size=n).tolist() for n in (1, 700, 3, 512, 1, 2000, 511, 2)]
    found = expression("a * 2 + len(a) * s", "a", "s").evaluate([rows, [[0.5]]])
    for row, one in zip(rows, found, strict=True):
        same(one, np.array(row) * 2 + len(row) * 0.5)


def test_a_shared_vector_meets_every_unit():
    found = expression("dot(a, b)", "a", "b").evaluate(
        [[[1.0, 2.0, 3.0]], [[1.0, 0, 0], [0, 1.0, 0], [4.0]]]
    )
    assert found == [[1.0], [2.0], [24.0]]


def test_shorter_vectors_are_filled_up():
    compiled = expression("a + b", "a", "b")
    cells = [[[1.0, 2.0, 3.0]], [[1.0, 1.0]]]
    same(compiled.evaluate(cells), [[2.0, 3.0, math.nan]])
    same(compiled.evaluate(cells, fill=-1.0), [[2.0, 3.0, 2.0]])


def test_the_length_comes_from_variables_outside_of_vector_functions():
    found = expression("s + reduce_sum(a)", "s", "a").evaluate([[[1.0]], [[1.0, 2.0]]])
    assert found == [[4.0]]
    found = expression("a - reduce_mean(a)", "a").evaluate([[[1.0, 3.0], [5.0]]])
    assert found == [[-1.0, 1.0], [0.0]]


def test_scopes_nest():
    found = expression("reduce_max(a - reduce_mean(a)) + len(b)", "a", "b").evaluate(
        [[[1.0, 5.0], [2.0, 2.0]], [[1.0, 1.0, 1.0], [7.0]]]
    )
    assert found == [[5.0], [1.0]]


def test_random_numbers_differ_and_stay_in_range():
    found = expression("rnd() + 0 * a", "a").evaluate([[[0.0]] * 3000])
    numbers = {one[0] for one in found}
    assert len(numbers) == 3000
    assert all(0 <= x < 1 for x in numbers)
    assert 0.45 < np.mean(list(numbers)) < 0.55


def test_two_calls_of_rnd_are_two_numbers():
    ((difference,),) = expression("rnd() - rnd()").evaluate([])
    assert difference != 0


def test_scalar_runs_agree_with_runs_over_columns():
    compiled = expression("x > 0 ? log(x) ^ 2 : -sqrt(-x) + min(x, -3)", "x")
    for x in (-4.5, 0.0, 2.5, math.inf, math.nan):
        same([compiled.scalar(x)], compiled.evaluate([[[x]]])[0])


def test_too_many_values_are_refused():
    wide = "+".join(f"{i}.5*(a+{i})" for i in range(100))
    with pytest.raises(BadFeature, match="too many values"):
        expression(wide, "a").evaluate([[[0.0] * 300_000]])


@pytest.mark.parametrize(
    "change",
    [
        {"registers": 0},
        {"registers": MAX_REGISTER_COUNT + 1},
        {"result": 9},
        {"code": [("load", 0, (3,), 0, 0)]},
        {"code": [("load", 7, (0,), 0, 0)]},
        {"code": [("load", 0, (0,), -1, 0)]},
        {"code": [("load", 0, (0,), 4, 0)]},
        {"code": [("sin", 0, (-1,), 0, 0)]},
        {"code": [("len", 0, (0,), -1, 8)]},
        {"scopes": [(2,)]},
    ],
)
def test_programs_that_point_outside_are_refused(change):
    spec = {
        "code": [("load", 0, (0,), 0, 0)],
        "numbers": [],
        "registers": 1,
        "variables": 1,
        "scopes": [(0,)],
        "result": 0,
        "per_unit": False,
    } | change
    with pytest.raises(ValueError, match=r"register|scope|variable|operand"):
        Expression(tuple(spec.values()))


def test_units_need_numbers_and_equal_counts():
    compiled = expression("a + b", "a", "b")
    with pytest.raises(ValueError, match="units"):
        compiled.evaluate([[[1.0]] * 2, [[1.0]] * 3])
    with pytest.raises(ValueError, match="without"):
        compiled.evaluate([[[]], [[1.0]]])
    with pytest.raises(ValueError, match="variables"):
        compiled.evaluate([[[1.0]]])
