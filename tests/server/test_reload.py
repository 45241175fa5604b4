"""Reloads under load, good and bad: real gunicorn, real signals, no request lost."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from live import ROOT, SHM, LiveServer, children, segments
from test_lifecycle import gone, wait_until
from test_models import metadata
from test_ranking import build
from traffic import Traffic

Launch = Callable[..., LiveServer]
ITEMS = ["item_0001", "item_0017", "nobody", "item_0034"]
BODY = build(ITEMS).SerializeToString()
SECONDS = 60.0


class Endless(tiny.Ranker):
    """Never answers."""

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        age = data["age.values"][:, 0]
        while bool((age == age).all()):
            age = age + 0
        return {"probs_ctr": age, "probs_cvr": age}


@dataclass
class Root:
    """A versions root and the service that follows it."""

    config: Path
    path: Path
    newest: int = 1

    @classmethod
    def write(cls, folder: Path, name: str, **overrides: Any) -> Root:
        config = tiny.write(folder, name, **overrides)
        root = cls(config, folder / "versions")
        root.path.mkdir()
        shutil.move(folder / "export", root.path / "1")
        root.change(lambda content: content.update(model_path="versions"))
        return root

    def change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads(self.config.read_text())
        edit(content)
        self.config.write_text(json.dumps(content))

    def publish(self, module: torch.nn.Module | None = None) -> Path:
        """The next version, complete from the moment at which it is there."""
        self.newest += 1
        draft = self.path / f"{self.newest}.tmp.1"
        shutil.copytree(self.path / "1", draft)
        if module is not None:
            torch.jit.script(module.eval()).save(str(draft / "scripted_model.pt"))
        return draft.rename(self.path / str(self.newest))

    @property
    def versions(self) -> list[str]:
        return [str(number) for number in range(1, self.newest + 1)]


def last_reload(server: LiveServer) -> dict[str, Any]:
    found: dict[str, Any] = metadata(server)["last_reload"]
    return found


def reload(server: LiveServer, number: int) -> dict[str, Any]:
    """The ``number``-th reload of a service, once it has ended."""
    os.kill(server.pid, signal.SIGHUP)
    return ended(server, number)


def ended(server: LiveServer, number: int) -> dict[str, Any]:
    wait_until(
        lambda: (last_reload(server) or {"number": 0})["number"] >= number, SECONDS
    )
    return last_reload(server)


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Root, LiveServer, Traffic]]:
    """A service under load that is offered one bad version after the other."""
    folder = tmp_path_factory.mktemp("candidates")
    root = Root.write(folder / "service", "picky")
    server = LiveServer(root.config, folder / "server.log").start()
    with Traffic(server, BODY, clients=3) as traffic:
        yield root, server, traffic
    traffic.check(root.versions)
    server.stop()


def cut(version: Path) -> None:
    script = version / "scripted_model.pt"
    script.write_bytes(script.read_bytes()[:-2000])


def refused(server: LiveServer, reason: str, *, strike: bool = False) -> None:
    """A reload that leaves version 1 and its workers alone, and says why."""
    workers = children(server.pid)
    before = segments(server)
    number = (last_reload(server) or {"number": 0})["number"] + 1
    os.kill(server.pid, signal.SIGHUP)
    if strike:
        wait_until(lambda: len(children(server.pid)) > len(workers), SECONDS)
        os.kill(max(set(children(server.pid)) - set(workers)), signal.SIGKILL)
    last = ended(server, number)
    assert last["outcome"] == "refused", last
    assert reason in last["reason"]
    assert last["version"] == "1"
    assert children(server.pid) == workers
    assert segments(server) == before
    assert f"reload {number}: refused, version 1 stays" in server.text()
    metrics = server.request("GET", "/metrics").body.decode()
    assert "procserver_last_reload_reason_info" in metrics
    assert f'procserver_reloads_total{{outcome="refused"}} {number}.0' in metrics


def test_a_model_that_never_answers_is_refused(
    served: tuple[Root, LiveServer, Traffic],
) -> None:
    root, server, _ = served
    kept = root.config.read_text()
    root.change(lambda content: content["procserver"].update(boot_seconds=4))
    version = root.publish(Endless())
    try:
        refused(server, "not ready in 4 s")
        assert "most recent call first" in server.text(), (
            "the stack of the hanging thread"
        )
    finally:
        shutil.rmtree(version)
        root.config.write_text(kept)


def test_a_killed_canary_means_refused(
    served: tuple[Root, LiveServer, Traffic],
) -> None:
    root, server, _ = served
    version = root.publish(Endless())
    try:
        refused(server, "died before it was ready", strike=True)
    finally:
        shutil.rmtree(version)


def test_a_follower_that_dies_takes_the_reload_back(
    served: tuple[Root, LiveServer, Traffic],
) -> None:
    root, server, traffic = served
    version = root.publish(tiny.Ranker())
    number = last_reload(server)["number"] + 1
    before = set(children(server.pid))
    held = segments(server)
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: f"reload {number}: version" in server.text(), SECONDS)
    told = f"reload {number}: version .* is good \\(worker (\\d+)"
    canary = int(re.findall(told, server.text())[0])
    wait_until(lambda: bool(set(children(server.pid)) - before - {canary}), SECONDS)
    [follower] = set(children(server.pid)) - before - {canary}
    os.kill(follower, signal.SIGKILL)
    # The canary serves the new version until an old worker has its place again.
    last = ended(server, number)
    assert last["outcome"] == "rolled_back"
    assert f"worker {follower} died" in last["reason"]
    assert last["version"] == "1"
    assert gone(canary)
    assert segments(server) == held
    switched = time.monotonic()
    time.sleep(0.3)
    assert traffic.versions(switched + 0.1) == {"1"}
    assert len(children(server.pid)) == 3
    assert "rolled back, version 1 stays" in server.text()
    shutil.rmtree(version)
    last = reload(server, number + 1)
    assert last["outcome"] == "done", "the same version again, which is allowed"


def test_an_early_signal_is_remembered(launch: Launch, tmp_path: Path) -> None:
    config = tiny.write(tmp_path / "service", "early")
    server = launch(config, workers=1).launch()
    wait_until(lambda: "service early" in server.text(), SECONDS)
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: "refresher started" in server.text(), SECONDS)
    os.kill(server.pid, signal.SIGHUP)
    server.wait_ready()
    assert ended(server, 1)["outcome"] == "done"
    server.stop()
    assert "reload 2" not in server.text()


def test_an_early_end_leaves_nothing(launch: Launch, tmp_path: Path) -> None:
    config = tiny.write(tmp_path / "service", "brief")
    server = launch(config).launch()
    wait_until(lambda: "refresher started" in server.text(), SECONDS)
    assert server.stop() == 0
    assert segments(server) == []


def test_an_end_does_not_wait_for_a_reload(launch: Launch, tmp_path: Path) -> None:
    root = Root.write(tmp_path / "service", "hurried")
    server = launch(root.config).start()
    before = len(children(server.pid))
    root.publish(Endless())
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: len(children(server.pid)) > before, SECONDS)
    time.sleep(1)
    family = children(server.pid)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 15, "a drain, not a boot deadline"
    assert all(gone(pid) for pid in family)


def test_a_new_fg_json_gets_its_features_ahead(launch: Launch, tmp_path: Path) -> None:
    root = Root.write(tmp_path / "service", "digest")
    server = launch(root.config, workers=1).start()
    [before] = [n for n in segments(server) if n.rpartition(".")[2].startswith("1-")]
    version = root.publish(tiny.Ranker())
    fg = json.loads((version / "fg.json").read_text())
    fg["features"][3]["default_value"] = "7"
    (version / "fg.json").write_text(json.dumps(fg))
    with Traffic(server, BODY, clients=2) as traffic:
        assert reload(server, 1)["outcome"] == "done"
    traffic.check(root.versions)
    wait_until(lambda: before not in segments(server))
    [after] = [n for n in segments(server) if n.rpartition(".")[2].startswith("1-")]
    assert after != before
    used = "3 of 9 features are taken from the cache"
    assert server.text().count(used) == 2
    # A refresher that is started again prepares for what is served now.
    (SHM / after).unlink()
    os.kill(min(children(server.pid)), signal.SIGKILL)
    wait_until(lambda: after in segments(server), SECONDS)
    assert before not in segments(server)
    server.stop()


class Table(torch.nn.Module):
    """25.6 MB of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(100_000, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids).sum(1)


def test_no_memory_for_new_weights_means_refused(
    launch: Launch, tmp_path: Path
) -> None:
    config = tiny.write_bypass(tmp_path / "service", "tight")
    script = tmp_path / "service" / "doubler.pt"
    torch.jit.script(Table().eval()).save(str(script))
    server = launch(config, workers=1).start()
    version = metadata(server)["model_version"]
    # What the kernel refuses to allocate on a full file system, it refuses here.
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))
    last = reload(server, 1)
    assert last["outcome"] == "refused"
    assert "no shared memory for the model's weights" in last["reason"]
    assert metadata(server)["model_version"] == version
    server.stop()


def test_workers_that_cannot_start_do_not_end_the_service(
    launch: Launch, tmp_path: Path
) -> None:
    config = tiny.write(tmp_path / "service", "stubborn")
    server = launch(config).start()
    features = tmp_path / "service" / "export" / "fg.json"
    kept = features.read_bytes()
    features.write_text("{")
    victim = max(children(server.pid))
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "the next one comes in 2 s" in server.text(), SECONDS)
    assert server.request("GET", "/v2/health/ready").status == 200
    features.write_bytes(kept)
    wait_until(lambda: len(children(server.pid)) == 3, SECONDS)
    wait_until(lambda: server.text().count("is ready") == 3, SECONDS)
    server.stop()


def command(server: LiveServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "procserver", "reload", *arguments],
        cwd=ROOT,
        env={**os.environ, "PROCSERVER_CONFIG": str(server.config)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_the_command_tells_the_outcome(launch: Launch, tmp_path: Path) -> None:
    root = Root.write(tmp_path / "service", "told")
    server = launch(root.config, workers=1)
    assert command(server, "--wait").returncode == 2
    server.start()
    run = tmp_path / "service" / "state" / "run"
    assert run.stat().st_mode & 0o777 == 0o700
    root.publish(tiny.Ranker())
    done = command(server, "--wait")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "reload 1: done, version 2\n"
    cut(root.publish())
    failed = command(server, "--wait", "--pid", str(server.pid))
    assert failed.returncode == 1
    assert "reload 2: refused, version 2 stays" in failed.stderr
    assert "scripted_model.pt" in failed.stderr
    assert command(server, "--config", str(root.config)).returncode == 0
    assert ended(server, 3)["outcome"] == "refused"
    server.stop()
    assert not (run / "master.pid").exists()
    gone_by_now = command(server, "--wait")
    assert gone_by_now.returncode == 2
    assert "no such service runs" in gone_by_now.stderr
