"""kv_dot_product (spec section 8.10)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procserver.fg.entry import Entry
from procserver.fg.feature import (
    FeatureSpec,
    OperatorType,
    always_numeric,
    keeps_one,
    takes_maps,
)
from procserver.fg.inputs import keyed


@dataclass(frozen=True)
class Details:
    """``mark``: the byte between key and weight."""

    mark: bytes


def _read(entry: Entry, asset_dir: Path) -> Details:
    return Details(entry.character("kv_delimiter", ":"))


def _payload(spec: FeatureSpec) -> Any:
    details: Details = spec.details
    return details.mark


TYPE = OperatorType(
    feature_type="kv_dot_product",
    operator="kv",
    inputs=keyed("query", "document"),
    value_type="float",
    default="0",
    # NOTE(3): an empty default is 0.0, bucketized if the feature is.
    empty_default="0",
    value_dim=keeps_one,
    bucketizers=("num_buckets", "boundaries"),
    numeric=always_numeric,
    maps=takes_maps,
    read_details=_read,
    payload=_payload,
)
