"""``procserver demo --live``: a real server, its changes and its end."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "stores"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server"))

import servers
from live import children, free_port

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240.0
REDIS = servers.redis_program()


@pytest.fixture
def own(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo, into which the command writes."""
    return Path(shutil.copytree(demo, tmp_path / "demo"))


@contextmanager
def running(
    own: Path, options: Sequence[str], redis: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """The command; its output goes to ``own/out``. It is ended by SIGTERM."""
    environ = {
        **os.environ,
        "PROCSERVER_REDIS": redis,
        "PROCSERVER_STATE": str(own / "state"),
        "GUNICORN_CMD_ARGS": "-w 1",
    }
    with (own / "out").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "procserver", "demo", "--live", *options, str(own)],
            cwd=ROOT,
            env=environ,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(SECONDS)


def at_once(options: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The command where it starts nothing."""
    return subprocess.run(
        [sys.executable, "-m", "procserver", "demo", "--live", *options],
        cwd=ROOT,
        env={**os.environ, "PROCSERVER_REDIS": ""},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def text(own: Path) -> str:
    return (own / "out").read_text(errors="replace")


def until_text(own: Path, wanted: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS
    while wanted not in text(own):
        assert process.poll() is None, text(own)
        assert time.monotonic() < deadline, text(own)
        time.sleep(0.05)


def check_all_seen(own: Path) -> None:
    made, seen = text(own).splitlines()[-1].split(":")[0].split(", ")
    assert int(made.split()[0]) == int(seen.split()[0]) > 0, text(own)
    assert "not seen" not in text(own)
    assert text(own).count(" ms\n") == int(made.split()[0]) + 1


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_prices_change_and_scores_follow(own: Path, kind: str) -> None:
    has_redis = REDIS is not None and importlib.util.find_spec("redis") is not None
    if kind == "redis" and not has_redis:
        pytest.skip("no redis-server: `make test` installs one")
    program = str(REDIS) if kind == "redis" else ""
    options = ["--seconds", "3", "--port", str(free_port())]
    with running(own, options, program) as process:
        assert process.wait(SECONDS) == 0, text(own)
    check_all_seen(own)
    stream = json.loads((own / "live.json").read_text())["model_config"]["stream"]
    if kind == "redis":
        socket = stream["url"].removeprefix("unix://")
        assert not Path(socket).parent.exists()
    else:
        assert stream == {"url": "changes.jsonl"}
        lines = (own / "changes.jsonl").read_text().splitlines()
        assert set(json.loads(lines[0])) == {"item_id", "price"}


def test_a_second_one_watches_and_a_signal_ends_the_first(own: Path) -> None:
    port = str(free_port())
    with running(own, ["--port", port]) as first:
        until_text(own, " ms\n", first)
        started = children(first.pid)
        refused = at_once(["--port", port, str(own)])
        assert refused.returncode == 1
        assert f"127.0.0.1:{port} is taken" in refused.stderr
        url = f"http://127.0.0.1:{port}"
        watched = at_once(["--url", url, "--seconds", "1", str(own)])
        assert watched.returncode == 0, watched.stderr
        assert "seen: median" in watched.stdout
        first.send_signal(signal.SIGINT)
        assert first.wait(SECONDS) == 0, text(own)
    check_all_seen(own)
    assert len(started) == 1
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


def test_what_a_person_is_told(own: Path) -> None:
    options = ["--url", f"http://127.0.0.1:{free_port()}"]
    for line in ("live.json does not exist", "no server at"):
        with running(own, options) as process:
            assert process.wait(SECONDS) == 1
        assert line in text(own)
        shutil.copy(own / "service.json", own / "live.json")
        document = json.loads((own / "live.json").read_text())
        document["model_config"]["stream"] = {"url": "changes.jsonl"}
        (own / "live.json").write_text(json.dumps(document))
