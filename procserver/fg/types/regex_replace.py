"""regex_replace_feature (spec section 8.14)."""

from collections.abc import Callable
from pathlib import Path

from procserver.fg.entry import Entry
from procserver.fg.feature import FeatureSpec, OperatorType, kept
from procserver.fg.inputs import one_expression
from procserver.fg.text.regex import load_replacer


def read_replacer(entry: Entry, *keys: str) -> Callable[[str], str]:
    """The replacement that an entry asks for; ``keys``: spellings of the pattern."""
    key, _ = entry.raw(*keys)
    patterns = entry.strings(key) or ()
    if not any(patterns):
        raise entry.refuse(key, "is required")
    return load_replacer(
        entry,
        key,
        patterns,
        entry.text("replacement", default=""),
        replace_all=entry.flag("replace_all", default=True),
        icase=entry.flag("icase"),
    )


def _read_details(entry: Entry, asset_dir: Path) -> Callable[[str], str]:
    return read_replacer(entry, "regex_pattern")


def payload(spec: FeatureSpec) -> object:
    """For the kernel: every text with its matches replaced."""
    replace: Callable[[str], str] = spec.details

    def run(texts: list[str]) -> list[str]:
        return [replace(text) for text in texts]

    # NOTE(8.14): a text is one value if one is asked for, else as many as the
    # separator makes of it; each is rewritten by itself.
    return (run, "texts" if spec.value_dim == 1 else "split", False, None)


TYPE = OperatorType(
    feature_type="regex_replace_feature",
    operator="called",
    inputs=one_expression,
    value_dim=kept(0, 1),
    all_sequences=True,
    read_details=_read_details,
    payload=payload,
)
