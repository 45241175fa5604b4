"""All types of features: one module and one line here for each."""

from procserver.fg.feature import OperatorType
from procserver.fg.types import (
    bool_mask,
    combine,
    combo,
    custom,
    expr,
    id,
    kv,
    lookup,
    match,
    overlap,
    raw,
    regex_replace,
    text_normalizer,
    tokenize,
)

TYPES: dict[str, OperatorType] = {
    kind.feature_type: kind
    for kind in (
        bool_mask.TYPE,
        combine.TYPE,
        combo.TYPE,
        custom.TYPE,
        expr.TYPE,
        id.TYPE,
        kv.TYPE,
        lookup.TYPE,
        match.TYPE,
        overlap.TYPE,
        raw.TYPE,
        regex_replace.TYPE,
        text_normalizer.TYPE,
        tokenize.TYPE,
    )
}
NOT_YET: frozenset[str] = frozenset()
NEVER = frozenset({"bm25_feature", "slice_feature"})
