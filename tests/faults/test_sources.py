"""F31, F32: the item source is not there, or not all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live import LiveServer, children
from test_lifecycle import wait_until
from test_metrics import scrape
from test_refresh import SECONDS, open_shop

Launch = Callable[..., LiveServer]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    servers: list[LiveServer] = []

    def make(config: Path, **options: object) -> LiveServer:
        log = tmp_path / f"server{len(servers)}.log"
        servers.append(LiveServer(config, log, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield make
    for server in servers:
        if server.process is not None:
            server.stop(expect_clean=False)


def test_f31_a_source_that_is_down_keeps_the_service_from_starting(
    launch: Launch, tmp_path: Path
) -> None:
    shop = open_shop(tmp_path / "service", "closed", launch)
    (shop.folder / "down").touch()
    server = shop.server.launch()
    assert server.process is not None
    assert server.process.wait(SECONDS) == 4
    assert "service closed cannot start: ConnectionError: connection to tcp://***@" in (
        server.text()
    )
    assert "Listening at" not in server.text()
    assert "Traceback (most" not in server.text()


def test_f31_without_need_for_the_source_the_cache_is_empty_at_first(
    launch: Launch, tmp_path: Path
) -> None:
    shop = open_shop(tmp_path / "service", "opening", launch, source_required=False)
    (shop.folder / "down").touch()
    server = shop.server.start()
    ready = server.request("GET", "/v2/health/ready")
    assert ready.status == 200
    told = json.loads(ready.body)
    assert told["ready"] is True
    assert told["degraded"] == "the item cache is empty"
    assert shop.score() == -1, "the item is not known"
    (shop.folder / "down").unlink()
    wait_until(lambda: shop.score() != -1, SECONDS)
    wait_until(
        lambda: (
            "degraded" not in server.request("GET", "/v2/health/ready").body.decode()
        ),
        SECONDS,
    )
    assert len(children(server.pid)) == 3
    server.stop()


@pytest.mark.parametrize("trouble", ["down", "half", "hang"])
def test_f32_what_was_loaded_is_served_and_grows_old(
    launch: Launch, tmp_path: Path, trouble: str
) -> None:
    shop = open_shop(tmp_path / "service", f"old-{trouble}", launch)
    server = shop.server.start()
    before, generation = shop.score(), shop.last()["generation"]
    (shop.folder / trouble).touch()
    assert shop.refresh().returncode == 0
    age = "cache_age_seconds{}"
    if trouble == "half":
        # Changes can be read, so the cache is not old; but no load works.
        failures = "cache_refresh_failures_total{kind=full}"
        wait_until(lambda: scrape(server)[failures] >= 2, SECONDS)
    else:
        wait_until(lambda: scrape(server)[age] > 4, SECONDS)
    assert shop.score() == before
    assert shop.last()["generation"] == generation
    (shop.folder / trouble).unlink()
    wait_until(lambda: shop.last()["generation"] > generation, SECONDS)
    wait_until(lambda: scrape(server)[age] < 4, SECONDS)
    assert shop.score() == before
    server.stop()
