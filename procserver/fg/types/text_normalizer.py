"""text_normalizer (spec section 8.13)."""

from pathlib import Path

from procserver.fg.assets import read_asset
from procserver.fg.entry import Entry
from procserver.fg.feature import FeatureSpec, OperatorType
from procserver.fg.inputs import one_expression
from procserver.fg.text.chinese import load_simplifier
from procserver.fg.text.normalizing import (
    DEFAULT,
    FILTER,
    KNOWN,
    LOWER,
    SIMPLIFIED,
    UPPER,
    TextNormalizer,
    read_stop_characters,
)


def _read_details(entry: Entry, asset_dir: Path) -> TextNormalizer:
    options = entry.integer("parameter", default=DEFAULT)
    if options & ~KNOWN:
        raise entry.refuse("parameter", f"unknown options {options & ~KNOWN}")
    if options & UPPER and options & LOWER:
        raise entry.refuse("parameter", "asks for both upper and lower case")
    for key in ("is_gbk_input", "is_gbk_output"):
        if entry.flag(key):
            raise entry.refuse(key, "text is UTF-8 here, never GBK")
    stops = None
    if options & FILTER and entry.text("stop_char_file", default=""):
        data = read_asset(entry, "stop_char_file", asset_dir)
        try:
            stops = read_stop_characters(data)
        except ValueError as error:
            raise entry.refuse("stop_char_file", "is not UTF-8") from error
    simplify = None
    if options & SIMPLIFIED:
        simplify = load_simplifier(entry, "parameter")
    return TextNormalizer(
        options=options,
        remove_space=entry.flag("remove_space"),
        max_length=entry.integer("max_length", default=0),
        stops=stops,
        simplify=simplify,
    )


def _payload(spec: FeatureSpec) -> object:
    normalize: TextNormalizer = spec.details

    def run(texts: list[str]) -> list[str]:
        return [normalize(text) for text in texts]

    return (run, "texts", False, None)


TYPE = OperatorType(
    feature_type="text_normalizer",
    operator="called",
    inputs=one_expression,
    all_sequences=True,
    read_details=_read_details,
    payload=_payload,
)
