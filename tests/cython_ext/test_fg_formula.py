"""The kernel of expr_feature and SeqExpr: inputs of all layouts, limits, loading."""

import numpy as np
import pyarrow as pa
import pytest

from cython_ext.column import Column
from cython_ext.fg_plan import CompiledPlan
from procserver.errors import BadFeature
from procserver.fg.expression import compile_formula


def plan_of(text, names, *, sequence=(), spread=False, **options):
    formula = compile_formula(text, names, feature="f", key="expression")
    plan = CompiledPlan(list(names), [], 1)
    settings = {
        "form": "numbers",
        "value_dim": 0,
        "width": 0,
        "default_text": b"-1",
        "default_numbers": (-1.0,),
        "sequence": bool(sequence) or spread,
        "details": (formula.program, float("nan"), spread),
    } | options
    plan.add(
        "formula",
        "f",
        [("slot", i, n in sequence or spread, False, n) for i, n in enumerate(names)],
        **settings,
    )
    return plan


def run(text, arrays, **options):
    plan = plan_of(text, tuple(arrays), **options)
    columns = [a and Column.from_arrow(a) for a in arrays.values()]
    rows = max(len(a) for a in arrays.values() if a)
    return plan.run(columns, rows, tile=False)


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.float32(), pa.float64()])
@pytest.mark.parametrize("nulls", [False, True])
def test_numeric_columns_of_many_rows(kind, nulls):
    values = [None if nulls and i % 7 == 3 else i for i in range(1500)]
    found = run("a * 2", {"a": pa.array(values, kind)})["f.values"]
    expected = [-1 if v is None else v * 2 for v in values]
    assert found.reshape(-1).tolist() == expected


@pytest.mark.parametrize("kind", [pa.int64(), pa.float32(), pa.float64(), pa.string()])
def test_slices_of_lists(kind):
    cells = [[1, 2], [], [3], None, [4, 5, 6]] * 200
    typed = [c and [str(x) for x in c] for c in cells] if kind == pa.string() else cells
    whole = pa.array(typed, pa.list_(kind))
    found = run("reduce_sum(a)", {"a": whole.slice(3, 500)})["f.values"]
    expected = [sum(c) if c else -1 for c in cells[3:503]]
    assert found.reshape(-1).tolist() == expected


def test_a_column_of_no_type_is_missing():
    found = run("a + b", {"a": pa.array([1.0, 2.0]), "b": None})
    assert found["f.values"].tolist() == [[-1.0], [-1.0]]


def test_sequences_of_unequal_length_and_a_limit():
    arrays = {"a": pa.array(["1;2;3;4", ""]), "b": pa.array(["10;20", "5"])}
    found = run("a + b", arrays, sequence="ab", limit=3)
    assert found["f.values"].reshape(-1).tolist() == [11, 22, -1, -1]
    assert found["f.lengths"].tolist() == [3, 1]


def test_a_single_element_spreads_only_where_asked():
    arrays = {"a": pa.array(["1;2;3"]), "b": pa.array(["10"])}
    found = run("a + b", arrays, spread=True)["f.values"]
    assert found.reshape(-1).tolist() == [11, 12, 13]
    found = run("a + b", arrays, sequence="ab")["f.values"]
    assert found.reshape(-1).tolist() == [11, -1, -1]


def test_one_row_is_shared_by_all():
    arrays = {"a": pa.array([[1.0, 2.0]]), "b": pa.array([[3.0, 4.0], [5.0, 6.0]])}
    found = run("dot(a, b)", arrays)["f.values"]
    assert found.reshape(-1).tolist() == [11, 17]


def test_boundaries_of_results():
    arrays = {"a": pa.array([[0.0, 1.5], [9.0]])}
    found = run(
        "a", arrays, form="ids", bucketizer=("boundaries", 0, 0, (1.0, 2.0)), width=1
    )
    assert found["f.values"].tolist() == [0, 1, 2]
    assert found["f.lengths"].tolist() == [2, 1]


def test_a_shared_sequence_cannot_be_repeated_without_end():
    plan = plan_of("a + b", ("a", "b"), sequence="a")
    columns = [
        Column.from_arrow(pa.array([np.zeros(60_000)])),
        Column.from_arrow(pa.array(np.zeros(300))),
    ]
    with pytest.raises(BadFeature, match="'f' has more than"):
        plan.run(columns, 300, tile=False)


def test_a_row_too_long_for_its_expression_names_the_feature():
    wide = "+".join(f"{i}.5*(a+{i})" for i in range(100))
    with pytest.raises(BadFeature, match=r"'f'.*too many values"):
        run(wide, {"a": pa.array([np.zeros(300_000)])})


def test_sources_and_variables_are_the_same_number():
    formula = compile_formula("a + b", ["a", "b"], feature="f", key="expression")
    with pytest.raises(ValueError, match="1 sources for 2 variables"):
        plan_of("a", ("a",), details=(formula.program, 0.0, False))
