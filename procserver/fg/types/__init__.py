"""All types of features: one module and one line here for each."""

from procserver.fg.feature import OperatorType
from procserver.fg.types import (
    combo,
    custom,
    expr,
    id,
    raw,
    regex_replace,
    text_normalizer,
    tokenize,
)

TYPES: dict[str, OperatorType] = {
    kind.feature_type: kind
    for kind in (
        combo.TYPE,
        custom.TYPE,
        expr.TYPE,
        id.TYPE,
        raw.TYPE,
        regex_replace.TYPE,
        text_normalizer.TYPE,
        tokenize.TYPE,
    )
}
NOT_YET = frozenset(
    {
        "bool_mask_feature",
        "combine_feature",
        "kv_dot_product",
        "lookup_feature",
        "match_feature",
        "overlap_feature",
    }
)
NEVER = frozenset({"bm25_feature", "slice_feature"})
