"""Real control segments under names of their own, and nothing left of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from item_sources import NUMBERS, SERVICE

from procserver.itemcache.control import ControlSegment


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert [name for name in os.listdir("/dev/shm") if f".{SERVICE}-" in name] == []


@pytest.fixture
def control() -> Iterator[ControlSegment]:
    control = ControlSegment.create(f"{SERVICE}-{next(NUMBERS)}")
    yield control
    control.unlink()


@pytest.fixture
def shm_folder() -> Path:
    return Path("/dev/shm")
