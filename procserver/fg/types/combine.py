"""combine_feature (spec sections 8.4 and 8.5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procserver.fg.combiner import read_combiner
from procserver.fg.entry import Entry
from procserver.fg.feature import (
    FeatureSpec,
    OperatorType,
    always_numeric,
    keeps_one,
)
from procserver.fg.inputs import one_expression


@dataclass(frozen=True)
class Details:
    """``value_map``: what tokens count as; None: they are numbers themselves."""

    combiner: str
    value_map: Mapping[bytes, float] | None


def _read(entry: Entry, asset_dir: Path) -> Details:
    combiner = read_combiner(entry, "sum") or "sum"
    _, found = entry.raw("value_map")
    if not entry.has("value_map") or found == {}:
        return Details(combiner, None)
    if not isinstance(found, dict):
        raise entry.refuse("value_map", "must be an object")
    numbers = {
        entry.as_text("value_map", token).encode(): entry.as_number("value_map", one)
        for token, one in found.items()
    }
    return Details(combiner, numbers)


def _payload(spec: FeatureSpec) -> Any:
    details: Details = spec.details
    numbers = None if details.value_map is None else dict(details.value_map)
    return (details.combiner, numbers)


TYPE = OperatorType(
    feature_type="combine_feature",
    operator="combine",
    inputs=one_expression,
    value_type="float",
    # NOTE(8.4): an empty default is 0, as a value: bucketized if the feature is.
    empty_default="0",
    value_dim=keeps_one,
    bucketizers=("num_buckets", "boundaries"),
    numeric=always_numeric,
    normalizes=True,
    all_sequences=True,
    read_details=_read,
    payload=_payload,
)
