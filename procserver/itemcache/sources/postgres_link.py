"""Connections to a PostgreSQL: read-only transactions, Arrow out."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from procserver.errors import SourceError
from procserver.itemcache.sources import TableConfig
from procserver.itemcache.sources.messages import scrub
from procserver.itemcache.sources.postgres_tables import (
    TYPES,
    Table,
    build_table,
    relations,
)

try:
    import adbc_driver_manager
    import adbc_driver_postgresql.dbapi as adbc
    import psycopg
    from psycopg import conninfo
except ImportError as error:
    raise SourceError(
        f"no driver for PostgreSQL ({error}): pip install 'procserver[postgres]'"
    ) from error

log = logging.getLogger("procserver.itemcache")

CONNECT_SECONDS = 10
# What a dead network costs at most, where the server sends nothing.
NETWORK: dict[str, str | int | None] = {
    "connect_timeout": CONNECT_SECONDS,
    "application_name": "procserver",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# What begins a transaction: the second is for servers without the first, such as
# Hologres, where each statement sees a state of its own.
BEGINNINGS = (
    (
        "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY",
        "SET LOCAL statement_timeout = {timeout}",
    ),
    ("SET statement_timeout = {timeout}", "BEGIN TRANSACTION READ ONLY"),
)
UNSUPPORTED = ("0A000", "42601")


class Link:
    """One server: how to reach it, and what it has turned out not to know.

    ``url`` is a libpq URL or a text of ``key=value``.

    :raises SourceError: if it is neither
    """

    def __init__(self, url: str, statement_seconds: float) -> None:
        self.url = url
        self.copy = True
        self._timeout = max(int(statement_seconds * 1000), 1)
        self._beginning = 0
        try:
            given = conninfo.conninfo_to_dict(url)
            missing = {k: v for k, v in NETWORK.items() if k not in given}
            self._info = conninfo.make_conninfo(url, **missing)
        except psycopg.Error:
            # libpq repeats what it could not read, be it a password.
            raise SourceError(
                "item source: url is no libpq URL; what is special in a user name or "
                "password must be percent-encoded"
            ) from None

    def failure(self, what: str, error: Exception) -> SourceError:
        """An error of a driver as ours."""
        return SourceError(f"{what}: {scrub(error, self.url)}")

    @contextmanager
    def plain(self) -> Iterator["psycopg.Connection[tuple[Any, ...]]"]:
        """A connection of psycopg for a few small questions."""
        try:
            with psycopg.connect(self._info, autocommit=True) as connection:
                connection.execute(f"SET statement_timeout = {self._timeout}".encode())
                yield connection
        except psycopg.Error as error:
            raise self.failure("PostgreSQL", error) from None

    def listen(self, channel: str) -> "psycopg.Connection[tuple[Any, ...]]":
        """A connection to which the channel's messages come."""
        try:
            connection = psycopg.connect(self._info, autocommit=True)
            name = psycopg.sql.Identifier(channel)
            connection.execute(psycopg.sql.SQL("LISTEN {}").format(name))
        except psycopg.Error as error:
            raise self.failure(f"LISTEN {channel}", error) from None
        return connection

    def transaction(self) -> "Transaction":
        """A read-only transaction that sees one moment of all tables."""
        while True:
            try:
                connection = adbc.connect(self._info, autocommit=True)
            except adbc_driver_manager.Error as error:
                raise self.failure("PostgreSQL", error) from None
            try:
                with connection.cursor() as cursor:
                    for statement in BEGINNINGS[self._beginning]:
                        cursor.execute(statement.format(timeout=self._timeout))
                return Transaction(self, connection)
            except adbc_driver_manager.Error as error:
                connection.close()
                last = self._beginning + 1 == len(BEGINNINGS)
                if last or error.sqlstate not in UNSUPPORTED:
                    raise self.failure("PostgreSQL", error) from None
                self._beginning += 1
                log.warning(
                    "PostgreSQL: tables are not read as of one moment: %s",
                    scrub(error, self.url),
                )


class Transaction:
    """Queries with Arrow answers. Use as a context manager."""

    def __init__(self, link: Link, connection: Any) -> None:
        self._link = link
        self._connection = connection
        self._cursor: Any = None

    def batches(self, label: str, query: str) -> Iterator[pa.RecordBatch]:
        """The rows of a query as they come in.

        :raises SourceError: at any time; the rows before are no result then
        """
        cursor = self._cursor = self._connection.cursor()
        try:
            if not self._link.copy:
                cursor.adbc_statement.set_options(
                    **{"adbc.postgresql.use_copy": "false"}
                )
            cursor.execute(query)
            yield from cursor.fetch_record_batch()
        except adbc_driver_manager.Error as error:
            if error.sqlstate == "0A000" and self._link.copy:
                self._link.copy = False
                log.warning("PostgreSQL: no COPY here, the next load goes without")
            raise self._link.failure(label, error) from None
        except (pa.ArrowException, OSError) as error:
            raise self._link.failure(label, error) from None
        finally:
            self._cursor = None
            cursor.close()

    def table(self, label: str, query: str) -> pa.Table:
        """All rows of a query."""
        rows = list(self.batches(label, query))
        if not rows:
            return pa.table({})
        return pa.Table.from_batches(rows)

    def cancel(self) -> None:
        """Ends the query that another thread waits for."""
        cursor = self._cursor
        if cursor is not None:
            try:
                cursor.adbc_cancel()
            except adbc_driver_manager.Error as error:
                log.info("cancel: %s", scrub(error, self._link.url))

    def __enter__(self) -> "Transaction":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it; a query of it must not be under way."""
        try:
            self._connection.close()
        except adbc_driver_manager.Error as failure:
            log.info("close: %s", scrub(failure, self._link.url))


def inspect(link: Link, configs: Sequence[TableConfig]) -> list[Table]:
    """The tables as they are now.

    :raises SourceError: for a table or column that is missing or no feature
    """
    with link.plain() as connection:
        return [_inspect(connection, config) for config in configs]


def _inspect(
    connection: "psycopg.Connection[tuple[Any, ...]]", config: TableConfig
) -> Table:
    names = relations(config.name or "")
    for place, relation in enumerate(names):
        try:
            query = f"SELECT * FROM {relation} LIMIT 0"
            columns = connection.execute(query.encode()).description or []
            break
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            if place + 1 == len(names):
                raise SourceError(
                    f"item table {config.name!r}: there is no such table"
                ) from None
    found = [(column.name, column.type_code) for column in columns]
    strange = [oid for _, oid in found if oid not in TYPES]
    types = {
        oid: (name, kind)
        for oid, name, kind in connection.execute(
            "SELECT oid::int8, typname, typtype::text FROM pg_type WHERE oid = ANY(%s)",
            [strange],
        )
    }
    enums = {oid: name for oid, (name, kind) in types.items() if kind == "e"}
    others = {oid: name for oid, (name, kind) in types.items() if kind != "e"}
    return build_table(config, relation, found, enums, others)


def estimate(link: Link, table: Table) -> int | None:
    """About how many rows a table has, as the server's statistics say."""
    try:
        with link.plain() as connection:
            row = connection.execute(
                "SELECT reltuples::int8 FROM pg_class WHERE oid = %s::regclass",
                [table.relation],
            ).fetchone()
    except SourceError as error:
        log.info("%s: no estimate of its rows: %s", table.label, error)
        return None
    return row[0] if row and row[0] > 0 and not table.config.condition else None
