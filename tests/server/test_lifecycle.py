"""Starting, stopping and dying, with real processes and real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from live import ROOT, LiveServer, children, segments

Launch = Callable[..., LiveServer]
AUTH = {"Authorization": tiny.TOKEN}


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_a_start_and_a_stop_leave_nothing_behind(
    launch: Launch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    config = tiny.write(tmp_path / "service", "tidy")
    server = launch(config, env={"HOME": str(home), "XDG_RUNTIME_DIR": str(home)})
    server.start()
    family = children(server.pid)
    assert len(family) == 3, "two workers and the refresher"
    assert segments(server)
    for name in segments(server):
        assert (Path("/dev/shm") / name).stat().st_mode & 0o777 == 0o600
    assert not list(home.rglob("*.ctl")), "the control socket is off"
    assert server.stop() == 0
    assert all(gone(pid) for pid in family)


def test_the_master_runs_no_operator_and_one_thread(
    launch: Launch, tmp_path: Path
) -> None:
    server = launch(tiny.write(tmp_path / "service", "quiet")).start()
    assert len(os.listdir(f"/proc/{server.pid}/task")) == 1
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    assert "libtorch_cpu" in maps, "imported once, shared by the workers"
    server.stop()


def test_workers_are_pinned_to_cores(launch: Launch, tmp_path: Path) -> None:
    server = launch(tiny.write(tmp_path / "service", "pinned")).start()
    ours = os.sched_getaffinity(0)
    masks = [os.sched_getaffinity(pid) for pid in children(server.pid)]
    pinned = [mask for mask in masks if len(mask) == max(1, len(ours) // 2)]
    if len(ours) > 1:
        assert len(pinned) == 2
        assert not pinned[0] & pinned[1]
    server.stop()


def test_a_killed_master_frees_the_port_and_its_memory(
    launch: Launch, tmp_path: Path
) -> None:
    config = tiny.write(tmp_path / "service", "orphan")
    server = launch(config).start()
    family = children(server.pid)
    assert segments(server)
    os.kill(server.pid, signal.SIGKILL)
    started = time.monotonic()
    wait_until(lambda: all(gone(pid) for pid in family), 2)
    assert time.monotonic() - started < 1
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", server.port))
    # Any service that starts removes what is left, and ours does at the latest.
    heir = launch(config).start()
    assert segments(server) == []
    assert heir.stop() == 0


def test_a_killed_worker_is_replaced(launch: Launch, tmp_path: Path) -> None:
    server = launch(tiny.write(tmp_path / "service", "phoenix")).start()
    before = set(children(server.pid))
    refresher = min(before)
    victim = max(before)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(set(children(server.pid)) - before) == 1, 15)
    assert refresher in children(server.pid)
    for _ in range(10):
        assert server.request("GET", "/v2/health/ready").status == 200
    server.stop()


def test_a_killed_refresher_comes_back_and_nobody_notices(
    launch: Launch, tmp_path: Path
) -> None:
    server = launch(tiny.write(tmp_path / "service", "refresh")).start()
    workers = set(children(server.pid))
    refresher = min(workers)
    os.kill(refresher, signal.SIGKILL)
    wait_until(lambda: refresher not in children(server.pid), 10)
    wait_until(lambda: len(children(server.pid)) == 3, 20)
    assert server.request("GET", "/", None, AUTH).status == 200
    server.stop()


def test_wrong_configuration_ends_with_status_2(launch: Launch, tmp_path: Path) -> None:
    config = tiny.write(tmp_path / "service", "wrong")
    content = json.loads(config.read_text())
    content["model_config"]["fg_threads"] = "many"
    config.write_text(json.dumps(content))
    server = launch(config).launch()
    assert server.process is not None
    assert server.process.wait(30) == 2
    assert "model_config.fg_threads" in server.text()
    assert "Traceback (most" not in server.text()


def test_a_missing_item_table_ends_with_status_4(
    launch: Launch, tmp_path: Path
) -> None:
    config = tiny.write(tmp_path / "service", "hungry")
    (tmp_path / "service" / "items.parquet").unlink()
    server = launch(config).launch()
    assert server.process is not None
    assert server.process.wait(60) == 4
    assert "items.parquet" in server.text()
    assert "Traceback (most" not in server.text()
    assert segments(server) == []


def test_a_model_is_copied_from_its_store(launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    config = tiny.write(folder, "remote")
    store = tmp_path / "store"
    (folder / "export").rename(store)
    content = json.loads(config.read_text())
    del content["model_path"]
    mount = "/home/admin/docker_ml/workspace/model/"
    content["storage"] = [{"mount_path": mount, "oss": {"path": f"file://{store}"}}]
    config.write_text(json.dumps(content))
    server = launch(config, env={"PROCSERVER_ROOT": str(tmp_path / "root")}).start()
    assert list((folder / "state").rglob("scripted_model.pt"))
    assert len(os.listdir(f"/proc/{server.pid}/task")) == 1
    server.stop()


def test_a_store_that_is_not_there_ends_with_status_4(
    launch: Launch, tmp_path: Path
) -> None:
    config = tiny.write(tmp_path / "service", "nostore")
    content = json.loads(config.read_text())
    content["model_path"] = f"file://{tmp_path}/nowhere"
    config.write_text(json.dumps(content))
    server = launch(config).launch()
    assert server.process is not None
    assert server.process.wait(60) == 4
    assert "nowhere" in server.text()


def test_tensorflow_services_are_refused(launch: Launch, tmp_path: Path) -> None:
    config = tiny.write(tmp_path / "service", "tf", processor="easyrec-2.4")
    server = launch(config).launch()
    assert server.process is not None
    assert server.process.wait(60) == 4
    assert "TensorFlow" in server.text()


@pytest.mark.parametrize("broken", ["scripted_model.pt", "fg.json"])
def test_a_broken_export_ends_with_status_3(
    launch: Launch, tmp_path: Path, broken: str
) -> None:
    config = tiny.write(tmp_path / "service", "broken")
    (tmp_path / "service" / "export" / broken).write_bytes(b"{}")
    server = launch(config, workers=4).launch()
    assert server.process is not None
    assert server.process.wait(60) == 3
    assert "cannot start" in server.text()
    assert "Traceback (most" not in server.text()
    assert segments(server) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_the_start_leaves_nothing_behind(
    launch: Launch, tmp_path: Path, signum: signal.Signals
) -> None:
    """Also before gunicorn handles signals, while the item cache is built."""
    server = launch(tiny.write(tmp_path / "service", "hasty")).launch()
    wait_until(lambda: bool(segments(server)), 60)
    os.kill(server.pid, signum)
    if signum == signal.SIGHUP:
        server.wait_ready().stop()
        return
    assert server.process is not None
    assert server.process.wait(60) == 0, server.text()
    assert "stopped before the start was complete" in server.text()
    assert "Traceback (most" not in server.text()
    assert segments(server) == []


def test_the_token_never_reaches_the_log(launch: Launch, tmp_path: Path) -> None:
    server = launch(tiny.write(tmp_path / "service", "silent")).start()
    server.request("GET", "/", None, {"Authorization": tiny.TOKEN})
    server.request("GET", "/", None, {"Authorization": "nonsense"})
    server.stop()
    assert tiny.TOKEN not in server.text()


def test_a_port_that_is_taken_leaves_nothing_behind(
    launch: Launch, tmp_path: Path
) -> None:
    server = launch(tiny.write(tmp_path / "service", "late"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.port))
        taken.listen()
        server.launch()
        assert server.process is not None
        assert server.process.wait(120) == 1, server.text()
    assert "Can't connect to" in server.text()
    assert segments(server) == []
    assert not (tmp_path / "service" / "state" / "run" / "master.pid").exists()


def test_a_second_master_takes_over(launch: Launch, tmp_path: Path) -> None:
    """USR2: another program version beside this one, which then ends."""
    config = tiny.write(tmp_path / "service", "twin")
    server = launch(config)
    # NOTE: of "python -m gunicorn" gunicorn would start a broken one again.
    command = Path(sys.executable).with_name("gunicorn")
    with server.log.open("wb") as out:
        server.process = subprocess.Popen(
            [
                *(str(command), "-c", str(ROOT / "conf" / "serve.py")),
                *("-b", f"127.0.0.1:{server.port}", "-w", "2"),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "PROCSERVER_CONFIG": str(config),
                "PYTHONPATH": str(ROOT),
            },
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    server.wait_ready()
    pid_file = tmp_path / "service" / "state" / "run" / "master.pid"

    def holder() -> int:
        return int(pid_file.read_text().split()[0])

    os.kill(server.pid, signal.SIGUSR2)
    try:
        wait_until(lambda: server.text().count("ready: service") == 2, 180)
        heir = holder()
        assert heir != server.pid
        assert server.stop() == 0
        for _ in range(10):
            assert server.request("GET", "/", None, AUTH).status == 200
        assert holder() == heir
        wait_until(lambda: lock_of(tmp_path) == heir, 30)
        third = launch(config).launch()
        assert third.process is not None
        assert third.process.wait(120) == 2
        assert f"process {heir} serves" in third.text()
    finally:
        heir = holder() if pid_file.exists() else server.pid
        if not gone(heir):
            os.kill(heir, signal.SIGTERM)
            wait_until(lambda: gone(heir), 60)
    assert not pid_file.exists()
    assert not [p for p in Path("/dev/shm").iterdir() if f".twin.{heir}." in p.name]


def lock_of(folder: Path) -> int:
    text = (folder / "service" / "state" / "run" / "master.lock").read_text()
    return int(text.split()[0])
