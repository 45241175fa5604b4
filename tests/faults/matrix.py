"""The fault matrix as data, and which test proves which row."""

from __future__ import annotations

import ast
import csv
import re
from pathlib import Path

HERE = Path(__file__).parent
MATRIX = HERE / "matrix.csv"


def rows() -> dict[str, dict[str, str]]:
    """The rows by id."""
    with MATRIX.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def row_of(test: str) -> str | None:
    """The row that the name of a test names."""
    found = re.match(r"test_f(\d\d)_", test)
    return f"F{found.group(1)}" if found else None


def tested() -> dict[str, list[str]]:
    """Row -> its tests, as they are written down."""
    found: dict[str, list[str]] = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            row = row_of(node.name) if isinstance(node, ast.FunctionDef) else None
            if row is not None:
                found.setdefault(row, []).append(f"{path.name}::{node.name}")
    return found
