"""Every row of the fault matrix has its test, and everyday's run every day."""

from __future__ import annotations

import matrix
import pytest

# Rows whose tests are still being written. To be empty.
PENDING = {
    *("F01", "F02", "F03", "F04", "F05", "F06", "F07", "F08", "F09", "F10"),
    *("F11", "F12", "F13", "F14", "F15", "F16", "F17", "F18", "F19", "F20"),
    *("F21", "F22", "F23", "F24", "F25", "F26", "F27", "F28", "F29", "F30"),
    *("F31", "F32", "F33", "F34", "F35", "F36", "F37", "F38", "F39", "F40"),
    *("F41", "F42", "F43", "F44", "F45", "F46", "F47", "F48", "F49", "F50"),
    *("F51", "F52", "F53", "F54", "F55", "F56", "F57", "F58", "F59", "F60"),
    *("F61", "F62", "F63", "F64", "F65", "F66"),
}


def test_the_matrix_is_whole() -> None:
    rows = matrix.rows()
    assert list(rows) == [f"F{number:02d}" for number in range(1, 67)]
    assert sum(row["everyday"] == "yes" for row in rows.values()) == 42
    assert all(row["fault"] for row in rows.values())


def test_every_row_has_a_test() -> None:
    found = matrix.tested()
    assert set(matrix.rows()) - set(found) <= PENDING
    assert set(found) <= set(matrix.rows())


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
