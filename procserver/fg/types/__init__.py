"""All types of features: one module and one line here for each."""

from procserver.fg.feature import OperatorType
from procserver.fg.types import combo, id, raw

TYPES: dict[str, OperatorType] = {
    kind.feature_type: kind
    for kind in (
        combo.TYPE,
        id.TYPE,
        raw.TYPE,
    )
}
NOT_YET = frozenset(
    {
        "bool_mask_feature",
        "combine_feature",
        "custom_feature",
        "expr_feature",
        "kv_dot_product",
        "lookup_feature",
        "match_feature",
        "overlap_feature",
        "regex_replace_feature",
        "text_normalizer",
        "tokenize_feature",
    }
)
NEVER = frozenset({"bm25_feature", "slice_feature"})
