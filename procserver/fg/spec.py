"""``fg.json`` as typed, checked data (spec sections 1 to 9)."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cython_ext.fg_text import read_number
from procserver.errors import FgConfigError
from procserver.fg.bucketizer import default_is_usable, read_bucketizer
from procserver.fg.entry import Entry
from procserver.fg.feature import (
    FeatureSpec,
    FgSpec,
    InputRef,
    OperatorType,
    Sequence,
    Side,
)
from procserver.fg.inputs import read_inputs
from procserver.fg.normalizer import read_normalizer
from procserver.fg.types import NEVER, NOT_YET, TYPES

__all__ = ["FeatureSpec", "FgSpec", "InputRef", "Sequence", "Side", "read_spec"]

logger = logging.getLogger(__name__)

VALUE_TYPES = {
    "string": "string",
    "str": "string",
    "float": "float",
    "float32": "float",
    "double": "double",
    "float64": "double",
    "int": "int32",
    "int32": "int32",
    "integer": "int32",
    "int64": "int64",
    "long": "int64",
    "bigint": "int64",
}
SEPARATOR = "\x1d"


def read_spec(
    fg_json: Mapping[str, Any] | str | os.PathLike[str],
    asset_dir: str | os.PathLike[str] | None = None,
    *,
    rtp: bool = False,
) -> FgSpec:
    """Reads and checks an ``fg.json``, given as a path or as its content.

    Asset files are looked up in ``asset_dir``, by default the directory of the
    file (the working directory if the content was given). ``rtp``: the names in a
    group are joined with one underscore instead of two (spec section 12).

    :raises FgConfigError: naming feature, key and reason
    """
    if isinstance(fg_json, Mapping):
        content: Any = fg_json
        assets = Path(asset_dir or ".")
    else:
        path = Path(fg_json)
        content = _read_json(path)
        assets = Path(asset_dir) if asset_dir is not None else path.parent
    if not isinstance(content, Mapping):
        raise FgConfigError("", "", "is not a JSON object")
    top = Entry(content)
    for key in content:
        if key not in ("features", "reserves"):
            logger.debug("fg.json: key %r is for offline tools, ignored", key)
    features: dict[str, FeatureSpec] = {}
    groups: dict[str, Sequence] = {}
    for value in top.objects("features"):
        for feature in _read_item(value, assets, groups, "_" if rtp else "__"):
            if feature.name in features:
                raise FgConfigError(feature.name, "feature_name", "is not unique")
            features[feature.name] = feature
    reserves = top.strings("reserves") or ()
    return FgSpec(tuple(features.values()), tuple(groups.values()), reserves)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise FgConfigError("", "", f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FgConfigError("", "", f"is not JSON: {error}") from error


def _read_item(
    value: Mapping[str, Any], assets: Path, groups: dict[str, Sequence], joint: str
) -> Iterator[FeatureSpec]:
    """The features of one entry: a feature object or a sequence group."""
    entry = Entry(value)
    if not entry.has("sequence_name") or entry.has("feature_type"):
        yield _read_feature(entry, None, frozenset(), assets)
        return
    group = _read_group(entry, joint)
    if group.group in groups:
        raise FgConfigError(group.group, "sequence_name", "is not unique")
    groups[group.group] = group
    children = [Entry(child) for child in entry.objects("features")]
    siblings = frozenset(child.text("feature_name", default="") for child in children)
    for child in children:
        yield _read_feature(child, group, siblings, assets)


def _read_group(entry: Entry, joint: str) -> Sequence:
    entry.name = entry.text("sequence_name")
    if not entry.name:
        raise entry.refuse("sequence_name", "is empty")
    pk = entry.text("sequence_pk", default="") or f"user:{entry.name}"
    side, colon, field = pk.partition(":")
    if not colon or side not in ("user", "context", "item") or not field:
        raise entry.refuse("sequence_pk", f"{pk!r:.60} is not side:name")
    return Sequence(
        group=entry.name,
        prefix=entry.name + joint,
        length=entry.integer("sequence_length", default=0),
        delim=entry.character("sequence_delim", ";"),
        pk=pk,
    )


def _read_type(entry: Entry) -> tuple[OperatorType, bool]:
    """The type, and whether its name says that it is a sequence."""
    written = entry.text("feature_type")
    kind = written.removeprefix("sequence_")
    if kind in TYPES:
        found = TYPES[kind]
        found = found.variant(entry) if found.variant is not None else found
        return found, kind != written
    if kind in NEVER:
        raise entry.refuse(
            "feature_type", f"{written} is not supported: its rules are not published"
        )
    if kind in NOT_YET:
        raise entry.refuse("feature_type", f"{written} is not supported yet")
    raise entry.refuse("feature_type", f"unknown feature type {written!r:.60}")


def _read_feature(
    entry: Entry, group: Sequence | None, siblings: frozenset[str], assets: Path
) -> FeatureSpec:
    entry.name = own = entry.text("feature_name", default="")
    if not own:
        raise entry.refuse("feature_name", "is required")
    kind, is_sequence = _read_type(entry)
    sequence = group
    if group is None and (is_sequence or entry.flag("is_sequence")):
        sequence = Sequence(
            group="",
            prefix="",
            length=entry.integer("sequence_length", default=0),
            delim=entry.character("sequence_delim", ";"),
            pk="",
        )
    separator = entry.character("separator", SEPARATOR)
    bucketizer = read_bucketizer(entry, assets, kind.bucketizers, kind.other_keys)
    width = kind.width(entry)
    value_type = _read_value_type(entry, kind)
    details = kind.read_details(entry, assets)
    numeric = kind.numeric(details, bucketizer, value_type)
    default = _read_default(entry, kind, sequence)
    numbers: tuple[float, ...] = ()
    if numeric:
        numbers = _default_numbers(entry, default, separator, width or 1)
    elif (
        default is not None
        and bucketizer is not None
        and not default_is_usable(bucketizer, default)
    ):
        raise entry.refuse("default_value", f"{default!r:.40} is no number")
    return FeatureSpec(
        name=f"{group.prefix}{own}" if group else own,
        own_name=own,
        type=kind,
        inputs=read_inputs(entry, kind, sequence, siblings),
        sequence=sequence,
        default=default,
        default_numbers=numbers,
        value_type=value_type,
        separator=separator,
        value_dim=kind.value_dim(entry, sequence is not None),
        width=width,
        need_prefix=entry.flag("need_prefix"),
        weighted=kind.weighted and entry.flag("weighted"),
        numeric=numeric,
        bucketizer=bucketizer,
        normalizer=read_normalizer(entry) if kind.normalizes else None,
        stub=entry.flag("stub_type"),
        details=details,
    )


def _read_value_type(entry: Entry, kind: OperatorType) -> str:
    written = entry.text("value_type", default="") or kind.value_type
    if written.lower() not in VALUE_TYPES:
        raise entry.refuse("value_type", f"unknown type {written!r:.40}")
    return VALUE_TYPES[written.lower()]


def _read_default(
    entry: Entry, kind: OperatorType, sequence: Sequence | None
) -> str | None:
    default = entry.text("default_value", default=kind.default) or kind.empty_default
    if default == "":
        # NOTE(3): an empty default in a sequence is read as "0".
        return "0" if sequence is not None else None
    return default


def _default_numbers(
    entry: Entry, default: str | None, separator: bytes, width: int
) -> tuple[float, ...]:
    """The default of a numeric feature: ``width`` numbers, or one for all."""
    if default is None:
        return (0.0,) * width
    numbers = [read_number(part) for part in default.encode().split(separator)]
    if len(numbers) not in (1, width):
        raise entry.refuse(
            "default_value", f"has {len(numbers)} numbers, not 1 or {width}"
        )
    found = [number for number in numbers if number is not None]
    if len(found) != len(numbers):
        raise entry.refuse("default_value", f"{default!r:.60} is not numeric")
    return tuple(found) if len(found) == width else (found[0],) * width
