"""F16 to F26: reloads of one service that is asked all the time."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import history
import pytest
from candidates import BAD, offered
from faulty import Service, wait_until
from history import Promise
from live import ROOT, children
from traffic import Traffic

Make = Callable[..., Service]


@dataclass
class Served:
    """The module's service under load, and since when which version is served."""

    service: Service
    load: Traffic
    switches: list[tuple[float, str]]

    def check(self) -> None:
        promise = Promise(self.service.order, self.switches)
        history.check(self.load.history, promise)

    def reload(self) -> dict[str, object]:
        """A good one."""
        last = self.service.reload()
        assert last["outcome"] == "done", last
        self.switches.append((time.monotonic(), str(last["version"])))
        return last


@pytest.fixture(scope="module")
def served(shared: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    one = shared("good", name="reloads", faults="")
    # A conf/serve.py that a test may break.
    one.conf = tmp_path_factory.mktemp("conf") / "serve.py"
    shutil.copy(ROOT / "conf" / "serve.py", one.conf)
    one.start()
    with one.load(3) as load:
        served = Served(one, load, [])
        yield served
    served.check()


@pytest.fixture(autouse=True)
def nobody_noticed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "served" in request.fixturenames:
        request.getfixturevalue("served").check()


def resident(pid: int) -> int:
    """Kilobytes of a process that are its own."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


def test_f16_good_reloads_lose_nothing(served: Served) -> None:
    one = served.service
    used = []
    for round_ in range(10):
        one.publish("good2" if round_ % 2 == 0 else "good")
        served.reload()
        asked = len(served.load.history)
        wait_until(lambda asked=asked: len(served.load.history) > asked + 6)
        segments = [Path("/dev/shm") / name for name in one.shm_segments()]
        used.append(
            (
                sum(path.stat().st_size for path in segments),
                len(os.listdir(f"/proc/{one.pid}/fd")),
                len(children(one.pid)),
                resident(one.pid),
            )
        )
    assert served.load.versions() == set(one.order)
    assert {row[:3] for row in used[1:]} == {used[1][:3]}, used
    assert used[-1][3] - used[1][3] < 2048, f"the master grows: {used}"
    for pid in one.workers_now():
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
    masks = {frozenset(os.sched_getaffinity(pid)) for pid in one.workers_now()}
    if len(os.sched_getaffinity(0)) > 1:
        assert len(masks) == 2, "each worker took its predecessor's core"
    wait_until(lambda: one.metric("procserver_reloads_total", outcome="done") == 10)
    wait_until(lambda: one.metric("procserver_workers_ready") == 2)
    assert one.text().count(": done, version") == 10
    # No request waited for a worker's start, which takes a second or more.
    slowest = max(op.seconds for op in served.load.history)
    assert slowest < 20


def refused(served: Served, reason: str) -> None:
    """A reload that leaves everything alone, and says why."""
    one = served.service
    before = (one.workers_now(), one.shm_segments(), one.outputs()["mark"])
    counted = one.metric("procserver_reloads_total", outcome="refused")
    version = one.predict().headers["x-model-version"]
    last = one.reload()
    assert last["outcome"] == "refused", last
    assert reason in last["reason"]
    assert last["version"] == version
    # The master counts, and has features dropped that were made ahead, after that.
    wait_until(
        lambda: (one.workers_now(), one.shm_segments(), one.outputs()["mark"]) == before
    )
    wait_until(
        lambda: one.metric("procserver_reloads_total", outcome="refused") == counted + 1
    )
    one.wait_log(f"reload {last['number']}: refused, version {version} stays")
    metrics = one.request("GET", "/metrics").body.decode()
    assert "procserver_last_reload_reason_info" in metrics


@pytest.mark.parametrize("kind", ["truncated", "no archive"])
def test_f17_a_damaged_model_is_refused(served: Served, kind: str) -> None:
    with offered(served.service, kind) as reason:
        refused(served, reason)


def test_f18_a_flipped_bit_is_refused(served: Served) -> None:
    with offered(served.service, "flipped") as reason:
        refused(served, reason)


@pytest.mark.parametrize("kind", ["no fg.json", "another fg.json", "outputs", "fbgemm"])
def test_f19_another_signature_is_refused(served: Served, kind: str) -> None:
    with offered(served.service, kind) as reason:
        refused(served, reason)


def test_f20_nan_is_refused(served: Served) -> None:
    with offered(served.service, "NaN") as reason:
        refused(served, reason)


def test_f19_a_model_that_crashes_is_refused(served: Served) -> None:
    with offered(served.service, "crash") as reason:
        refused(served, reason)


CONFIGURATION = [
    "half a JSON",
    "ill-typed",
    "no such version",
    "another name",
    "another source",
    "no model",
]


@pytest.mark.parametrize("kind", CONFIGURATION)
def test_f21_a_broken_configuration_is_refused(served: Served, kind: str) -> None:
    with offered(served.service, kind) as reason:
        refused(served, reason)


def test_f21_a_broken_conf_file_is_not_read(served: Served) -> None:
    """Gunicorn's own settings need a restart: nothing of the file is run again."""
    one = served.service
    kept = one.conf.read_text()
    one.conf.write_text("def (\nworkers = 'many'\n")
    try:
        served.reload()
    finally:
        one.conf.write_text(kept)


def test_f22_an_error_of_our_own_is_refused(served: Served) -> None:
    one = served.service
    one.arm("reload.check:1:raise")
    refused(served, "InjectedFault: fault reload.check, call 1")
    # Before the canary is forked, then when others follow it.
    one.arm("reload.spawn:1:raise")
    refused(served, "InjectedFault: fault reload.spawn, call 1")
    one.arm("reload.spawn:2:raise")
    served.reload()
    one.arm("model.load:1:raise")
    refused(served, "InjectedFault: fault model.load, call 1")
    one.arm("")


def test_f22_a_model_that_cannot_be_loaded_twice_is_taken_back(served: Served) -> None:
    """The canary is good, the one that follows is not."""
    one = served.service
    version = one.predict().headers["x-model-version"]
    bad = one.publish("good2")
    one.arm("model.load:2:raise")
    began = time.monotonic()
    last = one.reload()
    one.arm("")
    assert last["outcome"] == "rolled_back", last
    assert "InjectedFault" in last["reason"]
    assert last["version"] == version
    one.wait_workers()
    assert one.predict().headers["x-model-version"] == version
    # Its clients may have seen the canary's version, and no other way back.
    assert {op.version for op in served.load.since(began)} <= {version, bad.name}
    one.withdraw(bad)
    served.load.history[:] = [
        op for op in served.load.history if op.version != bad.name
    ]


def test_f23_a_storm_is_one_reload_or_two(served: Served) -> None:
    one = served.service
    number = one.last_reload()["number"]
    one.publish("good2")
    # The first reload is under way for longer than signals come.
    one.arm("model.load:1:delay=4")
    most, began = 0, time.monotonic()
    for _ in range(20):
        one.hup()
        most = max(most, len(children(one.pid)))
        time.sleep(0.1)
    since = time.monotonic()
    in_time = since - began < 4

    def quiet() -> bool:
        """Nothing begins any more: the arbiter has had some turns for it."""
        nonlocal most, since
        most = max(most, len(children(one.pid)))
        begun = one.metric("procserver_reload_starts_total")
        if not begun == one.last_reload()["number"] > number:
            since = time.monotonic()
        return time.monotonic() - since > 3

    wait_until(quiet, 120)
    one.arm("")
    # One that ran while signals came, and one after it. (A machine that was held up
    # for seconds may have had time for more.)
    assert one.last_reload()["number"] - number <= (2 if in_time else 10)
    assert one.last_reload()["outcome"] == "done"
    assert most <= one.workers + 2, "one worker more, and the refresher"
    served.switches.append((time.monotonic(), str(one.newest)))


def test_f24_a_refresh_at_the_same_time(served: Served) -> None:
    one = served.service
    one.arm("cache.publish:1+:delay=0.3,cache.write:1+:delay=0.05")
    for build in (2, 3):
        generation = one.generation()
        version = one.publish("good2" if build == 2 else "good").name
        number = one.last_reload()["number"] + 1
        one.new_items(build)
        one.ask_for_load()
        one.hup()
        last = one.reloaded(number)
        assert (last["outcome"], last["version"]) == ("done", version)
        wait_until(lambda before=generation: one.generation() > before)
        wait_until(lambda build=build: one.outputs()["build"] == [float(build)] * 3)
        served.switches.append((time.monotonic(), version))
    one.arm("")
    # Each answer is of one model and one build, and both are the same for all.
    seen = {(op.version, op.generation) for op in served.load.history}
    assert len(seen) >= 3


def test_f26_a_half_copied_version_is_passed_over(served: Served) -> None:
    one = served.service
    version = one.predict().headers["x-model-version"]
    half = one.publish("good2")
    script = half / "scripted_model.pt"
    content = script.read_bytes()
    # The script comes last; while it has another name there is no model.
    script.rename(half / "scripted_model.pt.part")
    last = served.reload()
    assert last["version"] == version
    one.wait_log(f"version {half.name} is incomplete and passed over")
    (half / "scripted_model.pt.part").unlink()
    # Publishers that say when they are ready are believed.
    script.write_bytes(content[: len(content) // 2])
    (one.versions / version / "READY").touch()
    last = served.reload()
    assert last["version"] == version
    one.wait_log("no READY file, which other versions have")
    script.write_bytes(content)
    (half / "READY").touch()
    assert served.reload()["version"] == half.name
    for folder in one.versions.iterdir():
        (folder / "READY").unlink(missing_ok=True)


def test_every_bad_candidate_has_its_test() -> None:
    tested = {"truncated", "no archive", "flipped", "no fg.json", "another fg.json"}
    tested |= {"outputs", "fbgemm", "NaN", "crash", *CONFIGURATION}
    assert tested == set(BAD)
