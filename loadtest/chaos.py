"""Random faults against one service, and the check of what clients saw.

Run by ``soak.py``. Every action is noted with its time: what a client lost is only
excused by an action that loses something (a killed worker, a restart), and only for
connections that were open then.
"""

from __future__ import annotations

import argparse
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fault_models
import history
from candidates import BAD, offered
from faulty import DEADLINE, Service, make_service, wait_until
from history import Operation, Promise
from live import children
from traffic import Traffic

# A client may find out late that its connection has gone.
NOTICED_S = 2.0
SLOW_S = 3.0
CLIENTS = 6


@dataclass
class Epoch:
    """The time of one master: generations are counted anew with the next one."""

    began: float
    ended: float = float("inf")
    switches: list[tuple[float, str]] = field(default_factory=list)
    descriptors: int = 0
    memory: float = 0.0


@dataclass(frozen=True)
class Loss:
    """When clients may have lost a request, by a killed worker or a restart."""

    start: float
    end: float
    restart: bool = False


@dataclass
class Chaos:
    """A service, what is done to it, and what was noted of that."""

    service: Service
    chance: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    epochs: list[Epoch] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    build: int = 1
    slow: list[threading.Thread] = field(default_factory=list)

    def begin(self) -> None:
        """Notes a master that has just become ready."""
        epoch = Epoch(time.monotonic())
        epoch.descriptors = descriptors(self.service)
        epoch.memory = resident(self.service.pid)
        self.epochs.append(epoch)

    # Actions, by what they are called in the table.

    def kill_worker(self) -> None:
        workers = self.service.workers_now()
        if workers:
            now = time.monotonic()
            self.losses.append(Loss(now, now + NOTICED_S))
            self._kill(self.chance.choice(workers))

    def kill_refresher(self) -> None:
        self._kill(self.service.refresher)

    def _kill(self, pid: int) -> None:
        # It may have died in the meantime, by itself or by another action.
        if pid in children(self.service.pid):
            self.service.kill(pid)

    def new_items(self) -> None:
        self.build += 1
        self.service.new_items(self.build)
        self.service.ask_for_load()

    def good_reload(self) -> None:
        service = self.service
        version = service.publish("good2" if service.newest % 2 else "good").name
        last = self._reload()
        if last["outcome"] == "done":
            self.epochs[-1].switches.append((time.monotonic(), version))

    def bad_reload(self) -> None:
        kind = self.chance.choice(sorted(BAD))
        with offered(self.service, kind):
            last = self._reload()
        if last["outcome"] != "refused":
            self.wrong.append(f"{kind}: {last}")

    def _reload(self) -> dict[str, Any]:
        """A reload, half of the time with a worker killed in the midst of it."""
        self.service.wait_workers()
        number = self.service.last_reload()["number"] + 1
        self.service.hup()
        last = self.service.reloaded(number)
        self.counts[f"  {last['outcome']}"] += 1
        return last

    def reload_and_kill(self) -> None:
        """A good version, and the death of any worker while it is introduced."""
        service = self.service
        version = service.publish("good2" if service.newest % 2 else "good").name
        service.wait_workers()
        number = service.last_reload()["number"] + 1
        service.hup()
        time.sleep(self.chance.uniform(0.0, 1.0))
        self.kill_worker()
        last = service.reloaded(number)
        self.counts[f"  {last['outcome']}"] += 1
        if last["outcome"] == "done":
            self.epochs[-1].switches.append((time.monotonic(), version))

    def restart(self) -> None:
        service = self.service
        self.judge_master()
        began = self.epochs[-1].ended = time.monotonic()
        status = service.stop(expect_clean=False)
        if status != 0:
            self.wrong.append(f"exit status {status} of a restart")
        service.check_gone()
        service.start()
        self.losses.append(Loss(began, time.monotonic() + NOTICED_S, restart=True))
        self.begin()

    def slow_client(self) -> None:
        thread = threading.Thread(target=self._dawdle)
        thread.start()
        self.slow.append(thread)

    def _dawdle(self) -> None:
        head = f"POST /api/predict/{self.service.name} HTTP/1.1\r\nHost: x\r\n"
        try:
            with self.service.connect() as connection:
                end = time.monotonic() + SLOW_S
                for letter in head.encode():
                    if time.monotonic() > end:
                        return
                    connection.send(bytes([letter]))
                    time.sleep(0.1)
        except OSError:
            return

    def garbage(self) -> None:
        noise = self.chance.randbytes(self.chance.randrange(1, 3000))
        start = self.chance.choice([b"", b"POST / HTTP/1.1\r\n", b"GET /\r\n\r\n"])
        try:
            with self.service.connect() as connection:
                connection.settimeout(SLOW_S)
                connection.sendall(start + noise)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65536)
        except OSError:
            return

    # The end.

    def judge_master(self) -> None:
        """What the master holds before it ends, beside what it began with."""
        epoch = self.epochs[-1]
        self.service.wait_workers()

        def settled() -> bool:
            return descriptors(self.service) <= epoch.descriptors + 1

        try:
            wait_until(settled, DEADLINE)
        except AssertionError:
            now = descriptors(self.service)
            self.wrong.append(f"descriptors {epoch.descriptors} -> {now}")
        grown = resident(self.service.pid) - epoch.memory
        if grown > 16.0:
            self.wrong.append(f"the master has grown by {grown:.1f} MB")

    def excused(self, lost: Operation) -> bool:
        """Whether an action explains why this was not answered.

        A killed worker takes connections with it and nothing else; while the service
        is started again nobody answers.
        """
        return any(
            loss.start <= lost.ended
            and lost.began <= loss.end
            and (lost.status == 0 or loss.restart)
            for loss in self.losses
        )

    def violations(self, load: Traffic) -> list[str]:
        """Of each master's time, and of all of it."""
        found = [*self.wrong]
        for epoch in self.epochs:
            mine = [
                op
                for op in load.history
                if epoch.began <= op.began and op.ended <= epoch.ended
            ]
            promise = Promise(self.service.order, epoch.switches, may_fail=self.excused)
            found += history.violations(mine, promise)
        return found


def descriptors(service: Service) -> int:
    """Open files of the master."""
    return len(list(Path(f"/proc/{service.pid}/fd").iterdir()))


def resident(pid: int) -> float:
    """Megabytes of anonymous memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


# Action -> how often among all of them.
ACTIONS: dict[str, int] = {
    "kill_worker": 5,
    "kill_refresher": 2,
    "new_items": 3,
    "good_reload": 4,
    "bad_reload": 4,
    "reload_and_kill": 3,
    "restart": 1,
    "slow_client": 6,
    "garbage": 8,
}


def soak_faults(options: argparse.Namespace, folder: Path, summary: Any) -> None:
    """Random faults for ``options.minutes``; fills in the summary."""
    models = folder / "fault-models"
    if not models.exists():
        fault_models.write_all(models)
    service = make_service(
        folder, models, "good", name="faults", workers=options.workers
    ).start()
    chaos = Chaos(service, random.Random(options.seed))
    try:
        chaos.begin()
        with service.load(CLIENTS, pause=0.02, seed=options.seed) as load:
            _act(chaos, 60 * options.minutes)
            chaos.service.wait_workers()
            # The last word: everybody is asked once more.
            asked = len(load.history)
            wait_until(lambda: len(load.history) > asked + 50)
            chaos.judge_master()
        for thread in chaos.slow:
            thread.join()
        _judge(chaos, load, summary)
    finally:
        service.end()
    summary.judge("left behind by the faults", "nothing", True)


def _act(chaos: Chaos, seconds: float) -> None:
    names, weights = list(ACTIONS), list(ACTIONS.values())
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        (name,) = chaos.chance.choices(names, weights)
        action: Callable[[], None] = getattr(chaos, name)
        chaos.counts[name] += 1
        action()
        time.sleep(chaos.chance.uniform(0.1, 1.5))


def _judge(chaos: Chaos, load: Traffic, summary: Any) -> None:
    found = chaos.violations(load)
    failed = [op for op in load.history if not op.answered]
    kills = sum(not loss.restart for loss in chaos.losses)
    for name, count in sorted(chaos.counts.items()):
        summary.note(name.replace("_", " "), count)
    summary.note("requests under faults", len(load.history))
    summary.note("generations seen", len({op.generation for op in load.history}))
    summary.note("versions seen", len({op.version for op in load.history}))
    restarts = [loss for loss in chaos.losses if loss.restart]
    during = [
        op
        for op in failed
        if not any(r.start <= op.ended and op.began <= r.end for r in restarts)
    ]
    summary.judge(
        "requests lost to killed workers",
        f"{len(during)} of {kills} kills",
        len(during) <= kills * CLIENTS,
    )
    summary.note("not answered during restarts", len(failed) - len(during))
    summary.judge("violations under faults", len(found), not found)
    for line in found[:10]:
        summary.note("  ", line[:300])
