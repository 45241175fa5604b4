"""Children of the master and their share of the CPU, with real processes."""

from __future__ import annotations

import os
import threading
import time

import pytest

from procserver.errors import ModelError, ServiceError
from procserver.lifecycle.process import Job, be_idle, be_normal
from procserver.lifecycle.rundir import remove_pid, running_master, write_pid
from procserver.shm import this_process


def fail() -> None:
    raise ModelError("no such thing")


def test_a_job_tells_how_it_ended() -> None:
    Job(lambda: None).wait()
    with pytest.raises(ServiceError, match="no such thing"):
        Job(fail).wait()
    with pytest.raises(ServiceError, match="without a word"):
        Job(lambda: os._exit(1)).wait()


def test_a_job_can_be_looked_at_without_waiting() -> None:
    reader, writer = os.pipe()
    job = Job(lambda: os.read(reader, 1) and None)
    assert not job.is_done()
    os.write(writer, b"x")
    deadline = time.monotonic() + 20
    while not job.is_done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.waitpid(job.pid, 0)
    os.close(reader)
    os.close(writer)


def test_idle_and_back_again_with_all_threads() -> None:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            idle = be_idle()
            policy = os.SCHED_IDLE if idle else os.SCHED_OTHER
            ready, over = threading.Event(), threading.Event()
            tasks: list[int] = []

            def work() -> None:
                tasks.append(threading.get_native_id())
                ready.set()
                over.wait()

            threading.Thread(target=work).start()
            ready.wait()
            good = [os.sched_getscheduler(t) == policy for t in (0, *tasks)]
            be_normal()
            good += [
                os.sched_getscheduler(task) == os.SCHED_OTHER for task in (0, *tasks)
            ]
            over.set()
            status = 0 if all(good) else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_the_pid_file_names_a_master_that_runs(tmp_path) -> None:
    assert running_master(tmp_path) is None
    write_pid(tmp_path)
    assert running_master(tmp_path) == this_process()
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    file = tmp_path / "run" / "master.pid"
    pid, started = file.read_text().split()
    file.write_text(f"{pid}\n{int(started) + 1}\n")
    assert running_master(tmp_path) is None, "another process had that pid"
    remove_pid(tmp_path)
    assert file.exists(), "it is another master's"
    write_pid(tmp_path)
    remove_pid(tmp_path)
    assert not file.exists()
