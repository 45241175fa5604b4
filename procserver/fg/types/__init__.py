"""All types of features: one module and one line here for each."""

from procserver.fg.feature import OperatorType
from procserver.fg.types import (
    bool_mask,
    combine,
    combo,
    id,
    kv,
    lookup,
    match,
    overlap,
    raw,
)

TYPES: dict[str, OperatorType] = {
    kind.feature_type: kind
    for kind in (
        bool_mask.TYPE,
        combine.TYPE,
        combo.TYPE,
        id.TYPE,
        kv.TYPE,
        lookup.TYPE,
        match.TYPE,
        overlap.TYPE,
        raw.TYPE,
    )
}
NOT_YET = frozenset(
    {
        "custom_feature",
        "expr_feature",
        "regex_replace_feature",
        "text_normalizer",
        "tokenize_feature",
    }
)
NEVER = frozenset({"bm25_feature", "slice_feature"})
