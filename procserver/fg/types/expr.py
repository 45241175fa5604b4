"""expr_feature (spec section 8.8)."""

import math
from dataclasses import dataclass
from pathlib import Path

from procserver.fg.entry import MISSING, Entry
from procserver.fg.expression import Formula, compile_formula
from procserver.fg.feature import MAX_WIDTH, FeatureSpec, OperatorType, always_numeric


@dataclass(frozen=True)
class Expr:
    """A formula over the feature's inputs; ``fill`` pads shorter vectors."""

    formula: Formula
    fill: float = math.nan


def variable_names(entry: Entry, written: list[tuple[str, str]]) -> list[str]:
    """What a formula calls its inputs: the part after ``side:``."""
    names = []
    for key, text in written:
        _, colon, name = text.partition(":")
        if not colon:
            raise entry.refuse(key, f"{text!r:.60} is not side:name")
        names.append(name)
    return names


def width(entry: Entry) -> int:
    """Columns of a dense row: ``value_dim``, or as many as a run computes."""
    return entry.integer("value_dim", "value_dimension", default=0, high=MAX_WIDTH)


def payload(spec: FeatureSpec) -> object:
    """For the kernel: the program, and how to fit inputs of unequal length."""
    details: Expr = spec.details
    spread = any(ref.spread for ref in spec.inputs)
    return (details.formula.program, details.fill, spread)


def _variables(entry: Entry) -> list[tuple[str, str]]:
    written = entry.strings("variables") or ()
    if not written:
        raise entry.refuse("variables", "must list one side:name or more")
    return [("variables", text) for text in written]


def _read_fill(entry: Entry) -> float:
    key, found = entry.raw("fill_missing")
    if found is MISSING:
        return math.nan
    try:
        return float(entry.as_text(key, found))
    except ValueError:
        raise entry.refuse(key, f"{found!r:.40} is no number") from None


def _read_details(entry: Entry, asset_dir: Path) -> Expr:
    # NOTE(8.8): a listed variable that the formula does not use still makes a
    # row of which it is empty a default.
    names = variable_names(entry, _variables(entry))
    text = entry.text("expression")
    formula = compile_formula(text, names, feature=entry.name, key="expression")
    return Expr(formula, _read_fill(entry))


TYPE = OperatorType(
    feature_type="expr_feature",
    operator="formula",
    inputs=_variables,
    value_type="float",
    default="0",
    width=width,
    bucketizers=("num_buckets", "boundaries"),
    numeric=always_numeric,
    read_details=_read_details,
    payload=payload,
)
