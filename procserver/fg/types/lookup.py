"""lookup_feature (spec section 8.6)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procserver.fg.bucketizer import LOOKUP_ORDER, Bucketizer
from procserver.fg.combiner import read_combiner
from procserver.fg.entry import Entry
from procserver.fg.feature import (
    MAX_WIDTH,
    FeatureSpec,
    InputRef,
    OperatorType,
    keeps_one,
)
from procserver.fg.inputs import keyed


@dataclass(frozen=True)
class Details:
    """``combiner`` "": each found key gives a value, ``discrete`` ones as text."""

    combiner: str
    discrete: bool
    need_key: bool


def _read(entry: Entry, asset_dir: Path) -> Details:
    # NOTE(8.6): with neither needDiscrete nor combiner, text stays discrete and
    # numbers are summed.
    text = entry.text("value_type", default="").lower() in ("string", "str")
    discrete = entry.flag("needDiscrete", "need_discrete", default=text)
    combiner = read_combiner(entry, "sum")
    return Details(
        combiner="" if discrete else combiner,
        discrete=discrete,
        need_key=entry.flag("needKey", "need_key"),
    )


def _width(entry: Entry) -> int:
    if _read(entry, Path()).combiner:
        return 1
    keys = ("value_dim", "value_dimension")
    return entry.integer(*keys, default=1, high=MAX_WIDTH) or 1


def _numeric(details: Details, bucketizer: Bucketizer | None, value_type: str) -> bool:
    if details.combiner:
        return True
    # NOTE(8.6): num_buckets reads the text, as hashes and vocabularies do.
    if details.discrete or (bucketizer is None and value_type == "string"):
        return False
    return bucketizer is None or bucketizer.kind == "boundaries"


def _maps(details: Details, ref: InputRef, weighted: bool) -> bool:
    return ref.key == "map"


def _payload(spec: FeatureSpec) -> Any:
    details: Details = spec.details
    # NOTE(8.6): need_key is about text; num_buckets and boundaries see the value.
    plain = spec.bucketizer is not None and spec.bucketizer.is_numeric
    named = details.need_key and not plain
    return (details.combiner, spec.numeric, named)


TYPE = OperatorType(
    feature_type="lookup_feature",
    operator="lookup",
    inputs=keyed("map", "key"),
    value_type="float",
    default="0",
    value_dim=keeps_one,
    width=_width,
    bucketizers=LOOKUP_ORDER,
    numeric=_numeric,
    normalizes=True,
    whole=frozenset({"map"}),
    maps=_maps,
    read_details=_read,
    payload=_payload,
)
