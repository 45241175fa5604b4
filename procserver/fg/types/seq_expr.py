"""custom_feature with ``operator_name`` SeqExpr (spec section 8.16)."""

from pathlib import Path

from procserver.fg.entry import Entry
from procserver.fg.expression import compile_formula
from procserver.fg.feature import OperatorType, always_numeric
from procserver.fg.types.expr import Expr, payload, variable_name, width

DISTANCE = "spherical_distance"


def _inputs(entry: Entry) -> list[tuple[str, str]]:
    written = entry.strings("expression") or ()
    if not written:
        raise entry.refuse("expression", "must list one side:name or more")
    return [("expression", text) for text in written]


def _read_details(entry: Entry, asset_dir: Path) -> Expr:
    names = [variable_name(written) for _, written in _inputs(entry)]
    text = entry.text("formula").strip()
    if text == DISTANCE:
        if len(names) != 4:
            raise entry.refuse(
                "expression", f"{DISTANCE} takes lng1, lat1, lng2 and lat2"
            )
        # Positions count here, so that any field names do.
        names = ["lng1", "lat1", "lng2", "lat2"]
        text = f"haversine({', '.join(names)})"
    return Expr(compile_formula(text, names, feature=entry.name, key="formula"))


TYPE = OperatorType(
    feature_type="custom_feature",
    operator="formula",
    inputs=_inputs,
    value_type="float",
    default="0",
    width=width,
    numeric=always_numeric,
    normalizes=True,
    spreads=True,
    read_details=_read_details,
    payload=payload,
)
