"""overlap_feature (spec section 8.9)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procserver.fg.entry import Entry
from procserver.fg.feature import (
    FeatureSpec,
    OperatorType,
    always_numeric,
    keeps_one,
)
from procserver.fg.inputs import keyed

METHODS = (
    "query_common_ratio",
    "title_common_ratio",
    "is_contain",
    "is_equal",
    "index_of",
    "proximity_min_cover",
    "proximity_min_dist",
    "proximity_max_dist",
    "proximity_avg_dist",
)
# NOTE(8.9): these yield text by rules that are not published.
OLD_METHODS = (
    "common_word",
    "diff_word",
    "query_common_ratio_divided",
    "title_common_ratio_divided",
    "is_contain_divided",
    "is_equal_divided",
    "common_word_divided",
    "diff_word_divided",
)


@dataclass(frozen=True)
class Details:
    """``method``: one of ``METHODS``."""

    method: str


def _read(entry: Entry, asset_dir: Path) -> Details:
    method = entry.text("method").strip().lower()
    if method in OLD_METHODS:
        raise entry.refuse(
            "method", f"{method} is not supported: its rules are not published"
        )
    if method not in METHODS:
        raise entry.refuse("method", f"unknown method {method!r:.40}")
    return Details(method)


def _payload(spec: FeatureSpec) -> Any:
    details: Details = spec.details
    return details.method


TYPE = OperatorType(
    feature_type="overlap_feature",
    operator="overlap",
    inputs=keyed("query", "title"),
    value_type="float",
    default="0",
    # NOTE(14.11): without a default it is 0.0, bucketized if the feature is.
    empty_default="0",
    value_dim=keeps_one,
    bucketizers=("num_buckets", "boundaries"),
    numeric=always_numeric,
    normalizes=True,
    read_details=_read,
    payload=_payload,
)
