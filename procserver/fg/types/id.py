"""id_feature (spec section 8.1)."""

from typing import Any

from procserver.fg.feature import InputRef, OperatorType, kept
from procserver.fg.inputs import one_expression


def _maps(details: Any, ref: InputRef, weighted: bool) -> bool:
    return weighted


TYPE = OperatorType(
    feature_type="id_feature",
    operator="id",
    inputs=one_expression,
    # NOTE(8.1): absent in a sequence, an id keeps one value, as exporters write;
    # a combo keeps all crosses.
    value_dim=kept(0, 1),
    weighted=True,
    all_sequences=True,
    maps=_maps,
)
