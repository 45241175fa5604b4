"""F29, F33: the refresher of a live service is killed wherever it can be."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import history
import pytest
from faulty import DEADLINE, ITEMS, Service, request, wait_until
from feed import LOG_ITEMS, Feed
from history import Promise

from procserver.faults import POINTS

Make = Callable[..., Service]
PLUGGED = Path(__file__).parent / "plugged"
DIED, STARTED = "died; next start in", "refresher started (pid"
BUILT, FOLDED = ", built in ", ", folded in "
LOG = request([f"item_{n}" for n in range(1, 1 + LOG_ITEMS)]).SerializeToString()
ALL = request([f"item_{n}" for n in range(ITEMS)]).SerializeToString()
# A delta of a small table has room for 16,384 items: half of that, and twice.
HALF = 8_300
# More than the points of one load are passed through.
MOST = 60


@dataclass
class Shop:
    """A service whose items follow a feed."""

    service: Service
    feed: Feed

    def served(self) -> bool:
        """Whether all that was written is served."""
        wanted = [-1.0 if b is None else b for b in self.feed.builds.values()]
        return self.service.outputs(ALL)["build"] == wanted

    def settle(self) -> None:
        """Everything that was ever written is served, and nothing else is left."""
        with self.quiet():
            wait_until(self.served)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        self.feed.pause()
        try:
            yield
        finally:
            self.feed.go_on()

    def counts(self, text: str) -> int:
        return self.service.text().count(text)

    # What a refresher is killed in; each returns whether it has come to its end.

    def load(self) -> Callable[[], bool]:
        """Everything is loaded while changes come."""
        before = self.counts(BUILT)
        self.service.ask_for_load()
        return lambda: self.counts(BUILT) > before

    def batch(self) -> Callable[[], bool]:
        """Many changes that must be applied one after the other."""
        self.feed.burst()
        return self.served

    def fold(self) -> Callable[[], bool]:
        """So many changes that they are folded into a new generation."""
        before = self.counts(FOLDED)
        self.feed.fill(HALF)
        return lambda: self.counts(FOLDED) > before and self.served()

    def prepare(self, stage: Stage) -> None:
        """So that each kill finds the same."""
        if stage.what in (Shop.fold, Shop.batch):
            done = self.load()
            wait_until(done)
        if stage.what is Shop.fold:
            self.feed.fill(HALF)
            wait_until(
                lambda: self.service.metric("procserver_cache_delta_rows") > HALF
            )

    def run(self, stage: Stage, faults: str) -> bool:
        """Whether the refresher died of it; all is well again when this returns."""
        # What was not reached the last time is not to happen now.
        self.service.arm("")
        self.prepare(stage)
        self.settle()
        deaths, starts = self.counts(DIED), self.counts(STARTED)
        if stage.is_alone:
            self.feed.pause()
        try:
            self.service.arm(faults)
            done = stage.what(self)
            wait_until(lambda: self.counts(DIED) > deaths or done(), 2 * DEADLINE)
        finally:
            if stage.is_alone:
                self.feed.go_on()
        died = self.counts(DIED) > deaths
        if died:
            wait_until(lambda: self.counts(STARTED) > starts)
        self.settle()
        return died

    def passes(self, stage: Stage) -> dict[str, int]:
        """How often each fault point is passed in one run."""
        # NOTE: another text of no faults begins to count anew.
        assert not self.run(stage, " ")
        found = fault_counts(self.service)
        self.service.arm("")
        return found


@dataclass(frozen=True)
class Stage:
    """What is done, at which points it is stopped, whether the feed rests meanwhile."""

    what: Callable[[Shop], Callable[[], bool]]
    points: tuple[str, ...]
    is_alone: bool = False


STAGES = {
    "load": Stage(
        Shop.load, ("source.read", "cache.alloc", "cache.write", "cache.publish")
    ),
    "batch": Stage(Shop.batch, ("delta.write", "delta.publish"), is_alone=True),
    "fold": Stage(Shop.fold, ("cache.alloc", "cache.write", "cache.publish")),
    "fold alone": Stage(Shop.fold, ("delta.write", "delta.publish"), is_alone=True),
}


def fault_counts(service: Service) -> dict[str, int]:
    """How often each point has been passed since faults were armed."""
    for entry in Path(f"/proc/{service.pid}/fd").iterdir():
        if "memfd:PROCSERVER_FAULTS" in os.readlink(entry):
            numbers = struct.unpack(f"<{1 + len(POINTS)}Q", entry.read_bytes())
            return dict(zip(POINTS, numbers[1:], strict=True))
    raise AssertionError("no faults are armed")


@pytest.fixture(scope="module")
def shop(shared: Make) -> Iterator[Shop]:
    service = shared(
        "good",
        name="points",
        faults="",
        env={"PYTHONPATH": str(PLUGGED)},
        model_config={"remote_type": "mirror"},
        # What the table does not know goes with each load, and that is much.
        procserver={"max_row_drop": 1},
    )
    changes = service.folder / "changes.jsonl"
    service.change(
        lambda content: content["model_config"].update(
            url=str(service.folder), stream={"url": f"file://{changes}"}
        )
    )
    with Feed(changes, ITEMS) as feed:
        service.start()
        yield Shop(service, feed)
        # While it can still be told from garbage.
        service.stop(expect_clean=False)


def kill_everywhere(shop: Shop, name: str, *, ends_only: bool) -> dict[str, list[int]]:
    """Kills the refresher at every pass of each point, or at the first and the last;
    at which passes it died.
    """
    stage, killed = STAGES[name], {}
    with shop.service.load(3, body=LOG, pause=0.005) as load:
        passes = shop.passes(stage) if ends_only else dict.fromkeys(POINTS, MOST)
        for point in stage.points:
            killed[point] = deaths = []
            chosen = [1, passes[point]] if ends_only else range(1, MOST)
            for number in chosen:
                if shop.run(stage, f"{point}:{number}:kill"):
                    deaths.append(number)
                elif not ends_only:
                    break
        shop.service.arm("")
        shop.settle()
    history.check(load.history, Promise(["1"], entries=LOG_ITEMS))
    segments = shop.service.shm_segments()
    generations = {s.rpartition(".")[2].partition("-")[0] for s in segments}
    assert len({g for g in generations if g.isdigit()}) == 1, segments
    return killed


# Changes that come while others are folded: all of it is left to ``make faults``.
@pytest.mark.parametrize("name", ["load", "batch", "fold"])
def test_f29_a_refresher_killed_at_the_ends_of_its_work(shop: Shop, name: str) -> None:
    killed = kill_everywhere(shop, name, ends_only=True)
    for point, deaths in killed.items():
        assert 1 in deaths, (point, deaths)


def test_f29_a_dead_refresher_leaves_no_request_undone(shop: Shop) -> None:
    """A load that nobody has begun is begun by the next one."""
    service = shop.service
    shop.settle()
    before = shop.counts(BUILT)
    victim = service.refresher
    os.kill(service.pid, signal.SIGSTOP)
    try:
        service.kill(victim)
        service.ask_for_load()
    finally:
        os.kill(service.pid, signal.SIGCONT)
    wait_until(lambda: shop.counts(BUILT) > before)
    assert service.refresher != victim


@pytest.mark.faults
@pytest.mark.parametrize("name", STAGES)
def test_a_refresher_killed_wherever_it_can_be(shop: Shop, name: str) -> None:
    killed = kill_everywhere(shop, name, ends_only=False)
    for point, deaths in killed.items():
        assert deaths == list(range(1, len(deaths) + 1)), point
        assert len(deaths) >= 2, (point, deaths)
    print({point: len(deaths) for point, deaths in killed.items()})
