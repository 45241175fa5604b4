"""custom_feature (spec section 8.16): the type depends on ``operator_name``."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from procserver.fg.bucketizer import Bucketizer
from procserver.fg.entry import Entry
from procserver.fg.feature import (
    MAX_WIDTH,
    FeatureSpec,
    OperatorType,
    kept,
    takes_maps,
)
from procserver.fg.inputs import one_expression, some_expressions, two_expressions
from procserver.fg.plugins import FgOperator, Process, load_operator
from procserver.fg.types import seq_expr
from procserver.fg.types.regex_replace import payload as replace_payload
from procserver.fg.types.regex_replace import read_replacer

# NOTE(4): of several bucketizers, this is the order in which one is chosen.
BUCKETIZERS = (
    "hash_bucket_size",
    "num_buckets",
    "vocab_list",
    "vocab_dict",
    "vocab_file",
    "boundaries",
)
ENCODINGS = {
    "utf-8": True,
    "utf8": True,
    "latin": False,
    "latin1": False,
    "latin-1": False,
}


def _choose(entry: Entry) -> OperatorType:
    return OPERATORS.get(entry.text("operator_name"), PLUGIN)


def _unless_text(details: Any, bucketizer: Bucketizer | None, value_type: str) -> bool:
    return value_type != "string"


# --------------------------------------------------------------- EditDistance


def _read_encoding(entry: Entry, asset_dir: Path) -> bool:
    """Whether code points are compared; bytes otherwise."""
    written = entry.text("encoding", default="") or "latin"
    if written.lower() not in ENCODINGS:
        raise entry.refuse("encoding", f"{written!r:.40} is neither utf-8 nor latin")
    return ENCODINGS[written.lower()]


def _encoding(spec: FeatureSpec) -> object:
    return spec.details


EDIT_DISTANCE = OperatorType(
    feature_type="custom_feature",
    operator="edit_distance",
    inputs=two_expressions,
    value_type="float",
    default="0",
    value_dim=kept(1, 1),
    bucketizers=BUCKETIZERS,
    numeric=_unless_text,
    normalizes=True,
    read_details=_read_encoding,
    payload=_encoding,
)

# --------------------------------------------------------------- RegexReplace


def _read_replacer(entry: Entry, asset_dir: Path) -> Callable[[str], str]:
    if (entry.text("value_type", default="") or "string").lower() not in (
        "string",
        "str",
    ):
        raise entry.refuse("value_type", "RegexReplace gives strings")
    # NOTE: the vendor's operator spells its key without the r.
    return read_replacer(entry, "regex_patten", "regex_pattern")


REGEX_REPLACE = OperatorType(
    feature_type="custom_feature",
    operator="called",
    inputs=one_expression,
    default="0",
    value_dim=kept(1, 1),
    bucketizers=BUCKETIZERS,
    read_details=_read_replacer,
    payload=replace_payload,
)

# ------------------------------------------------------------------- plug-ins


@dataclass(frozen=True)
class Plugin:
    """An operator of a plug-in, and how to call it."""

    operator: FgOperator
    process: Process


def _read_plugin(entry: Entry, asset_dir: Path) -> Plugin:
    operator, process = load_operator(entry)
    written = entry.text("value_type", default="").lower()
    is_text = operator.value_type == "string"
    if written and (written in ("string", "str")) != is_text:
        raise entry.refuse(
            "value_type", f"the operator gives values of type {operator.value_type}"
        )
    return Plugin(operator, process)


def _width(entry: Entry) -> int:
    keys = ("value_dim", "value_dimension")
    return entry.integer(*keys, default=1, high=MAX_WIDTH) or 1


def _gives_numbers(
    details: Plugin, bucketizer: Bucketizer | None, value_type: str
) -> bool:
    return details.operator.value_type != "string"


def _plugin(spec: FeatureSpec) -> object:
    return (spec.details.process, "cells", False, None)


PLUGIN = OperatorType(
    feature_type="custom_feature",
    operator="called",
    inputs=some_expressions,
    value_type="float",
    default="0",
    value_dim=kept(1, 1),
    width=_width,
    bucketizers=BUCKETIZERS,
    numeric=_gives_numbers,
    normalizes=True,
    maps=takes_maps,
    read_details=_read_plugin,
    payload=_plugin,
)

OPERATORS = {
    "EditDistance": EDIT_DISTANCE,
    "RegexReplace": REGEX_REPLACE,
    "SeqExpr": replace(seq_expr.TYPE, bucketizers=BUCKETIZERS),
}
TYPE = replace(PLUGIN, variant=_choose)
