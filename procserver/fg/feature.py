"""What a feature is once read from ``fg.json``, and what a type of feature is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from procserver.fg.bucketizer import KEYS, Bucketizer
from procserver.fg.entry import Entry
from procserver.fg.normalizer import Normalizer

Side = Literal["user", "item", "context", "feature", "const"]
Form = Literal["ids", "text", "numbers"]

# SAFETY: a dense row is this wide at most, whatever number value_dim names.
MAX_WIDTH = 65536
SIDES: tuple[Side, ...] = ("user", "item", "context", "feature", "const")


@dataclass(frozen=True)
class InputRef:
    """One ``side:name``; ``sequence``: its cells are split into elements.

    ``column`` is the name under which the input is given: ``name``, or
    the group's prefix and ``name`` for the sequence inputs of a group. ``key`` is the
    key of ``fg.json`` that names the input. ``spread``: it is a sequence only if it
    has several elements; a single one stands for any number.
    """

    side: Side
    name: str
    column: str
    sequence: bool
    key: str = "expression"
    spread: bool = False


@dataclass(frozen=True)
class Sequence:
    """How sequence cells are cut; ``group`` is "" for a stand-alone sequence.

    ``prefix`` goes before the names of the group's features and sequence columns.
    ``length``: elements kept, 0 for all. ``pk``: the request field with the ids
    whose item features make up the group, as ``side:name``.
    """

    group: str
    prefix: str
    length: int
    delim: bytes
    pk: str


def no_details(entry: Entry, asset_dir: Path) -> object | None:
    """For types without keys of their own."""
    return None


def not_numeric(details: Any, bucketizer: Bucketizer | None, value_type: str) -> bool:
    """For types whose values are text before bucketization."""
    return False


def always_numeric(
    details: Any, bucketizer: Bucketizer | None, value_type: str
) -> bool:
    """For types whose values are numbers before bucketization."""
    return True


def kept(outside: int, inside: int) -> Callable[[Entry, bool], int]:
    """``value_dim`` as a number of values; absent: as given, by sequence or not."""

    def read(entry: Entry, in_sequence: bool) -> int:
        absent = inside if in_sequence else outside
        return entry.integer("value_dim", "value_dimension", default=absent)

    return read


def keeps_one(entry: Entry, in_sequence: bool) -> int:
    """``value_dim``; absent: 1."""
    return kept(1, 1)(entry, in_sequence)


def keeps_all(entry: Entry, in_sequence: bool) -> int:
    """``value_dim``; absent: all values."""
    return kept(0, 0)(entry, in_sequence)


def width_of_one(entry: Entry) -> int:
    """For types whose dense rows are one number."""
    return 1


def takes_maps(details: Any, ref: InputRef, weighted: bool) -> bool:
    """For types all of whose inputs may be maps."""
    return True


def takes_no_maps(details: Any, ref: InputRef, weighted: bool) -> bool:
    """For types none of whose inputs may be a map."""
    return False


def gives_values(details: Any) -> bool:
    """For types whose ids come from a bucketizer, if there is one."""
    return False


def nothing_to_load(spec: "FeatureSpec") -> object | None:
    """For types whose kernel takes nothing beyond what all kernels take."""
    return None


@dataclass(frozen=True)
class OperatorType:
    """One type of feature: how its entry is read and what its kernel is given.

    Everything that types have in common (sides, sequences, defaults, bucketizers,
    normalizers, prefixes, forms) is done by the code that reads this table.
    """

    feature_type: str
    """As ``fg.json`` writes it, without ``sequence_``."""

    operator: str
    """The name under which the kernel is registered."""

    inputs: Callable[[Entry], list[tuple[str, str]]]
    """Key and ``side:name`` of each input, in the order the kernel expects."""

    value_type: str = "string"
    """``value_type`` where the entry has none."""

    default: str = ""
    """``default_value`` where the entry has none."""

    empty_default: str = ""
    """What an empty ``default_value`` means; "" is no default at all."""

    value_dim: Callable[[Entry, bool], int] = keeps_all
    """Reads ``value_dim``; the flag says whether in a sequence."""

    width: Callable[[Entry], int] = width_of_one
    """Columns of a dense row; 0: as many as a run computes."""

    bucketizers: tuple[str, ...] = KEYS
    """Bucketizers that the type takes; of several, the first one is chosen."""

    other_keys: frozenset[str] = frozenset()
    """Keys of bucketizers that mean something else to the type."""

    gives_ids: Callable[[Any], bool] = gives_values
    """Whether values are ids as they come, given the details."""

    numeric: Callable[[Any, Bucketizer | None, str], bool] = not_numeric
    """Whether values are numbers before bucketization, else text."""

    normalizes: bool = False
    """Whether ``normalizer`` applies."""

    weighted: bool = False
    """Whether ``weighted`` applies."""

    prefixes: bool = True
    """Whether ``need_prefix`` applies."""

    all_sequences: bool = False
    """In a sequence, whether inputs of every side are sequences (section 9)."""

    whole: frozenset[str] = frozenset()
    """Keys of inputs that are sequences only if they clearly are so."""

    spreads: bool = False
    """If no input is a sequence by the rules: those are that have several elements,
    read from columns without the group's name."""

    maps: Callable[[Any, InputRef, bool], bool] = takes_no_maps
    """Whether an input may be a map; given the details and ``weighted``."""

    read_details: Callable[[Entry, Path], object | None] = no_details
    """Reads the type's own keys into a frozen dataclass."""

    payload: Callable[["FeatureSpec"], object | None] = nothing_to_load
    """What the kernel's loader is given."""

    variant: Callable[[Entry], "OperatorType"] | None = None
    """Chooses a narrower type by the entry, where one name covers several."""


@dataclass(frozen=True)
class FeatureSpec:
    """One feature. ``name`` is its output name (``<sequence_name>__<own>``).

    ``default`` is None where an empty input has no value. ``value_dim`` 0 keeps
    all values. ``width`` is that of a dense row, 0 if a run computes it.
    ``numeric``: values are numbers, not text, before bucketization; then
    ``default_numbers`` holds the default. ``details`` are the type's own keys.
    """

    name: str
    own_name: str
    type: OperatorType
    inputs: tuple[InputRef, ...]
    sequence: Sequence | None
    default: str | None
    default_numbers: tuple[float, ...]
    value_type: str
    separator: bytes
    value_dim: int
    width: int
    need_prefix: bool
    weighted: bool
    numeric: bool
    bucketizer: Bucketizer | None
    normalizer: Normalizer | None
    stub: bool
    details: Any = None

    @property
    def operator(self) -> str:
        """The name of its kernel."""
        return self.type.operator

    @property
    def form(self) -> Form:
        """What its values are."""
        if self.bucketizer is not None or self.type.gives_ids(self.details):
            return "ids"
        return "numbers" if self.numeric else "text"


@dataclass(frozen=True)
class FgSpec:
    """A whole ``fg.json``: its features in file order and its groups."""

    features: tuple[FeatureSpec, ...]
    groups: tuple[Sequence, ...]
    reserves: tuple[str, ...]
