"""Every row of the fault matrix has its test, and everyday's run every day."""

from __future__ import annotations

import matrix
import pytest


def test_the_matrix_is_whole() -> None:
    rows = matrix.rows()
    assert list(rows) == [f"F{number:02d}" for number in range(1, 67)]
    assert sum(row["everyday"] == "yes" for row in rows.values()) == 42
    assert all(row["fault"] for row in rows.values())


def test_every_row_has_a_test() -> None:
    found = matrix.tested()
    assert set(found) == set(matrix.rows())


def test_rows_that_are_not_everydays_are_left_out(
    request: pytest.FixtureRequest,
) -> None:
    rows = matrix.rows()
    items = [i for i in request.session.items if matrix.HERE in i.path.parents]
    chosen = {matrix.row_of(item.name) for item in items} - {None}
    rare = {row for row in chosen if rows[str(row)]["everyday"] != "yes"}
    marked = {
        matrix.row_of(item.name)
        for item in items
        if item.get_closest_marker("faults") is not None
    }
    assert rare <= marked
    assert not {row for row in marked - {None} if rows[str(row)]["everyday"] == "yes"}
    if request.config.getoption("markexpr") == "not faults":
        assert rare == set()
