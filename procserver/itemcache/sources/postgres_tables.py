"""Tables of a PostgreSQL: which columns, which types, which SQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from procserver.errors import SourceError
from procserver.itemcache.sources import ROW_TIME, TableConfig

TIME = ROW_TIME
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The year 9000, in microseconds.
FAR_OFF = 221_845_392_000_000_000
OVERLAP_SECONDS = 60.0


@dataclass(frozen=True)
class Type:
    """A column type of PostgreSQL: its Arrow type, and the cast that leads to it."""

    name: str
    arrow: pa.DataType
    cast: str = ""


# By type OID, which are fixed for built-in types. Lists follow below.
_SCALARS = {
    16: Type("bool", pa.bool_()),
    21: Type("int2", pa.int16()),
    23: Type("int4", pa.int32()),
    20: Type("int8", pa.int64()),
    700: Type("float4", pa.float32()),
    701: Type("float8", pa.float64()),
    1700: Type("numeric", pa.float64(), "float8"),
    25: Type("text", pa.string()),
    1043: Type("varchar", pa.string()),
    1042: Type("bpchar", pa.string(), "text"),
    19: Type("name", pa.string(), "text"),
    2950: Type("uuid", pa.string(), "text"),
}
_ARRAYS = {16: 1000, 21: 1005, 23: 1007, 20: 1016, 700: 1021, 701: 1022, 1700: 1231}
_ARRAYS |= {25: 1009, 1043: 1015, 1042: 1014, 19: 1003, 2950: 2951}
TYPES = _SCALARS | {
    array: Type(
        f"{_SCALARS[oid].name}[]",
        pa.list_(_SCALARS[oid].arrow),
        f"{_SCALARS[oid].cast}[]" if _SCALARS[oid].cast else "",
    )
    for oid, array in _ARRAYS.items()
}
ENUM = Type("enum", pa.string(), "text")
TIMESTAMP, TIMESTAMPTZ = 1114, 1184
INTEGERS = (20, 21, 23)
SUPPORTED = (
    "booleans, integers, floats, numeric, text, uuid, enums, and arrays of these"
)


@dataclass(frozen=True)
class TimeKey:
    """The column of the time of change."""

    column: str
    oid: int

    @property
    def integer(self) -> bool:
        return self.oid in INTEGERS

    def finite(self, expression: str) -> str:
        """SQL of the same time, or of one far off instead of ``infinity``.

        As a number that would be none that a driver can hold.
        """
        if self.integer:
            return expression
        limit = self.literal(FAR_OFF)
        return f"CASE WHEN {expression} > {limit} THEN {limit} ELSE {expression} END"

    def literal(self, value: int) -> str:
        """SQL of a time: microseconds since 1970, or the integer itself."""
        if self.integer:
            return str(value)
        try:
            at = EPOCH + timedelta(microseconds=value)
        except OverflowError:
            at = datetime.min.replace(tzinfo=UTC)
        text = at.replace(tzinfo=None).isoformat(sep=" ")
        if self.oid == TIMESTAMP:
            return f"TIMESTAMP '{text}'"
        return f"TIMESTAMPTZ '{text}+00'"


@dataclass(frozen=True)
class Table:
    """One table: id column, columns asked for, and how to select them.

    ``columns`` are the names that the cache uses: those of ``value`` as they are
    written there, else the table's own.
    """

    label: str
    relation: str
    key: str
    columns: tuple[str, ...]
    expressions: tuple[str, ...]
    schema: pa.Schema
    timekey: TimeKey | None
    config: TableConfig

    def select(
        self,
        leave_out: Sequence[str] = (),
        since: str | None = None,
        *,
        timed: bool = False,
    ) -> str:
        """The query of all rows, or of those whose time is ``since`` or later.

        :param timed: the time comes too, as the last column; with ``since`` it does
        """
        chosen = [
            f"{expression} AS {quoted(name)}"
            for name, expression in zip(
                self.schema.names, self.expressions, strict=True
            )
            if name not in leave_out
        ]
        conditions = [f"({self.config.condition}\n)"] if self.config.condition else []
        if self.timekey is not None and (timed or since is not None):
            column = quoted(self.timekey.column)
            chosen.append(f"{self.timekey.finite(column)} AS {quoted(TIME)}")
            if since is not None:
                conditions.append(f"{column} {since}")
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        return f"SELECT {', '.join(chosen)} FROM {self.relation}{where}"

    def newest(self) -> str:
        """The query of the newest time."""
        assert self.timekey is not None
        where = f" WHERE ({self.config.condition}\n)" if self.config.condition else ""
        latest = self.timekey.finite(f"max({quoted(self.timekey.column)})")
        return f"SELECT {latest} AS {quoted(TIME)} FROM {self.relation}{where}"


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def relations(name: str) -> list[str]:
    """Ways to read a table's name: as written, then in lower case as SQL does.

    Dots separate schema and table; a part in double quotes is taken as it is.
    """
    parts: list[tuple[str, bool]] = []
    rest = name
    while rest:
        if rest.startswith('"'):
            end = rest.find('"', 1)
            while end > 0 and rest[end + 1 : end + 2] == '"':
                end = rest.find('"', end + 2)
            if end < 0 or rest[end + 1 : end + 2] not in ("", "."):
                raise SourceError(f"item table {name!r}: the quotes are not closed")
            parts.append((rest[1:end].replace('""', '"'), True))
            rest = rest[end + 2 :]
        else:
            part, _, rest = rest.partition(".")
            parts.append((part.strip(), False))
    if not parts or not all(part for part, _ in parts):
        raise SourceError(f"item table {name!r}: a part of the name is empty")
    written = ".".join(quoted(part) for part, _ in parts)
    folded = ".".join(quoted(part if q else part.lower()) for part, q in parts)
    return list(dict.fromkeys((written, folded)))


def build_table(
    config: TableConfig,
    relation: str,
    found: Sequence[tuple[str, int]],
    enums: dict[int, str],
    others: dict[int, str],
) -> Table:
    """What a table's columns make of its configuration.

    :param found: names and type OIDs of its columns
    :param enums: names of the enum types among them
    :param others: names of all other types that are not built in
    :raises SourceError: for a missing column or one of a type that no feature has
    """
    label = f"item table {config.name!r}"
    oids = dict(found)
    key = _resolve(label, str(config.key), oids)
    timekey = None
    if config.timekey is not None:
        column = _resolve(label, config.timekey, oids)
        timekey = TimeKey(column, oids[column])
        if not (timekey.integer or timekey.oid in (TIMESTAMP, TIMESTAMPTZ)):
            raise SourceError(
                f"{label}: timekey {column!r} is neither a timestamp nor an integer"
            )
    if config.value is None:
        # A timestamp cannot be a feature; as the time of change it is no mistake.
        hidden = timekey.column if timekey and not timekey.integer else None
        chosen = {name: name for name in oids if name != hidden}
    else:
        chosen = {name: _resolve(label, name, oids) for name in config.value}
    names = {**({} if key in chosen.values() else {key: key}), **chosen}
    key_name = next(name for name, column in names.items() if column == key)
    types = {
        name: _type(label, column, oids[column], enums, others)
        for name, column in names.items()
    }
    return Table(
        label,
        relation,
        key_name,
        tuple(chosen),
        tuple(
            quoted(column) + (f"::{types[name].cast}" if types[name].cast else "")
            for name, column in names.items()
        ),
        pa.schema([pa.field(name, type_.arrow) for name, type_ in types.items()]),
        timekey,
        config,
    )


def _resolve(label: str, name: str, oids: dict[str, int]) -> str:
    for candidate in (name, name.lower()):
        if candidate in oids:
            return candidate
    raise SourceError(f"{label} has no column {name!r}")


def _type(
    label: str, column: str, oid: int, enums: dict[int, str], others: dict[int, str]
) -> Type:
    if oid in TYPES:
        return TYPES[oid]
    if oid in enums:
        return ENUM
    known = {114: "json", 3802: "jsonb", TIMESTAMP: "timestamp", 1082: "date"}
    known |= {TIMESTAMPTZ: "timestamptz", 17: "bytea", 1083: "time", 1186: "interval"}
    name = others.get(oid) or known.get(oid, f"OID {oid}")
    raise SourceError(
        f"{label}, column {column!r} has type {name}; supported are {SUPPORTED}."
        " Cast it in a view or leave it out of `value`"
    )


def shadowed(tables: Sequence[Table], place: int) -> set[str]:
    """Columns of a table which a later one has too, and thus decides."""
    own = tables[place]
    return {
        name
        for later in tables[place + 1 :]
        for name in later.columns
        if name in own.columns and name not in (own.key, later.key)
    }
