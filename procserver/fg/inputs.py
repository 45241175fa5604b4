"""Inputs of a feature: ``side:name``, and which of them are sequences."""

from collections.abc import Callable

from procserver.fg.entry import Entry
from procserver.fg.feature import SIDES, InputRef, OperatorType, Sequence, Side

Written = list[tuple[str, str]]


def one_expression(entry: Entry) -> Written:
    """``expression`` as one ``side:name``."""
    written = entry.strings("expression") or ()
    if len(written) != 1:
        raise entry.refuse("expression", "must be one side:name")
    return [("expression", written[0])]


def two_expressions(entry: Entry) -> Written:
    """``expression`` as a list of exactly two inputs."""
    written = entry.strings("expression") or ()
    if len(written) != 2:
        raise entry.refuse("expression", "must list two inputs")
    return [("expression", text) for text in written]


def many_expressions(entry: Entry) -> Written:
    """``expression`` as a list of two inputs or more."""
    written = entry.strings("expression") or ()
    if len(written) < 2:
        raise entry.refuse("expression", "must list two inputs or more")
    return [("expression", text) for text in written]


def some_expressions(entry: Entry) -> Written:
    """``expression`` as one input or a list of them."""
    written = entry.strings("expression") or ()
    if not written:
        raise entry.refuse("expression", "is required")
    return [("expression", text) for text in written]


def keyed(*keys: str) -> Callable[[Entry], Written]:
    """One input under each of ``keys``."""

    def read(entry: Entry) -> Written:
        return [(key, entry.text(key)) for key in keys]

    return read


def read_inputs(
    entry: Entry,
    kind: OperatorType,
    sequence: Sequence | None,
    siblings: frozenset[str],
) -> tuple[InputRef, ...]:
    """The inputs of an entry (spec sections 1 and 9).

    :raises FgConfigError: for what is not ``side:name``
    """
    written = kind.inputs(entry)
    parts = [(key, *_split_ref(entry, key, text)) for key, text in written]
    fields = entry.strings("sequence_fields")
    chosen = [
        sequence is not None and _is_sequence(side, name, kind, fields, siblings)
        for _, side, name in parts
    ]
    spread = kind.spreads and sequence is not None and not any(chosen)
    if sequence is not None and not any(chosen):
        # NOTE(9): no input qualifies by the rules: then all columns do.
        chosen = [side != "const" and key not in kind.whole for key, side, _ in parts]
    prefix = sequence.prefix if sequence is not None else ""
    return tuple(
        InputRef(
            side,
            name,
            f"{prefix}{name}" if is_sequence and not spread else name,
            is_sequence,
            key,
            spread,
        )
        for (key, side, name), is_sequence in zip(parts, chosen, strict=True)
    )


def _is_sequence(
    side: Side,
    name: str,
    kind: OperatorType,
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
    return kind.all_sequences or side == "item"


def _split_ref(entry: Entry, key: str, text: str) -> tuple[Side, str]:
    side, colon, name = text.partition(":")
    for known in SIDES:
        if colon and side.strip() == known and (name or known == "const"):
            return known, name
    raise entry.refuse(
        key, f"{text!r:.60} is not side:name with side in {', '.join(SIDES)}"
    )
