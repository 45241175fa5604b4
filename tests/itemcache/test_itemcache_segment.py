"""Names, owners, allocation, and what is reclaimed and what is not."""

import os
import subprocess
import sys
from pathlib import Path

import posix_ipc
import pytest
from item_sources import SERVICE

from procserver import shm
from procserver.errors import ServiceError, SharedMemoryError, SourceError
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.refresh import reclaim
from procserver.shm import Owner

DIES_BUILDING = f"""
import os, signal
import pyarrow as pa
from cython_ext.column import Kind
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.writer import GenerationWriter
control = ControlSegment.create("{SERVICE}-dies")
for number in range(2):
    with GenerationWriter(control, "id", {{"id": Kind.INT64}}) as writer:
        writer.append(pa.RecordBatch.from_pydict({{"id": [number]}}))
        writer.publish()
writer = GenerationWriter(control, "id", {{"id": Kind.INT64}})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_process_start_knows_odd_program_names(tmp_path: Path) -> None:
    odd = tmp_path / "a) b (c"
    odd.symlink_to(sys.executable)
    with subprocess.Popen(
        [odd, "-c", "input()"], stdin=subprocess.PIPE, executable=odd
    ) as process:
        started = shm.process_start(process.pid)
        own = shm.process_start(os.getpid())
        assert started is not None
        assert own is not None
        assert started >= own
        assert shm.is_alive(Owner(process.pid, started))
        assert not shm.is_alive(Owner(process.pid, started - 1))
        process.communicate(b"\n")
    assert shm.process_start(process.pid) is None


def test_service_names_are_cleaned_and_stay_apart() -> None:
    assert shm.clean_service("rank_v1-a") == "rank_v1-a"
    names = [shm.clean_service(s) for s in ("a/b", "a.b", "a_b", "", "排序", "x" * 500)]
    assert len(set(names)) == len(names)
    assert all(
        len(name) <= 64 and "/" not in name and "." not in name for name in names
    )
    assert shm.segment_name("a/b", Owner(12, 3), 4).endswith(".12.4")


def test_absurd_sizes_fail_before_any_write(shm_folder: Path) -> None:
    name = f"/procserver.{SERVICE}-absurd.{os.getpid()}.1"
    fd = shm.create(name)
    try:
        assert (shm_folder / name[1:]).stat().st_mode & 0o777 == 0o600
        with pytest.raises(SharedMemoryError, match=r"\d+ bytes needed .* \d+ free"):
            shm.allocate(fd, 0, 1 << 50)
        assert os.fstat(fd).st_blocks == 0
        with pytest.raises(FileExistsError):
            shm.create(name)
    finally:
        os.close(fd)
        assert shm.unlink(name)
    assert not shm.unlink(name)


def test_control_is_one_page_and_mode_0600(
    control: ControlSegment, shm_folder: Path
) -> None:
    stat = (shm_folder / control.name[1:]).stat()
    assert (stat.st_size, stat.st_mode & 0o777) == (4096, 0o600)
    other = ControlSegment.open(control.name)
    assert other.owner == control.owner == shm.this_process()
    assert other.state() == (0, 0)
    number = control.next_number()
    control.publish(number)
    assert other.state() == (number, 0)
    assert other.state(1) == (0, 0)
    control.publish(control.next_number(), table=1)
    assert other.state(1) == (number + 1, 0)
    with pytest.raises(BufferError):
        other.publish(9)


def test_control_refuses_what_is_not_one(
    control: ControlSegment, shm_folder: Path
) -> None:
    with pytest.raises(SourceError, match="no item cache"):
        ControlSegment.open(f"/procserver.{SERVICE}.1.control")
    path = shm_folder / control.name[1:]
    good = path.read_bytes()
    for bad in (
        b"",
        good[:100],
        b"\0" * 4096,
        b"X" + good[1:],
        good[:13] + b"\xff" * 3,
    ):
        path.write_bytes(bad)
        with pytest.raises(ServiceError):
            ControlSegment.open(control.name)
    path.write_bytes(good)


def test_a_live_owners_name_is_not_taken(control: ControlSegment) -> None:
    with pytest.raises(SourceError, match="belongs to another"):
        ControlSegment.create(control.name.split(".")[1])


def test_dead_owners_are_reclaimed_and_nobody_else(
    control: ControlSegment, shm_folder: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", DIES_BUILDING], check=False)
    assert done.returncode == -9
    dead = [name for name in os.listdir(shm_folder) if f".{SERVICE}-dies." in name]
    assert sorted(name.rsplit(".", 1)[1] for name in dead) == ["2", "3", "control"]
    pid = int(dead[0].split(".")[-2])
    foreign = [
        shm_folder / f"procserver.{SERVICE}-dies.{pid}.77",
        shm_folder / f"procserver.{SERVICE}-dies.notes",
        shm_folder / f"other.{SERVICE}-dies.{pid}.1",
    ]
    for path in foreign:
        path.write_bytes(b"not ours")
    unfinished = shm_folder / f"procserver.{SERVICE}-dies.{pid}.9"
    unfinished.write_bytes(b"")
    live_unfinished = shm_folder / f"procserver.{SERVICE}-dies.{os.getpid()}.9"
    live_unfinished.write_bytes(b"\0" * 64)
    assert reclaim(f"/procserver.{SERVICE}-dies.") == 4
    for path in (*foreign, live_unfinished):
        assert path.exists()
        path.unlink()
    assert control.state() == (0, 0)
    assert (shm_folder / control.name[1:]).exists()


def test_a_reused_pid_is_another_owner(shm_folder: Path) -> None:
    own = shm.this_process()
    before = ControlSegment.create(f"{SERVICE}-reuse", Owner(own.pid, own.started - 1))
    again = ControlSegment.create(f"{SERVICE}-reuse", own)
    assert again.name == before.name
    assert again.owner == own
    again.unlink()


def test_create_removes_what_it_cannot_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SourceError("full")

    monkeypatch.setattr(shm, "allocate", full)
    with pytest.raises(SourceError, match="full"):
        ControlSegment.create(f"{SERVICE}-full")


def test_foreign_segment_is_not_opened_for_writing() -> None:
    name = f"/procserver.{SERVICE}-foreign.{os.getpid()}.control"
    memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, size=10)
    os.write(memory.fd, b"0123456789")
    memory.close_fd()
    with pytest.raises(SourceError, match="belongs to another"):
        ControlSegment.create(f"{SERVICE}-foreign")
    assert (shm.SHM / name[1:]).read_bytes() == b"0123456789"
    shm.unlink(name)
