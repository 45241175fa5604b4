"""PostgreSQL and Redis for all tests of this folder; sources that are closed."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "itemcache"))

from item_sources import SourceFor, TableFor

from procserver.itemcache.control import ControlSegment
from procserver.itemcache.sources import ItemSource, open_source

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    server = servers.start_postgres()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    server = servers.start_redis()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def shop(postgres: servers.Postgres) -> servers.Postgres:
    """A database with an empty schema ``shop``."""
    postgres.run("DROP SCHEMA IF EXISTS shop CASCADE", "CREATE SCHEMA shop")
    return postgres


@pytest.fixture
def client(redis_server: servers.Redis) -> Iterator[Any]:
    """A client of an empty Redis."""
    client = redis_server.client()
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def control() -> Iterator[ControlSegment]:
    name = f"t{os.getpid()}-stores-{next(NUMBERS)}"
    control = ControlSegment.create(name)
    yield control
    control.unlink()
    assert [one for one in os.listdir("/dev/shm") if name in one] == []


@pytest.fixture
def opened() -> Iterator[Callable[..., ItemSource]]:
    """Opens sources, which are closed after the test."""
    sources: list[ItemSource] = []

    def open_one(
        url: str, *tables: TableFor, kind: str = "hologres", **more: Any
    ) -> ItemSource:
        source = open_source(SourceFor(url, tables, kind, **more))
        sources.append(source)
        return source

    yield open_one
    for source in sources:
        source.close()
