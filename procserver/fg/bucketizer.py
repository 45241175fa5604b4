"""Bucketizers of a feature: reading them from its entry (spec section 4)."""

import itertools
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cython_ext.fg_bucket import BucketTable
from cython_ext.fg_text import read_integer, read_number
from procserver.fg.assets import asset_path
from procserver.fg.entry import INT64_MAX, Entry

if TYPE_CHECKING:
    from cython_ext.fg_bucket import BucketSpec

BucketKind = Literal["hash", "vocab", "number", "boundaries"]

# NOTE(4): if several are present, this is the order in which one is chosen.
KEYS = (
    "hash_bucket_size",
    "vocab_list",
    "vocab_dict",
    "vocab_file",
    "num_buckets",
    "boundaries",
)
# NOTE(4): the order for lookup_feature, match_feature and custom_feature.
LOOKUP_ORDER = (
    "hash_bucket_size",
    "num_buckets",
    "vocab_list",
    "vocab_dict",
    "vocab_file",
    "boundaries",
)


@dataclass(frozen=True)
class Bucketizer:
    """How the values of a feature become ids.

    ``size`` is the number of hash buckets or of plain ids; ``fallback`` the id of
    words that the vocabulary lacks.
    """

    kind: BucketKind
    size: int = 0
    fallback: int = 0
    words: Mapping[bytes, int] = field(default_factory=dict)
    boundaries: tuple[float, ...] = ()

    @property
    def is_numeric(self) -> bool:
        """Whether ids come from numbers rather than from text."""
        return self.kind in ("number", "boundaries")

    def compiled(self, *, farm_hash: bool) -> "BucketSpec":
        """The form that the kernels load."""
        if self.kind == "hash":
            kind = "farm_hash" if farm_hash else "std_hash"
            return (kind, self.size, 0, None)
        if self.kind == "vocab":
            return ("vocab", 0, self.fallback, dict(self.words))
        if self.kind == "number":
            return ("number", self.size, 0, None)
        return ("boundaries", 0, 0, self.boundaries)

    def id_of_default(self, text: bytes, *, farm_hash: bool) -> int:
        """The id of a default value, which is one token."""
        if self.kind == "vocab":
            return self.words.get(text, self.fallback)
        return BucketTable(self.compiled(farm_hash=farm_hash)).of_text(text)


def read_bucketizer(
    entry: Entry,
    asset_dir: Path,
    allowed: tuple[str, ...],
    other_keys: frozenset[str] = frozenset(),
) -> Bucketizer | None:
    """The one bucketizer of an entry, or None.

    ``allowed``: those that the type takes, in the order in which one is chosen.
    ``other_keys`` mean something else to it. Keys whose value is 0 or empty count
    as absent, as in the protobuf messages that they come from.

    :raises FgConfigError: for a bucketizer that the type does not take, a
        vocabulary without ``default_bucketize_value``, or unusable values
    """
    present = [
        key
        for key in KEYS
        if key not in other_keys and _written(entry, key) is not None
    ]
    if not present:
        return None
    if present[0] not in allowed:
        spelling = (_written(entry, present[0]) or ("", None))[0]
        raise entry.refuse(spelling, "this feature type has no such bucketizer")
    key = next(key for key in allowed if key in present)
    spelling, found = _written(entry, key) or ("", None)
    return _READERS[key](entry, spelling, found, asset_dir)


def _written(entry: Entry, key: str) -> tuple[str, Any] | None:
    """A bucketizer key as spelled, and its value; None if there is none."""
    spellings = (key, "bucketize_boundaries") if key == "boundaries" else (key,)
    if entry.raw("gen_key_type")[1] == "mod":
        # NOTE(12): how an export for RTP writes num_buckets. Ids out of range are 0
        # as in training, not their remainder.
        if key == "hash_bucket_size":
            return None
        if key == "num_buckets":
            spellings = (key, "hash_bucket_size")
    spelling, found = entry.raw(*spellings)
    if not entry.has(*spellings) or found in (0, "0", "", [], {}):
        return None
    return spelling, found


def _hash(entry: Entry, key: str, found: Any, _: Path) -> Bucketizer:
    return Bucketizer("hash", entry.as_integer(key, found, 1, INT64_MAX))


def _number(entry: Entry, key: str, found: Any, _: Path) -> Bucketizer:
    return Bucketizer("number", entry.as_integer(key, found, 1, INT64_MAX))


def _boundaries(entry: Entry, key: str, _found: Any, _: Path) -> Bucketizer:
    numbers = entry.numbers(key) or ()
    try:
        singles = struct.unpack(
            f"<{len(numbers)}f", struct.pack(f"<{len(numbers)}f", *numbers)
        )
    except OverflowError:
        raise entry.refuse(key, "holds a number beyond float32") from None
    if any(a > b for a, b in itertools.pairwise(singles)):
        raise entry.refuse(key, "must ascend")
    return Bucketizer("boundaries", boundaries=singles)


def _fallback(entry: Entry, key: str) -> int:
    # NOTE(14.3): without the id of unknown words nothing right can be served.
    if not entry.has("default_bucketize_value"):
        raise entry.refuse(
            "default_bucketize_value", f"is required with {key} (id of unknown words)"
        )
    return entry.integer("default_bucketize_value", default=0, low=-(2**63))


def _vocab_list(entry: Entry, key: str, found: Any, _: Path) -> Bucketizer:
    if not isinstance(found, list):
        raise entry.refuse(key, "must be a list")
    # NOTE: of equal words the last one counts, which a dict built in order does.
    words = {entry.as_text(key, word).encode(): i for i, word in enumerate(found)}
    return Bucketizer("vocab", fallback=_fallback(entry, key), words=words)


def _vocab_dict(entry: Entry, key: str, found: Any, _: Path) -> Bucketizer:
    if not isinstance(found, dict):
        raise entry.refuse(key, "must be an object")
    words = {
        entry.as_text(key, word).encode(): entry.as_integer(key, number)
        for word, number in found.items()
    }
    return Bucketizer("vocab", fallback=_fallback(entry, key), words=words)


def _vocab_file(entry: Entry, key: str, found: Any, asset_dir: Path) -> Bucketizer:
    name = entry.as_text(key, found)
    try:
        data = asset_path(asset_dir, name).read_bytes()
        data.decode()
    except (OSError, ValueError) as error:
        reason = "is not UTF-8" if isinstance(error, ValueError) else "cannot be read"
        raise entry.refuse(key, f"vocabulary file {name!r} {reason}") from error
    words = read_vocabulary(data)
    if not words:
        raise entry.refuse(key, f"vocabulary file {name!r} is empty")
    return Bucketizer("vocab", fallback=_fallback(entry, key), words=words)


def read_vocabulary(data: bytes) -> dict[bytes, int]:
    """Words of a vocabulary file: ``word`` lines or ``word<space>id`` lines.

    NOTE: a file holds ids only if every line that is not empty ends in one, so
    that a word list with ``iphone 12`` in it stays a list. A word of spaces only
    is the empty word.
    """
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    lines = [line.removesuffix(b"\r") for line in lines]
    pairs: dict[bytes, int] = {}
    for line in lines:
        if not line:
            continue
        word, space, number = line.rpartition(b" ")
        value = read_integer(number) if space and number else None
        if value is None:
            return {line: i for i, line in enumerate(lines)}
        pairs[word if word.strip(b" ") else b""] = value
    return pairs


def default_is_usable(bucketizer: Bucketizer, text: str) -> bool:
    """Whether a default value, un-split, can be bucketized at all."""
    if bucketizer.kind == "number":
        return read_integer(text.encode()) is not None
    if bucketizer.kind == "boundaries":
        return read_number(text.encode()) is not None
    return True


_READERS = {
    "hash_bucket_size": _hash,
    "vocab_list": _vocab_list,
    "vocab_dict": _vocab_dict,
    "vocab_file": _vocab_file,
    "num_buckets": _number,
    "boundaries": _boundaries,
}
