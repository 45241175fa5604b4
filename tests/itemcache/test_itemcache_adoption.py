"""A new owner takes over what a dead one left, if it is whole and of its source."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from item_sources import NUMBERS, SERVICE
from test_itemcache_companion import DIGEST, Doubled, Items, batch

from cython_ext.column import Column
from procserver import shm
from procserver.itemcache import adoption, layout, refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.live import Live
from procserver.itemcache.making import Makers
from procserver.itemcache.reader import CacheReader

SOURCE = "0123456789abcdef"
ROWS = 40_000


@pytest.fixture
def service() -> Iterator[str]:
    name = f"{SERVICE}-{next(NUMBERS)}"
    yield name
    for prefix in (shm.PREFIX, adoption.KEPT):
        for left in shm.list_segments(f"/{prefix}{name}."):
            shm.unlink(left)


def leave(service: str, *rows: int, source: str = SOURCE, how: str = "die") -> int:
    """Builds in a process that dies; returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            control = ControlSegment.create(service)
            control.source = source
            for count in rows:
                table = Items(batch(range(count)))
                refresh.build(table, control, companion=Doubled())
            if how == "keep":
                adoption.keep(control)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    return pid


def left(service: str) -> list[str]:
    prefixes = (shm.PREFIX, adoption.KEPT)
    return [n for p in prefixes for n in shm.list_segments(f"/{p}{service}.")]


def part(service: str, pid: int, what: int | str) -> Path:
    return shm.SHM / f"procserver.{service}.{pid}.{what}"


@pytest.mark.parametrize("how", ["die", "keep"])
def test_generation_and_companion_change_hands(service: str, how: str) -> None:
    pid = leave(service, 50, ROWS, how=how)
    prefix = adoption.KEPT if how == "keep" else shm.PREFIX
    assert all(n.startswith(f"/{prefix}{service}.{pid}.") for n in left(service))
    adopted = adoption.take_over(service, SOURCE)
    assert adopted is not None
    assert (adopted.generation, adopted.allocated, adopted.items) == (2, 2, ROWS)
    # Garbage of the dead is all that reclaim removes.
    shm.reclaim()
    adoption.forget(service)
    control = ControlSegment.create(service)
    adopted.hand_over(control)
    base = f"/procserver.{service}.{os.getpid()}."
    companion = f"{base}2-{DIGEST[:12]}"
    assert left(service) == [f"{base}2", companion, f"{base}control"]
    generation = CacheReader(control.name, digest=DIGEST).current()
    assert generation.number == 2
    assert generation.built_at == adopted.built_at
    assert generation.get("i777") == {"id": "i777", "n": 777}
    assert generation.companion is not None
    rows = generation.lookup(Column.from_texts(["i5"]))
    made = generation.companion.gather(rows, ["double"])["double"]
    assert made.to_pylist() == [10]
    # The next build goes on counting, and removes what was taken over.
    report = refresh.build(Items(batch([1])), control, companion=Doubled())
    assert report.generation == 3
    assert left(service)[0] == f"{base}3"
    control.unlink()
    assert left(service) == []


def test_the_same_pid_may_own_it_again(service: str) -> None:
    """As in containers, where every master is process 1."""
    pid = leave(service, 10)
    mine = os.getpid()
    for name in left(service):
        new = f"procserver.{service}.{mine}.{name.rpartition('.')[2]}"
        (shm.SHM / name[1:]).rename(shm.SHM / new)
    assert pid != mine
    adopted = adoption.take_over(service, SOURCE)
    assert adopted is not None
    control = ControlSegment.create(service)
    adopted.hand_over(control)
    assert CacheReader(control.name).current().item_count == 10
    control.unlink()


def test_the_newest_of_several_is_taken(service: str) -> None:
    leave(service, 10)
    leave(service, 20)
    adopted = adoption.take_over(service, SOURCE)
    assert adopted is not None
    assert adopted.items == 20
    shm.reclaim(f"/procserver.{service}.")
    assert len(left(service)) == 2
    control = ControlSegment.create(service)
    adopted.hand_over(control)
    control.unlink()


def test_another_source_is_not_taken(service: str) -> None:
    leave(service, 10, source="fedcba9876543210")
    assert adoption.take_over(service, SOURCE) is None
    shm.reclaim(f"/procserver.{service}.")
    assert left(service) == []


def test_a_live_owner_keeps_its_own(service: str) -> None:
    control = ControlSegment.create(service)
    control.source = SOURCE
    refresh.build(Items(batch(range(10))), control)
    assert adoption.take_over(service, SOURCE) is None
    assert CacheReader(control.name).current().item_count == 10
    control.unlink()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_damage_is_found(service: str) -> None:
    for harm in ("header", "schema", "shrunk", "gone", "unsealed", "control"):
        pid = leave(service, 1000)
        path = part(service, pid, 1)
        if harm == "header":
            flip(path, 40)
        elif harm == "schema":
            flip(path, layout.HEAD_BYTES + 8)
        elif harm == "shrunk":
            os.truncate(path, path.stat().st_size - 4096)
        elif harm == "gone":
            path.unlink()
        elif harm == "unsealed":
            path.write_bytes(path.read_bytes()[:32] + bytes(4) + bytes(500))
        else:
            flip(part(service, pid, "control"), 8)
        assert adoption.take_over(service, SOURCE) is None, harm
        shm.reclaim(f"/procserver.{service}.")
        for name in left(service):
            # Its header does not tell any more whose it was.
            assert harm in ("header", "unsealed", "control"), name
            shm.unlink(name)


def test_a_damaged_body_is_found_by_the_refresher(service: str) -> None:
    pid = leave(service, 1000)
    path = part(service, pid, 1)
    flip(path, path.stat().st_size // 2)
    adopted = adoption.take_over(service, SOURCE)
    assert adopted is not None
    control = ControlSegment.create(service)
    adopted.hand_over(control)
    assert Live(control).attach() is None
    report = refresh.build(Items(batch(range(5))), control)
    assert report.generation == 2
    assert Live(control).attach() is not None
    control.unlink()


def test_a_damaged_companion_stays_behind(service: str) -> None:
    pid = leave(service, 1000)
    flip(part(service, pid, f"1-{DIGEST[:12]}"), 40)
    adopted = adoption.take_over(service, SOURCE)
    assert adopted is not None
    assert adopted.companion_bytes == 0
    shm.reclaim(f"/procserver.{service}.")
    control = ControlSegment.create(service)
    adopted.hand_over(control)
    generation = CacheReader(control.name, digest=DIGEST).current()
    assert generation.companion is None
    control.unlink()


def test_a_damaged_body_of_a_companion_is_made_again(service: str) -> None:
    pid = leave(service, 1000)
    path = part(service, pid, f"1-{DIGEST[:12]}")
    flip(path, path.stat().st_size // 2)
    adopted = adoption.take_over(service, SOURCE)
    assert adopted is not None
    control = ControlSegment.create(service)
    adopted.hand_over(control)
    live = Live(control)
    state = live.attach()
    assert state is not None
    maker = Doubled()
    assert Makers(live, maker).equip(state)["pregenerated"] == 1
    generation = CacheReader(control.name, digest=DIGEST).current()
    assert generation.companion is not None
    generation.companion.verify()
    rows = generation.lookup(Column.from_texts(["i5", "i999"]))
    made = generation.companion.gather(rows, ["double"])["double"]
    assert made.to_pylist() == [10, 1998]
    # A sound one is not.
    again = live.attach()
    assert again is not None
    assert Makers(live, maker).equip(again) == {}
    control.unlink()


def test_a_taken_name_is_not_overwritten(service: str) -> None:
    leave(service, 10)
    foreign = part(service, os.getpid(), 1)
    foreign.write_bytes(b"somebody else's")
    assert adoption.take_over(service, SOURCE) is None
    assert foreign.read_bytes() == b"somebody else's"
    shm.reclaim(f"/procserver.{service}.")
    foreign.unlink()


def test_keeping_replaces_what_was_kept(service: str) -> None:
    leave(service, 10, how="keep")
    pid = leave(service, 20, 30, how="keep")
    assert len(left(service)) == 3
    assert all(f".{pid}." in name for name in left(service))
    # A start that does not take it removes it; others' starts do not.
    assert shm.reclaim(f"/procserver.{service}.") == 0
    assert adoption.take_over(service, "another") is None
    assert adoption.forget(service) == 3
    assert left(service) == []


def test_others_caches_are_spared_for_a_while(service: str) -> None:
    pid = leave(service, 10)
    shutil.copy(part(service, pid, "control"), part(service, pid, "metrics"))
    shutil.copy(part(service, pid, 1), part(service, pid + 1, 1))
    adoption.clear("another")
    # Neither other segments nor what no control segment names.
    base = f"/procserver.{service}.{pid}."
    assert left(service) == [f"{base}1", f"{base}1-{DIGEST[:12]}", f"{base}control"]
    then = time.time() - adoption.GRACE - 1
    os.utime(part(service, pid, "control"), (then, then))
    adoption.clear("another")
    assert left(service) == []
    leave(service, 10)
    adoption.clear(service)
    assert left(service) == []


def test_arrow_is_not_needed() -> None:
    """The master takes over, which must not start Arrow's threads."""
    code = "import sys, procserver.itemcache.adoption; print('pyarrow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "False\n"
