"""tokenize_feature (spec section 8.12)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from procserver.fg.assets import read_asset
from procserver.fg.bucketizer import KEYS
from procserver.fg.entry import Entry
from procserver.fg.feature import FeatureSpec, OperatorType
from procserver.fg.inputs import one_expression
from procserver.fg.text.bpe import Encoder, Output, count_bpe, load_bpe
from procserver.fg.text.pieces import count_sentencepiece, load_sentencepiece

LOADERS = {"bpe": load_bpe, "sentencepiece": load_sentencepiece}
COUNTERS = {"bpe": count_bpe, "sentencepiece": count_sentencepiece}


@dataclass(frozen=True)
class Tokenizer:
    """The keys of a tokenize_feature: what it encodes with, and to what."""

    encode: Encoder
    output: Output


def _read_details(entry: Entry, asset_dir: Path) -> Tokenizer:
    kind = _kind(entry)
    # NOTE(8.12): whatever is not word_id stands for the text of the words.
    written = entry.text("output_type", default="") or "word_id"
    output: Output = "ids" if written == "word_id" else "text"
    if output == "ids":
        for key in KEYS:
            _, found = entry.raw(key)
            if key != "vocab_file" and entry.has(key) and found not in (0, "", [], {}):
                raise entry.refuse(key, "output_type word_id gives ids already")
    data = read_asset(entry, "vocab_file", asset_dir)
    return Tokenizer(LOADERS[kind](entry, "vocab_file", data, output), output)


def _kind(entry: Entry) -> str:
    kind = entry.text("tokenizer_type", default="") or "bpe"
    if kind not in LOADERS:
        raise entry.refuse(
            "tokenizer_type", f"{kind!r:.40} is none of {', '.join(LOADERS)}"
        )
    return kind


def vocabulary_size(value: Mapping[str, Any], asset_dir: Path) -> int:
    """Number of word ids of a ``tokenize_feature`` object of ``fg.json``.

    :raises FgConfigError: for an object of another type, or an unusable file
    """
    entry = Entry(value)
    entry.name = entry.text("feature_name", default="")
    written = entry.text("feature_type")
    if written.removeprefix("sequence_") != TYPE.feature_type:
        raise entry.refuse("feature_type", f"{written!r:.40} has no vocabulary")
    data = read_asset(entry, "vocab_file", asset_dir)
    return COUNTERS[_kind(entry)](entry, "vocab_file", data)


def _gives_ids(details: Any) -> bool:
    return isinstance(details, Tokenizer) and details.output == "ids"


def _payload(spec: FeatureSpec) -> object:
    # NOTE(8.12): a default value is tokenized like any other text.
    details: Tokenizer = spec.details
    default = details.encode([spec.default])[0] if spec.default is not None else []
    return (details.encode, "text", details.output == "ids", default)


TYPE = OperatorType(
    feature_type="tokenize_feature",
    operator="called",
    inputs=one_expression,
    other_keys=frozenset({"vocab_file"}),
    bucketizers=tuple(key for key in KEYS if key != "vocab_file"),
    gives_ids=_gives_ids,
    all_sequences=True,
    read_details=_read_details,
    payload=_payload,
)
