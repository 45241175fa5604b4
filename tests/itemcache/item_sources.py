"""Configurations of item sources, and the service name that tests use."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

SERVICE = f"t{os.getpid()}"
NUMBERS = itertools.count()


@dataclass(frozen=True)
class TableFor:
    """One entry of ``tables``, as the service configuration has it."""

    name: str | None = None
    key: str | None = None
    value: tuple[str, ...] | None = None
    condition: str | None = None
    timekey: str | None = None
    static: bool = False
    overlap: float | None = None
    types: tuple[tuple[str, str], ...] | None = None


@dataclass(frozen=True)
class SourceFor:
    """An item source, as the service configuration has it."""

    url: object
    tables: Sequence[TableFor] = ()
    remote_type: str = "parquet"
    statement_timeout: float = 60.0
    listen: str | None = None
    stream: object = None
    period_minutes: int | None = None
    item_ttl_minutes: float | None = None
