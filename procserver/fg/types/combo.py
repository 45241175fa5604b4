"""combo_feature (spec sections 4.3 and 8.3)."""

from procserver.fg.bucketizer import KEYS
from procserver.fg.feature import OperatorType
from procserver.fg.inputs import many_expressions

TYPE = OperatorType(
    feature_type="combo_feature",
    operator="combo",
    inputs=many_expressions,
    bucketizers=tuple(key for key in KEYS if key != "num_buckets"),
)
