"""Expression features against the same formulas in numpy over whole columns.

Run from the repository root: ``python loadtest/micro/fg_expr.py [--json FILE]``.
Each figure is a median of rounds that take turns; ours includes the plan's run from
input columns to the float32 tensor, numpy's the formula and its cast.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cython_ext.column import Column
from procserver.fg import FeatureGenerator

Arrays = Mapping[str, np.ndarray]
WIDTH = 16
RADIAN = np.pi / 180


def interleaved(functions: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median CPU nanoseconds of one call of each."""
    times: dict[str, list[int]] = {name: [] for name in functions}
    for _ in range(31):
        for name, function in functions.items():
            calls = 0
            start = time.thread_time_ns()
            while calls < 3 or time.thread_time_ns() - start < 1_000_000:
                function()
                calls += 1
            times[name].append((time.thread_time_ns() - start) // calls)
    return {name: statistics.median(values) for name, values in times.items()}


def haversine(v: Arrays) -> np.ndarray:
    up = np.sin((v["d"] - v["b"]) * RADIAN / 2)
    across = np.sin((v["c"] - v["a"]) * RADIAN / 2)
    h = up**2 + np.cos(v["b"] * RADIAN) * np.cos(v["d"] * RADIAN) * across**2
    return 12742 * np.arcsin(np.sqrt(h))


def cosine(v: Arrays) -> np.ndarray:
    norms = np.sqrt((v["x"] ** 2).sum(axis=1)) * np.sqrt((v["y"] ** 2).sum(axis=1))
    return (v["x"] * v["y"]).sum(axis=1) / norms


FORMULAS: dict[str, tuple[str, Callable[[Arrays], np.ndarray]]] = {
    "arithmetic": (
        "(a + b * 2 - c) / (d + 1)",
        lambda v: (v["a"] + v["b"] * 2 - v["c"]) / (v["d"] + 1),
    ),
    "square": ("a^2 + b^3", lambda v: v["a"] ** 2 + v["b"] ** 3),
    "condition": (
        "a > b && c != 0 ? a - b : min(c, d)",
        lambda v: np.where(
            (v["a"] > v["b"]) & (v["c"] != 0),
            v["a"] - v["b"],
            np.minimum(v["c"], v["d"]),
        ),
    ),
    "logarithms": (
        "log(a + 1) * log10(b + 2)",
        lambda v: np.log(v["a"] + 1) * np.log10(v["b"] + 2),
    ),
    "sigmoid": (
        "sigmoid(a - b) + exp(-c)",
        lambda v: 1 / (1 + np.exp(v["b"] - v["a"])) + np.exp(-v["c"]),
    ),
    "rounding": (
        "floor(a) + abs(b) + sqrt(c)",
        lambda v: np.floor(v["a"]) + np.abs(v["b"]) + np.sqrt(v["c"]),
    ),
    "haversine": ("haversine(a, b, c, d)", haversine),
    "cosine": ("dot(x, y) / (l2_norm(x) * l2_norm(y))", cosine),
}


def measure(label: str, rows: int) -> tuple[float, float]:
    """Nanoseconds of ours and of numpy."""
    source = np.random.default_rng(7)
    arrays = {name: source.uniform(0, 60, rows) for name in "abcd"}
    arrays |= {name: source.normal(size=(rows, WIDTH)) for name in "xy"}
    formula, reference = FORMULAS[label]
    names = [name for name in arrays if name in formula.replace("exp", "")]
    names = ["x", "y"] if label == "cosine" else [n for n in names if n in "abcd"]
    entry = {
        "feature_type": "expr_feature",
        "feature_name": "e",
        "expression": formula,
        "variables": [f"item:{name}" for name in names],
    }
    generator = FeatureGenerator({"features": [entry]})
    columns = {
        name: Column.from_arrow(
            pa.array(list(arrays[name]) if name in "xy" else arrays[name])
        )
        for name in names
    }
    bound: list[Column | None] = [columns[s.name] for s in generator.plan.slots]
    found = generator.generate({}, columns, {}, rows, tile=False)["e.values"]
    expected = reference(arrays).astype(np.float32)
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-5)
    medians = interleaved(
        {
            "ours": lambda: generator.compiled.compute(bound, rows),
            "numpy": lambda: reference(arrays).astype(np.float32),
        }
    )
    return medians["ours"], medians["numpy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    print(f"{'formula':12}{'rows':>8}{'ours us':>10}{'numpy us':>10}{'ratio':>8}")
    for rows in (300, 20_000):
        for label in FORMULAS:
            ours, reference = measure(label, rows)
            figures[f"{label}_{rows}"] = ours / reference
            print(
                f"{label:12}{rows:>8}{ours / 1e3:>10.2f}{reference / 1e3:>10.2f}"
                f"{ours / reference:>8.2f}"
            )
    worst = max(figures, key=lambda name: figures[name])
    print(f"worst: {worst} at {figures[worst]:.2f} of numpy's time (bar: 3)")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
