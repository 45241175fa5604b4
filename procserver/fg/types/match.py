"""match_feature (spec section 8.7)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procserver.fg.bucketizer import LOOKUP_ORDER, Bucketizer
from procserver.fg.entry import Entry
from procserver.fg.feature import (
    MAX_WIDTH,
    FeatureSpec,
    InputRef,
    OperatorType,
    keeps_one,
)

ALL = "ALL"


@dataclass(frozen=True)
class Details:
    """``many``: multihit. ``discrete``: values are text, which names the feature."""

    many: bool
    discrete: bool
    show_category: bool
    show_item: bool


def _inputs(entry: Entry) -> list[tuple[str, str]]:
    written = [("user", entry.text("user"))]
    for key in ("category", "item"):
        text = entry.text(key, default=ALL) or ALL
        # NOTE(8.7): ALL is the key "ALL" for hit and any key for multihit.
        written.append((key, f"const:{ALL}" if text == ALL else text))
    return written


def _read(entry: Entry, asset_dir: Path) -> Details:
    written = entry.text("matchType", "match_type", default="hit").lower()
    if written not in ("hit", "multihit"):
        raise entry.refuse("matchType", f"unknown type {written!r:.40}")
    return Details(
        many=written == "multihit",
        discrete=entry.flag("needDiscrete", "need_discrete", default=True),
        show_category=entry.flag("show_category", "showCategory"),
        show_item=entry.flag("show_item", "showItem"),
    )


def _width(entry: Entry) -> int:
    keys = ("value_dim", "value_dimension")
    return entry.integer(*keys, default=1, high=MAX_WIDTH) or 1


def _numeric(details: Details, bucketizer: Bucketizer | None, value_type: str) -> bool:
    # NOTE(8.7): num_buckets reads the text, as hashes and vocabularies do.
    if details.discrete:
        return False
    return bucketizer is None or bucketizer.kind == "boundaries"


def _maps(details: Details, ref: InputRef, weighted: bool) -> bool:
    return ref.key == "user"


def _payload(spec: FeatureSpec) -> Any:
    details: Details = spec.details
    any_category, any_item = (
        details.many and (ref.side, ref.name) == ("const", ALL)
        for ref in spec.inputs[1:]
    )
    # NOTE(14.1): the feature's name stands before what is hashed; vocabularies,
    # num_buckets and boundaries see the bare value.
    bare = spec.bucketizer is not None and spec.bucketizer.kind != "hash"
    name = spec.own_name.encode() if details.discrete and not bare else None
    return (
        details.many,
        any_category,
        any_item,
        spec.numeric,
        name,
        details.show_category,
        details.show_item,
    )


TYPE = OperatorType(
    feature_type="match_feature",
    operator="match",
    inputs=_inputs,
    value_type="float",
    default="0",
    value_dim=keeps_one,
    width=_width,
    bucketizers=LOOKUP_ORDER,
    numeric=_numeric,
    normalizes=True,
    prefixes=False,
    whole=frozenset({"user"}),
    maps=_maps,
    read_details=_read,
    payload=_payload,
)
