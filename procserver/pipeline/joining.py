"""The ``sequence_pk`` join: item features of the items in a user's sequences."""

from __future__ import annotations

from cython_ext.column import Column, Kind, Shape, shape_of
from procserver.errors import (
    BadFeature,
    SourceError,
)
from procserver.fg import SequenceJoin
from procserver.itemcache.reader import Generation


def join_sequence(
    generation: Generation, join: SequenceJoin, user: dict[str, Column]
) -> None:
    """Adds ``<sequence>__<column>`` for each item column of a sequence group.

    The id column comes from the request itself, so that a clicked item that is
    in no table any more still counts by its id.
    """
    wanted = {
        column: name
        for column, name in join.inputs.items()
        if name not in user and column in generation.schema
    }
    if not wanted or join.pk_name not in user:
        return
    ids = _sequence_ids(join, user[join.pk_name])
    if join.length:
        ids = ids.slice(0, min(join.length, len(ids)))
    if generation.key in wanted:
        user[wanted.pop(generation.key)] = ids.nest()
    found = generation.lookup(ids)
    for column, values in generation.gather(found, list(wanted)).items():
        user[wanted[column]] = _nested(join, column, values)


def _sequence_ids(join: SequenceJoin, keys: Column) -> Column:
    """The item ids of a sequence: a delimited text, a list, or one number.

    :raises BadFeature: for any other type
    """
    kind = keys.kind
    if kind == Kind.STRING:
        text = keys.to_pylist()[0]
        ids = text.split(join.delim) if text else []
        return Column.from_texts(ids)
    if kind in (Kind.LIST_STRING, Kind.LIST_INT32, Kind.LIST_INT64):
        return keys.elements(0)
    if kind in (Kind.INT32, Kind.INT64):
        return keys
    if kind == Kind.ABSENT:
        return Column.from_texts([])
    raise BadFeature(
        f"user_features[{join.pk_name!r}]: item ids of sequence "
        f"{join.sequence_name!r} are text, integers or lists of these, "
        f"not {_spelled(kind)}"
    )


def _nested(join: SequenceJoin, column: str, values: Column) -> Column:
    try:
        return values.nest()
    except TypeError as error:
        # A matter of the item table's type, not of the request.
        raise SourceError(
            f"sequence {join.sequence_name!r}, item column {column!r}: {error}"
        ) from error


def _spelled(kind: Kind) -> str:
    if shape_of(kind) == Shape.SCALAR:
        return kind.name.lower()
    return kind.name.lower().replace("_", " of ", 1)
