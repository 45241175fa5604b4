"""Real control segments under names of their own, and nothing left of them."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from procserver.itemcache.control import ControlSegment

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


@dataclass(frozen=True)
class SourceFor:
    """An item source, as the service configuration has it."""

    url: object
    tables: Sequence[TableFor] = ()
    remote_type: str = "parquet"


def left_segments() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if f".{SERVICE}" in name]


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert left_segments() == []


@pytest.fixture
def control() -> Iterator[ControlSegment]:
    control = ControlSegment.create(f"{SERVICE}-{next(NUMBERS)}")
    yield control
    control.unlink()


@pytest.fixture
def shm() -> Path:
    return Path("/dev/shm")
