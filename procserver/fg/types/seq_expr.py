"""custom_feature with ``operator_name`` SeqExpr (spec section 8.16)."""

from pathlib import Path

from procserver.fg.entry import Entry
from procserver.fg.expression import compile_formula
from procserver.fg.feature import MAX_WIDTH, OperatorType, always_numeric, kept
from procserver.fg.inputs import some_expressions
from procserver.fg.types.expr import Expr, payload, variable_names

DISTANCE = "spherical_distance"


def _width(entry: Entry) -> int:
    """Columns of a dense row; 0: as many as a run computes."""
    return entry.integer("value_dim", "value_dimension", default=1, high=MAX_WIDTH)


def _read_details(entry: Entry, asset_dir: Path) -> Expr:
    names = variable_names(entry, some_expressions(entry))
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
    inputs=some_expressions,
    value_type="float",
    default="0",
    value_dim=kept(1, 1),
    width=_width,
    numeric=always_numeric,
    normalizes=True,
    spreads=True,
    read_details=_read_details,
    payload=payload,
)
