"""F28 to F30 and F34 to F37: the item cache under everything that befalls it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import history
import posix_ipc
import pytest
from faulty import AUTH, BODY, ITEMS, Service, request, wait_until
from history import Promise
from live import ROOT, SHM

from procserver.errors import ServiceError
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.reader import CacheReader
from procserver.wire.pb.torchrec_predict_pb2 import PBResponse

Make = Callable[..., Service]
TRIALS = Path(__file__).parent / "writer_trials.py"
DIED, STARTED = "died; next start in", "refresher started (pid"


@pytest.fixture(scope="module")
def cached(shared: Make) -> Service:
    return shared("good", name="cache", faults="").start()


def test_f28_no_answer_mixes_generations(cached: Service) -> None:
    """Every row tells its build; tests/itemcache has the same without requests."""
    items = [f"item_{i}" for i in range(ITEMS)]
    body = request(items).SerializeToString()
    refreshes = []
    with cached.load(3, body=body, pause=0.0) as load:
        for build in (2, 3, 4):
            cached.refresh(build)
            generation = cached.generation()
            # A worker looks for each request.
            wait_until(
                lambda build=build: cached.outputs(body)["build"] == [build] * ITEMS
            )
            refreshes.append((time.monotonic(), generation))
    history.check(load.history, Promise(["1"], refreshes=refreshes))
    answered = [op for op in load.history if op.answered]
    assert {one for op in answered for one in op.rows} >= {2.0, 3.0, 4.0}
    assert len(answered) * ITEMS > 1000


def trial(tmp_path: Path, point: str, action: str, *wrapper: str) -> dict[str, int]:
    """How often a writer was stopped, and what readers saw then."""
    told = tmp_path / "faults"
    run = subprocess.run(
        [
            *(*wrapper, sys.executable, str(TRIALS)),
            *(f"trial-{os.getpid()}", str(told), point, action),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PROCSERVER_FAULTS": f"@{told}",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, int] = json.loads(run.stdout)["ends"]
    return found


@pytest.mark.parametrize(
    ("point", "least"),
    [("source.read", 3), ("cache.alloc", 9), ("cache.write", 10), ("cache.publish", 2)],
)
def test_f29_a_writer_killed_at_every_moment(
    tmp_path: Path, point: str, least: int
) -> None:
    ends = trial(tmp_path, point, "kill")
    killed = {end: count for end, count in ends.items() if end.startswith("killed")}
    assert sum(killed.values()) >= least
    # After the publication it is the new state, before it the old one.
    assert ends.get("killed, new", 0) == (1 if point == "cache.publish" else 0)
    assert ends["passed, new"] == 1


@pytest.mark.parametrize("action", ["raise", "oserror"])
def test_f29_a_writer_that_fails_at_every_moment(tmp_path: Path, action: str) -> None:
    ends = trial(tmp_path, "cache.write", action)
    # What cannot be generated ahead is left out, and items are served.
    assert set(ends) == {"raised, old", "passed, bare", "passed, new"}


def test_f29_a_refresher_killed_in_a_refresh(cached: Service) -> None:
    generation, number = cached.generation(), 100.0
    cached.new_items(100)
    with cached.load(2) as load:
        # Two loads die; what a refresher before it has published, the next one keeps.
        cached.arm("cache.write:4:kill,cache.publish:1:kill")
        for _ in range(2):
            deaths, starts = cached.text().count(DIED), cached.text().count(STARTED)
            cached.ask_for_load()
            wait_until(lambda deaths=deaths: cached.text().count(DIED) > deaths, 120)
            assert cached.outputs()["build"] != [number] * 3
            wait_until(lambda starts=starts: cached.text().count(STARTED) > starts, 120)
        cached.arm("")
        cached.ask_for_load()
        wait_until(lambda: cached.outputs()["build"] == [number] * 3, 120)
    history.check(load.history, Promise(["1"]))
    assert cached.generation() > generation
    wait_until(lambda: len(generations(cached)) == 1)


def generations(service: Service) -> set[int]:
    """Generations that are there, whole or not."""
    found = [name.rpartition(".")[2] for name in service.shm_segments()]
    numbers = [part.partition("-")[0] for part in found]
    return {int(number) for number in numbers if number.isdigit()}


def test_f30_a_killed_reader_holds_nothing(cached: Service) -> None:
    before = generations(cached)
    assert len(before) == 1
    cached.predict()
    victim = cached.kill(cached.workers_now()[0])
    for build in (200, 201):
        cached.refresh(build)
        wait_until(lambda: len(generations(cached)) == 1)
    assert generations(cached) != before
    wait_until(lambda: victim not in cached.workers_now())
    cached.wait_workers()
    assert cached.outputs()["build"] == [201.0] * 3
    # Nobody maps what has been unlinked, whether requests come or not.
    for pid in cached.workers_now():
        wait_until(lambda pid=pid: not mapped(pid, "(deleted)"), 120)


def mapped(pid: int, end: str) -> list[str]:
    """Rights of a process to each part of the cache that it maps, by the line's end."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [
        line.split()[1]
        for line in lines
        if re.search(r"/dev/shm/procserver\.\S+\.\d+\.(\d+(-\w+)*|control)( |$)", line)
        and line.endswith(end)
    ]


def test_f34_full_shared_memory_keeps_the_generation(cached: Service) -> None:
    generation, outputs = cached.generation(), cached.outputs()
    failed = cached.metric("procserver_cache_builds_total", outcome="failed")
    segments = cached.shm_segments()
    cached.arm("cache.alloc:1+:enospc")
    cached.new_items(300)
    cached.ask_for_load()
    cached.wait_log("item cache build failed: no shared memory for the item cache")
    assert "bytes needed" in cached.text()
    assert "free in /dev/shm" in cached.text()
    wait_until(
        lambda: (
            cached.metric("procserver_cache_builds_total", outcome="failed") > failed
        )
    )
    assert (cached.generation(), cached.outputs()) == (generation, outputs)
    assert cached.shm_segments() == segments
    cached.arm("")
    cached.refresh(301)
    assert cached.outputs()["build"] == [301.0] * 3


def test_f34_every_allocation_may_fail(tmp_path: Path) -> None:
    ends = trial(tmp_path, "cache.alloc", "enospc")
    assert set(ends) == {"refused, old", "passed, bare", "passed, new"}
    assert ends["refused, old"] >= 5


SMALL = 'mount -t tmpfs -o size=3m tmpfs /dev/shm && exec "$@"'
NAMESPACES = (["unshare", "-m"], ["unshare", "-r", "-m"])


def namespace() -> list[str]:
    """A command that runs another one with 3 MB of shared memory."""
    for start in NAMESPACES:
        wrapper = [*start, "sh", "-c", SMALL, "sh"]
        if shutil.which("unshare") is None:
            break
        run = subprocess.run([*wrapper, "true"], capture_output=True, check=False)
        if run.returncode == 0:
            return wrapper
    pytest.skip("no mount namespaces here: a full /dev/shm is only simulated")


FULL = """
import sys
sys.path.insert(0, sys.argv[1])
from writer_trials import CacheReader, ControlSegment, content, names, refresh, whole
import writer_trials
control = ControlSegment.create("full")
writer_trials.ROWS = 10_000
assert refresh(control, 1) == 0
writer_trials.ROWS = 200_000
print(refresh(control, 2))
writer_trials.ROWS = 10_000
assert content(CacheReader(control.name).current()) == 1.0
assert names(control) == whole(control)
assert refresh(control, 3) == 0
control.unlink()
"""


def test_f34_a_small_tmpfs_is_no_bus_error() -> None:
    run = subprocess.run(
        [*namespace(), sys.executable, "-c", FULL, str(TRIALS.parent)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "9\n"
    assert "no shared memory for the item cache" in run.stderr


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path, 4096), "bytes instead of"),
        (lambda path: os.truncate(path, 0), "is empty"),
        (lambda path: path.write_bytes(b"x" * path.stat().st_size), "no|not"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "no|not"),
    ],
    ids=["shrunk", "emptied", "overwritten", "zeroed"],
)
def test_f35_a_damaged_segment_is_not_attached(
    damage: Callable[[Path], object], reason: str
) -> None:
    import writer_trials

    control = ControlSegment.create(f"damaged-{os.getpid()}")
    try:
        assert writer_trials.refresh(control, 1) == 0
        number, _ = control.state()
        path = SHM / control.generation_name(number).removeprefix("/")
        damage(path)
        with pytest.raises(ServiceError, match=reason):
            CacheReader(control.name).current()
    finally:
        control.unlink()
        path.unlink(missing_ok=True)


def test_f35_segments_are_the_users_own(cached: Service) -> None:
    for name in cached.shm_segments():
        about = (SHM / name).stat()
        assert about.st_mode & 0o777 == 0o600
        assert about.st_uid == os.getuid()
    for pid in cached.workers_now():
        wait_until(lambda pid=pid: cached.outputs() and bool(mapped(pid, "")))
        # The control segment's twice: its own map, and the one of the master's.
        assert len(mapped(pid, ".control")) == 2
        assert {rights[:3] for rights in mapped(pid, "")} == {"r--"}


def test_f36_a_taken_name_is_passed_over(cached: Service) -> None:
    generation = cached.generation()
    start = f"procserver.{cached.name}.{cached.pid}."
    # Builds that failed before have used up numbers.
    taken = [SHM / f"{start}{generation + step}" for step in range(1, 9)]
    for path in taken:
        memory = posix_ipc.SharedMemory(f"/{path.name}", posix_ipc.O_CREX, size=4096)
        memory.close_fd()
        path.write_bytes(b"somebody else's" * 10)
    try:
        cached.refresh(400)
        assert cached.outputs()["build"] == [400.0] * 3
        assert cached.generation() == generation + 9
        assert {path.read_bytes() for path in taken} == {b"somebody else's" * 10}
    finally:
        for path in taken:
            path.unlink()


ODD_IDS = {
    "unknown": "nobody",
    "empty": "",
    "with NUL": "item_1\0",
    "long": "x" * 10_000,
    "of another case": "ITEM_1",
    "with a blank": "item_1 ",
    "not ASCII": "商品_1",
}


def test_f37_ids_that_are_not_there(cached: Service) -> None:
    plain = cached.outputs(request(["item_1", "item_2"]).SerializeToString())
    missing = cached.metric("procserver_missing_items_total")
    for item in ODD_IDS.values():
        body = request(["item_1", item, "item_2"]).SerializeToString()
        found = cached.outputs(body)
        for name in ("score", "build", "mark"):
            assert found[name][1] == -1
            assert [found[name][0], found[name][2]] == plain[name]
    counted = missing + len(ODD_IDS)
    wait_until(lambda: cached.metric("procserver_missing_items_total") == counted)


def test_f37_many_long_ids_take_no_memory(cached: Service) -> None:
    """No allocation by the length of an id; 20 MB of them leave nothing behind."""
    body = request(["y" * 10_000] * 2000).SerializeToString()
    for _ in range(2):
        answer = cached.predict(body)
        assert answer.status == 200
        outputs = PBResponse.FromString(answer.body).map_outputs
        assert list(outputs["score"].float_val) == [-1.0] * 2000
    assert cached.request("POST", "/", BODY, AUTH).status == 200
