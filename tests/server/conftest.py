"""Live services, one process tree per module."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

import tiny
from live import LiveServer


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A ranking service with two workers, stopped and checked at the end."""
    folder = tmp_path_factory.mktemp("ranking")
    server = LiveServer(tiny.write(folder, "rank"), folder / "server.log").start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bypass(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A bypass service with one worker."""
    folder = tmp_path_factory.mktemp("bypass")
    config = tiny.write_bypass(folder, "bare")
    server = LiveServer(config, folder / "server.log", workers=1).start()
    yield server
    server.stop()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """Makes servers that are ended with the test, whatever happened."""
    servers: list[LiveServer] = []

    def make(config: Path, **options: object) -> LiveServer:
        log = tmp_path / f"server{len(servers)}.log"
        servers.append(LiveServer(config, log, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield make
    for server in servers:
        if server.process is not None:
            server.stop(expect_clean=False)
