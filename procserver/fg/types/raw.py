"""raw_feature (spec section 8.2)."""

from procserver.fg.entry import Entry
from procserver.fg.feature import MAX_WIDTH, OperatorType, always_numeric
from procserver.fg.inputs import one_expression


def _width(entry: Entry, in_sequence: bool = False) -> int:
    keys = ("value_dim", "value_dimension")
    return entry.integer(*keys, default=1, high=MAX_WIDTH) or 1


TYPE = OperatorType(
    feature_type="raw_feature",
    operator="raw",
    inputs=one_expression,
    value_type="float",
    default="0",
    value_dim=_width,
    width=_width,
    bucketizers=("num_buckets", "boundaries"),
    numeric=always_numeric,
    normalizes=True,
    all_sequences=True,
)
