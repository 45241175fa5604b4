"""bool_mask_feature (spec section 8.11)."""

from procserver.fg.feature import OperatorType, kept
from procserver.fg.inputs import two_expressions

TYPE = OperatorType(
    feature_type="bool_mask_feature",
    operator="bool_mask",
    inputs=two_expressions,
    # NOTE(8.11): value_dim is read as that of an id.
    value_dim=kept(0, 1),
)
