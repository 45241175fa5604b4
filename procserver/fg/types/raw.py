"""raw_feature (spec section 8.2)."""

from procserver.fg.entry import Entry
from procserver.fg.feature import OperatorType, always_numeric
from procserver.fg.inputs import one_expression

# SAFETY: a dense row is this wide at most, whatever number value_dim names.
MAX_WIDTH = 65536


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
