"""``fg.json`` as typed, checked data (spec sections 1 to 9)."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cython_ext.fg_text import read_number
from procserver.errors import FgConfigError
from procserver.fg.bucketizer import (
    KEYS,
    Bucketizer,
    default_is_usable,
    read_bucketizer,
)
from procserver.fg.entry import Entry
from procserver.fg.normalizer import Normalizer, read_normalizer

logger = logging.getLogger(__name__)

Side = Literal["user", "item", "context", "feature", "const"]
Operator = Literal["id", "raw", "combo"]

SIDES: tuple[Side, ...] = ("user", "item", "context", "feature", "const")
OPERATORS: dict[str, Operator] = {
    "id_feature": "id",
    "raw_feature": "raw",
    "combo_feature": "combo",
}
NOT_YET = frozenset(
    {
        "bool_mask_feature",
        "combine_feature",
        "custom_feature",
        "expr_feature",
        "kv_dot_product",
        "lookup_feature",
        "match_feature",
        "overlap_feature",
        "regex_replace_feature",
        "text_normalizer",
        "tokenize_feature",
    }
)
NEVER = frozenset({"bm25_feature", "slice_feature"})
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
# SAFETY: a dense row is this wide at most, whatever number value_dim names.
MAX_WIDTH = 65536


@dataclass(frozen=True)
class InputRef:
    """One ``side:name``; ``sequence``: its cells are split into elements.

    ``column`` is the name under which the input is given: ``name``, or
    ``<sequence_name>__<name>`` for the sequence inputs of a group.
    """

    side: Side
    name: str
    column: str
    sequence: bool


@dataclass(frozen=True)
class Sequence:
    """How sequence cells are cut; ``group`` is "" for a stand-alone sequence.

    ``length``: elements kept, 0 for all. ``pk``: the request field with the ids
    whose item features make up the group, as ``side:name``.
    """

    group: str
    length: int
    delim: bytes
    pk: str


@dataclass(frozen=True)
class FeatureSpec:
    """One feature. ``name`` is its output name (``<sequence_name>__<own>``).

    ``default`` is None where an empty input has no value. ``value_dim`` 0 keeps
    all values; of a raw feature it is the width.
    """

    name: str
    own_name: str
    operator: Operator
    inputs: tuple[InputRef, ...]
    sequence: Sequence | None
    default: str | None
    default_numbers: tuple[float, ...]
    value_type: str
    separator: bytes
    value_dim: int
    need_prefix: bool
    weighted: bool
    bucketizer: Bucketizer | None
    normalizer: Normalizer | None
    stub: bool


@dataclass(frozen=True)
class FgSpec:
    """A whole ``fg.json``: its features in file order and its groups."""

    features: tuple[FeatureSpec, ...]
    groups: tuple[Sequence, ...]
    reserves: tuple[str, ...]


def read_spec(
    fg_json: Mapping[str, Any] | str | os.PathLike[str],
    asset_dir: str | os.PathLike[str] | None = None,
) -> FgSpec:
    """Reads and checks an ``fg.json``, given as a path or as its content.

    Asset files are looked up in ``asset_dir``, by default the directory of the
    file (the working directory if the content was given).

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
        for feature in _read_item(value, assets, groups):
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
    value: Mapping[str, Any], assets: Path, groups: dict[str, Sequence]
) -> Iterator[FeatureSpec]:
    """The features of one entry: a feature object or a sequence group."""
    entry = Entry(value)
    if not entry.has("sequence_name") or entry.has("feature_type"):
        yield _read_feature(entry, None, frozenset(), assets)
        return
    group = _read_group(entry)
    if group.group in groups:
        raise FgConfigError(group.group, "sequence_name", "is not unique")
    groups[group.group] = group
    children = [Entry(child) for child in entry.objects("features")]
    siblings = frozenset(child.text("feature_name", default="") for child in children)
    for child in children:
        yield _read_feature(child, group, siblings, assets)


def _read_group(entry: Entry) -> Sequence:
    entry.name = entry.text("sequence_name")
    if not entry.name:
        raise entry.refuse("sequence_name", "is empty")
    pk = entry.text("sequence_pk", default="") or f"user:{entry.name}"
    side, colon, field = pk.partition(":")
    if not colon or side not in ("user", "context", "item") or not field:
        raise entry.refuse("sequence_pk", f"{pk!r:.60} is not side:name")
    return Sequence(
        group=entry.name,
        length=entry.integer("sequence_length", default=0),
        delim=entry.character("sequence_delim", ";"),
        pk=pk,
    )


def _read_type(entry: Entry) -> tuple[Operator, bool]:
    """The operator, and whether the type says that it is a sequence."""
    written = entry.text("feature_type")
    kind = written.removeprefix("sequence_")
    if kind in OPERATORS:
        return OPERATORS[kind], kind != written
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
    operator, is_sequence = _read_type(entry)
    sequence = group
    if group is None and (is_sequence or entry.flag("is_sequence")):
        sequence = Sequence(
            group="",
            length=entry.integer("sequence_length", default=0),
            delim=entry.character("sequence_delim", ";"),
            pk="",
        )
    separator = entry.character("separator", SEPARATOR)
    bucketizer = read_bucketizer(entry, assets, _bucketizers_of(operator))
    value_dim = _read_value_dim(entry, operator, sequence)
    default = _read_default(entry, operator, sequence)
    numbers: tuple[float, ...] = ()
    if operator == "raw":
        numbers = _default_numbers(entry, default, separator, value_dim)
    elif (
        default is not None
        and bucketizer is not None
        and not default_is_usable(bucketizer, default)
    ):
        raise entry.refuse("default_value", f"{default!r:.40} is no number")
    return FeatureSpec(
        name=f"{group.group}__{own}" if group else own,
        own_name=own,
        operator=operator,
        inputs=_read_inputs(entry, operator, sequence, siblings),
        sequence=sequence,
        default=default,
        default_numbers=numbers,
        value_type=_read_value_type(entry, operator),
        separator=separator,
        value_dim=value_dim,
        need_prefix=entry.flag("need_prefix"),
        weighted=operator == "id" and entry.flag("weighted"),
        bucketizer=bucketizer,
        normalizer=read_normalizer(entry) if operator == "raw" else None,
        stub=entry.flag("stub_type"),
    )


def _bucketizers_of(operator: Operator) -> tuple[str, ...]:
    if operator == "raw":
        return ("num_buckets", "boundaries")
    if operator == "combo":
        return tuple(key for key in KEYS if key != "num_buckets")
    return KEYS


def _read_value_type(entry: Entry, operator: Operator) -> str:
    default = "float" if operator == "raw" else "string"
    written = entry.text("value_type", default="") or default
    if written.lower() not in VALUE_TYPES:
        raise entry.refuse("value_type", f"unknown type {written!r:.40}")
    return VALUE_TYPES[written.lower()]


def _read_value_dim(entry: Entry, operator: Operator, sequence: Sequence | None) -> int:
    keys = ("value_dim", "value_dimension")
    if operator == "raw":
        return entry.integer(*keys, default=1, high=MAX_WIDTH) or 1
    # NOTE(8.1): absent in a sequence, an id keeps one value, as exporters write;
    # a combo keeps all crosses.
    absent = 1 if operator == "id" and sequence is not None else 0
    return entry.integer(*keys, default=absent)


def _read_default(
    entry: Entry, operator: Operator, sequence: Sequence | None
) -> str | None:
    absent = "0" if operator == "raw" else ""
    default = entry.text("default_value", default=absent)
    if default == "":
        # NOTE(3): an empty default in a sequence is read as "0".
        return "0" if sequence is not None else None
    return default


def _default_numbers(
    entry: Entry, default: str | None, separator: bytes, width: int
) -> tuple[float, ...]:
    """The default of a raw feature: ``width`` numbers, or one for all."""
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


def _read_inputs(
    entry: Entry,
    operator: Operator,
    sequence: Sequence | None,
    siblings: frozenset[str],
) -> tuple[InputRef, ...]:
    written = entry.strings("expression") or ()
    if operator == "combo" and len(written) < 2:
        raise entry.refuse("expression", "must list two inputs or more")
    if operator != "combo" and len(written) != 1:
        raise entry.refuse("expression", "must be one side:name")
    parts = [_split_ref(entry, text) for text in written]
    fields = entry.strings("sequence_fields")
    chosen = [
        sequence is not None and _is_sequence(side, name, operator, fields, siblings)
        for side, name in parts
    ]
    if sequence is not None and not any(chosen):
        # NOTE(9): no input qualifies by the rules: then all columns do.
        chosen = [side not in ("const",) for side, _ in parts]
    group = sequence.group if sequence is not None else ""
    return tuple(
        InputRef(
            side,
            name,
            f"{group}__{name}" if group and is_sequence else name,
            is_sequence,
        )
        for (side, name), is_sequence in zip(parts, chosen, strict=True)
    )


def _is_sequence(
    side: Side,
    name: str,
    operator: Operator,
    fields: tuple[str, ...] | None,
    siblings: frozenset[str],
) -> bool:
    """Whether an input of a sequence feature is a sequence itself (section 9)."""
    if side == "const":
        return False
    if fields is not None:
        return name in fields
    if side == "feature":
        return name in siblings
    return operator != "combo" or side == "item"


def _split_ref(entry: Entry, text: str) -> tuple[Side, str]:
    side, colon, name = text.partition(":")
    for known in SIDES:
        if colon and side.strip() == known and (name or known == "const"):
            return known, name
    raise entry.refuse(
        "expression", f"{text!r:.60} is not side:name with side in {', '.join(SIDES)}"
    )
