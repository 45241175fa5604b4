"""A service whose items change: streams, builds, outages, killed refreshers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
from live import ROOT, LiveServer
from test_lifecycle import wait_until
from test_metrics import scrape
from test_models import metadata
from test_ranking import build, post, scores

Launch = Callable[..., LiveServer]
SECONDS = 90.0
PLUGGED = Path(__file__).parent / "plugged"
ONE = build(["item_0001"]).SerializeToString()


@dataclass
class Shop:
    """A service and the files that its item source reads."""

    server: LiveServer
    folder: Path
    clock: int = 0
    faults: Path | None = None
    prices: dict[str, float] = field(default_factory=dict)

    def put(self, item: str, price: float) -> None:
        self.clock += 1
        self.prices[item] = price
        self._log({"time": self.clock, "item_id": item, "price": price})

    def delete(self, item: str) -> None:
        self.clock += 1
        self._log({"time": self.clock, "delete": item})

    def _log(self, told: dict[str, Any]) -> None:
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")

    def score(self, body: bytes = ONE) -> float:
        answer = post(self.server, body, f"/api/predict/{self.server.name}")
        return float(scores(answer)["probs_ctr"][0])

    def refresh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "procserver", "refresh", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(PLUGGED),
                "PROCSERVER_CONFIG": str(self.server.config),
            },
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def last(self) -> dict[str, Any]:
        told = metadata(self.server)["last_refresh"]
        assert isinstance(told, dict)
        return told

    def refresher(self) -> int:
        """The process that is no worker: it has the lowest number of those there."""
        text = self.server.text()
        return int(text.rpartition("refresher started (pid ")[2].split(")")[0])


def open_shop(folder: Path, name: str, make: Launch, **own: Any) -> Shop:
    """``own``: settings of the section ``procserver``."""
    config = tiny.write(
        folder,
        name,
        model_config={"remote_type": "logged", "url": str(folder)},
        procserver={"state_dir": "state", **own},
    )
    faults = folder / "faults"
    faults.write_text("")
    env = {"PYTHONPATH": str(PLUGGED), "PROCSERVER_FAULTS": f"@{faults}"}
    server = make(config, env=env)
    return Shop(server, folder, faults=faults)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    shop = open_shop(
        folder / "service",
        "shop",
        lambda config, **options: LiveServer(config, folder / "log", **options),
    )
    shop.server.start()
    yield shop
    shop.server.stop()


def test_a_change_is_served_at_once(shop: Shop) -> None:
    before = shop.score()
    shop.put("item_0001", 9.5)
    wait_until(lambda: shop.score() != before, SECONDS)
    counted = "cache_changes_total{outcome=upserted}"
    wait_until(lambda: scrape(shop.server)[counted] >= 1, SECONDS)
    samples = scrape(shop.server)
    assert samples["cache_delta_rows{}"] >= 1
    assert samples["cache_delta_bytes{}"] > 0
    assert samples["cache_age_seconds{}"] < SECONDS
    assert samples["cache_newest_change_age_seconds{}"] < SECONDS
    assert samples["cache_rows{}"] == tiny.ITEMS


def test_the_command_has_everything_loaded_again(shop: Shop) -> None:
    shop.put("item_0001", 11.5)
    before = shop.last()
    done = shop.refresh("--wait")
    assert (done.returncode, done.stderr) == (0, "")
    told = shop.last()
    assert told["number"] == before["number"] + 1
    assert told["outcome"] == "published"
    assert told["generation"] > before["generation"]
    assert done.stdout == (
        f"build {told['number']}: published, generation {told['generation']}\n"
    )
    number = told["number"]
    assert shop.refresh().returncode == 0
    wait_until(lambda: shop.last()["number"] == number + 1, SECONDS)


@pytest.mark.parametrize("trouble", ["down", "half"])
def test_a_source_in_trouble_is_told_and_the_old_state_served(
    shop: Shop, trouble: str
) -> None:
    before, generation = shop.score(), shop.last()["generation"]
    (shop.folder / trouble).touch()
    try:
        done = shop.refresh("--wait")
        assert done.returncode == 1
        assert (
            f"generation {generation} stays: ConnectionError: the conn" in (done.stderr)
            or "ConnectionError: connection to tcp://***@db:1 refused" in done.stderr
        )
        assert "secret" not in done.stderr + shop.server.text()
        assert shop.score() == before
        failed = shop.last()["last_failure"]
        assert failed["kind"] in ("full", "changes")
        assert failed["reason"].startswith("ConnectionError: ")
        assert scrape(shop.server)["cache_refresh_failures_total{kind=full}"] >= 1
    finally:
        (shop.folder / trouble).unlink()
    # What failed is tried again without being asked for.
    wait_until(lambda: shop.last()["generation"] > generation, SECONDS)
    shop.put("item_0001", 20.25 if trouble == "down" else 21.75)
    wait_until(lambda: shop.score() != before, SECONDS)


def test_a_gap_is_told_and_leads_to_a_build(shop: Shop) -> None:
    generation = shop.last()["generation"]
    gaps = "cache_refresh_failures_total{kind=gap}"
    assert scrape(shop.server)[gaps] == 0
    # The log is cut behind what has been read.
    size = (shop.folder / "log.jsonl").stat().st_size
    (shop.folder / "lost").write_text(str(size + 1))
    # Until the file is gone each build finds the gap again.
    wait_until(lambda: scrape(shop.server)[gaps] >= 1, SECONDS)
    (shop.folder / "lost").unlink()
    wait_until(lambda: shop.last()["generation"] > generation, SECONDS)


def test_while_the_source_hangs_the_service_reloads(shop: Shop) -> None:
    (shop.folder / "hang").touch()
    try:
        shop.refresh()
        os.kill(shop.server.pid, signal.SIGHUP)
        wait_until(
            lambda: (metadata(shop.server)["last_reload"] or {}).get("number") == 1,
            SECONDS,
        )
        assert metadata(shop.server)["last_reload"]["outcome"] == "done"
    finally:
        (shop.folder / "hang").unlink()
    # What was begun meanwhile has ended when this has.
    assert shop.refresh("--wait").returncode == 0
    before = shop.score()
    shop.put("item_0001", 33.0)
    wait_until(lambda: shop.score() != before, SECONDS)


def test_a_killed_refresher_goes_on_where_it_was(shop: Shop) -> None:
    builds = "cache_builds_total{outcome=published}"
    wait_until(lambda: shop.last()["outcome"] == "published", SECONDS)
    shop.put("item_0002", 1.0)
    before, samples = shop.score(), scrape(shop.server)
    victim = shop.refresher()
    os.kill(victim, signal.SIGKILL)
    shop.put("item_0001", 44.0)
    wait_until(lambda: shop.refresher() != victim, SECONDS)
    wait_until(lambda: shop.score() != before, SECONDS)
    told = "taken over, goes on from there"
    wait_until(lambda: told in shop.server.text(), SECONDS)
    after = scrape(shop.server)
    assert after[builds] == samples[builds], "nothing was loaded again"
    assert after["cache_generation{}"] == samples["cache_generation{}"]
    assert after["cache_refresh_failures_total{kind=died}"] == 1


@pytest.mark.parametrize(
    "fault", ["source.read:3", "cache.alloc:2", "cache.write:3", "cache.publish:1"]
)
def test_a_refresher_killed_in_a_build_changes_nothing(shop: Shop, fault: str) -> None:
    assert shop.faults is not None
    wait_until(lambda: shop.last()["outcome"] == "published", SECONDS)
    before, generation = shop.score(), shop.last()["generation"]
    victim = shop.refresher()
    stopped = threading.Event()
    seen: set[float] = set()
    asking = threading.Thread(target=_ask, args=(shop, stopped, seen))
    asking.start()
    try:
        shop.faults.write_text(f"{fault}:kill")
        shop.refresh()
        wait_until(lambda: shop.refresher() != victim, SECONDS)
        shop.faults.write_text("")
    finally:
        stopped.set()
        asking.join(SECONDS)
    assert seen == {before}
    # A later build finds nothing in its way.
    done = shop.refresh("--wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert shop.last()["generation"] > generation
    assert shop.score() == before


def _ask(shop: Shop, stopped: threading.Event, seen: set[float]) -> None:
    while not stopped.is_set():
        seen.add(shop.score())
        time.sleep(0.02)


def test_the_command_wants_a_service_with_items(launch: Launch, tmp_path: Path) -> None:
    config = tiny.write_bypass(tmp_path / "service", "plain")
    shop = Shop(launch(config, workers=1), tmp_path)
    assert shop.refresh().returncode == 2
    shop.server.start()
    done = shop.refresh("--wait")
    assert (done.returncode, done.stderr) == (1, "the service has no item source\n")
    shop.server.stop()
