"""``make soak``: reloads by the hundred under load, then anything at any moment.

Two runs on one machine, each against real processes of its own:

*reloads*: good candidates (version after version) and bad ones of every kind, while
clients ask at half of what the service can do, at random moments of an open loop.
No request may fail, answers during a reload may take 1.5 times as long as without
(99th percentile), memory and descriptors stay as they are.

*faults* (``chaos.py``): for some minutes something happens every second or so:
workers and the refresher are killed, reloads of both kinds, restarts, new items,
clients that are slow or talk nonsense. What clients saw is checked; in the end
nothing may be left over.

``--seed`` repeats a run's decisions. Exit status 1 if anything was not as it should.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "server"))

import chaos
import fault_models
import history
from candidates import BAD, offered
from faulty import ITEMS, Service, make_service, request
from history import Operation, Promise, percentile
from live import children
from traffic import Traffic

# The bars.
MOST_SLOWER = 1.5
MOST_GROWTH_MB = 8.0
# After a reload, until what it cost is over.
CALM_S = 0.5
WARM_S = 2.0
GAUGE_S = 3.0


class Tower(fault_models.Good):
    """A model that has something to compute, milliseconds for a request."""

    def __init__(self, mark: float) -> None:
        super().__init__(mark)
        self.tower = torch.nn.Sequential(
            torch.nn.Linear(1, 512),
            torch.nn.ReLU(),
            torch.nn.Linear(512, 512),
            torch.nn.ReLU(),
            torch.nn.Linear(512, 1),
        )

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = self.answer(data)
        deep = self.tower(data["price.values"])[:, 0]
        found["score"] = torch.sigmoid(deep) * found["score"]
        return found


@dataclass
class Summary:
    """The table at the end; one line that is not as it should be is a failure."""

    lines: list[tuple[str, str, bool | None]] = field(default_factory=list)

    def note(self, what: str, value: object) -> None:
        self.lines.append((what, str(value), None))

    def judge(self, what: str, value: object, good: bool) -> None:
        self.lines.append((what, str(value), good))

    @property
    def good(self) -> bool:
        return all(verdict is not False for _, _, verdict in self.lines)

    def __str__(self) -> str:
        words = {None: "", True: "ok", False: "FAILED"}
        return "\n".join(
            f"{what:<44} {value:>24}  {words[verdict]}"
            for what, value, verdict in self.lines
        )


@dataclass(frozen=True)
class Footprint:
    """What a service holds. Megabytes of the master's own, of all, of shared memory."""

    master: float
    all: float
    shared: float
    segments: int
    descriptors: int
    processes: int


def anonymous(pid: int) -> float:
    """Megabytes that are a process's own."""
    status = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(status.split("Private_Dirty:")[1].split()[0]) / 1024


def footprint(service: Service) -> Footprint:
    """Of a service that is at rest."""
    service.wait_workers()
    family = children(service.pid)
    paths = [Path("/dev/shm") / name for name in service.shm_segments()]
    return Footprint(
        anonymous(service.pid),
        sum(map(anonymous, [service.pid, *family])),
        sum(path.stat().st_size for path in paths) / 2**20,
        len(paths),
        len(list(Path(f"/proc/{service.pid}/fd").iterdir())),
        len(family),
    )


def write_models(folder: Path) -> Path:
    """The fault models, the good ones with something to compute."""
    fault_models.write_all(folder)
    for name, mark in (("tall", 1.0), ("tall2", 2.0)):
        torch.manual_seed(5)
        fault_models.write(folder / name, Tower(mark))
    return folder


BODY = request([f"item_{i % ITEMS}" for i in range(150)]).SerializeToString()


def gauge(service: Service, clients: int) -> float:
    """Requests a second that the service can answer at most."""
    with service.load(clients, body=BODY, pause=0.0) as load:
        time.sleep(GAUGE_S)
    answered = [op for op in load.history if op.answered]
    return len(answered) / GAUGE_S


def soak_reloads(options: argparse.Namespace, folder: Path, summary: Summary) -> None:
    """Good and bad reloads in random order, under a share of the greatest load."""
    chance = random.Random(options.seed)
    models = write_models(folder / "models")
    service = make_service(
        folder, models, "tall", name="reloads", workers=options.workers
    ).start()
    try:
        most = gauge(service, options.clients)
        rate = options.rate or options.share * most
        plan = [True] * options.good + [False] * options.bad
        chance.shuffle(plan)
        clients = max(options.clients, 8)
        with service.load(clients, body=BODY, rate=rate, seed=options.seed) as load:
            time.sleep(WARM_S)
            windows = _reload_all(options, service, load, plan, chance, summary)
        _judge_reloads(load, windows, service.order, summary)
        summary.note("requests a second, of at most", f"{rate:.0f} of {most:.0f}")
    finally:
        service.end()
    summary.judge("left behind by the reloads", "nothing", True)


@dataclass(frozen=True)
class Window:
    """One reload: from its signal to its outcome."""

    start: float
    end: float
    good: bool
    version: str


def _reload_all(
    options: argparse.Namespace,
    service: Service,
    load: Traffic,
    plan: Sequence[bool],
    chance: random.Random,
    summary: Summary,
) -> list[Window]:
    windows: list[Window] = []
    wrong: list[str] = []
    first: Footprint | None = None
    time.sleep(options.calm)
    kinds = sorted(BAD)
    for number, good in enumerate(plan, 1):
        start = time.monotonic()
        if good:
            service.publish("tall2" if service.newest % 2 else "tall")
            start = time.monotonic()
            last = service.reload()
            expected = "done"
        else:
            kind = kinds[number % len(kinds)]
            with offered(service, kind) as reason:
                last = service.reload()
                if reason not in str(last["reason"]):
                    wrong.append(f"{kind}: {last['reason']}")
            expected = "refused"
        windows.append(Window(start, time.monotonic(), good, str(last["version"])))
        if last["outcome"] != expected:
            wrong.append(f"reload {number}: {last}")
        if number == min(2, len(plan)):
            first = footprint(service)
        time.sleep(chance.uniform(0.5, 1.5) * options.calm)
    summary.note("reloads, good and bad", f"{options.good} and {options.bad}")
    summary.judge("with another outcome than expected", len(wrong), not wrong)
    for line in wrong[:5]:
        summary.note("  ", line[:200])
    if first is not None:
        _judge_growth(first, footprint(service), summary)
    return windows


def _judge_growth(first: Footprint, last: Footprint, summary: Summary) -> None:
    def change(before: float, after: float) -> str:
        return f"{before:.1f} -> {after:.1f}"

    for what, name, most in (
        ("MB of the master's own", "master", MOST_GROWTH_MB),
        ("MB of all processes' own", "all", 3 * MOST_GROWTH_MB),
        ("MB of shared memory", "shared", 0.5),
        ("shared segments", "segments", 0),
        ("descriptors of the master", "descriptors", 0),
        ("processes", "processes", 0),
    ):
        before, after = getattr(first, name), getattr(last, name)
        summary.judge(what, change(before, after), after - before <= most)


def _judge_reloads(
    load: Traffic, windows: Sequence[Window], order: list[str], summary: Summary
) -> None:
    switches = [(w.end, w.version) for w in windows if w.good]
    found = history.violations(load.history, Promise(order, switches))
    failed = [op for op in load.history if not op.answered]
    summary.note("requests", len(load.history))
    summary.judge("failed requests", len(failed), not failed)
    summary.judge("violations in what clients saw", len(found), not found)
    for line in found[:5]:
        summary.note("  ", line[:200])

    def inside(op: Operation) -> bool:
        return any(w.start <= (op.due or op.began) <= w.end for w in windows)

    def near(op: Operation) -> bool:
        return any(w.start <= (op.due or op.began) <= w.end + CALM_S for w in windows)

    ops = [op for op in load.history if op.began > load.history[0].began + WARM_S]
    during = [op.seconds for op in ops if inside(op)]
    without = [op.seconds for op in ops if not near(op)]
    for share in (0.5, 0.99):
        before, now = percentile(without, share), percentile(during, share)
        text = f"{1e3 * before:.1f} -> {1e3 * now:.1f} ms"
        if share == 0.99 and before:
            ratio = now / before
            good = ratio <= MOST_SLOWER
            summary.judge("p99 without and during reloads", text, good)
            summary.judge("  ratio", f"{ratio:.2f}", good)
        else:
            summary.note(f"p{100 * share:.0f} without and during reloads", text)
    summary.note("slowest during reloads", f"{1e3 * max(during, default=0):.1f} ms")
    took = sum(w.end - w.start for w in windows if w.good)
    count = max(1, sum(w.good for w in windows))
    summary.note("seconds of a good reload", f"{took / count:.2f}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--good", type=int, default=200, help="good reloads")
    add("--bad", type=int, default=50, help="bad reloads")
    add("--reloads", type=int, help="so many good ones, no bad ones, no faults")
    add("--minutes", type=float, default=30.0, help="of random faults")
    add("--share", type=float, default=0.5, help="of the greatest load")
    add("--rate", type=float, help="requests a second, instead of --share")
    add("--calm", type=float, default=1.0, help="seconds between two reloads")
    add("--clients", type=int, default=4)
    add("--workers", type=int, default=2)
    add("--seed", type=int, default=1)
    add("--keep", type=Path, help="folder for models, logs and state")
    options = parser.parse_args(arguments)
    if options.reloads is not None:
        options.good, options.bad, options.minutes = options.reloads, 0, 0.0
    return options


def run(options: argparse.Namespace, folder: Path) -> Summary:
    """Both parts, as far as they are asked for."""
    summary = Summary()
    parts: list[tuple[bool, Callable[..., None]]] = [
        (bool(options.good or options.bad), soak_reloads),
        (options.minutes > 0, chaos.soak_faults),
    ]
    for wanted, part in parts:
        if wanted:
            try:
                part(options, folder, summary)
            except AssertionError as error:
                summary.judge(part.__name__, str(error)[-2000:], False)
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)
    began = time.monotonic()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        summary = run(options, options.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="procserver-soak-") as folder:
            summary = run(options, Path(folder))
    print(summary)
    print(f"seed {options.seed}, {time.monotonic() - began:.0f} s")
    return 0 if summary.good else 1


if __name__ == "__main__":
    sys.exit(main())
