"""One copy of the weights for all workers: real gunicorn, real signals."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from live import SHM, LiveServer, children, segments
from test_lifecycle import gone, wait_until

from procserver.wire.pb import torch_predict_pb2 as wire

Launch = Callable[..., LiveServer]
AUTH = {"Authorization": tiny.TOKEN}
ROWS = 100_000
WIDTH = 64
MEGABYTES = ROWS * WIDTH * 4 / 1e6


class Table(torch.nn.Module):
    """25.6 MB of embeddings and a buffer that every forward writes to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.table = torch.nn.Embedding(ROWS, WIDTH)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.table(ids).sum(1)


def write(
    folder: Path, name: str, model: torch.nn.Module | None = None, **host: object
):
    """A bypass service of that model; returns its JSON."""
    config = tiny.write_bypass(
        folder, name, procserver={"state_dir": "state", "pin_cores": False, **host}
    )
    torch.jit.script((model or Table()).eval()).save(str(folder / "doubler.pt"))
    return config


def scores(server: LiveServer, ids: np.ndarray) -> np.ndarray:
    request = wire.PredictRequest()
    array = request.inputs.add()
    array.dtype = wire.DT_INT64
    array.array_shape.dim.append(len(ids))
    array.int64_val.extend(ids.tolist())
    path = f"/api/predict/{server.name}"
    answer = server.request("POST", path, request.SerializeToString(), AUTH)
    assert answer.status == 200, answer.body
    response = wire.PredictResponse.FromString(answer.body)
    return np.array(response.outputs[0].float_val, np.float32)


def expected(ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return torch.jit.script(Table().eval())(torch.from_numpy(ids)).numpy()


def mapped(pid: int, segment: str) -> dict[str, int]:
    """kB of each smaps field over the maps of a segment in a process."""
    found: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = segment in line
        elif inside and line.endswith(" kB"):
            field, value = line.split(":")
            found[field] = found.get(field, 0) + int(value.split()[0])
    return found


def weights(server: LiveServer) -> list[str]:
    return [name for name in segments(server) if ".weights-" in name]


def attached(server: LiveServer) -> int:
    return server.text().count("attached to shared weights")


def test_three_workers_map_one_segment(launch: Launch, tmp_path: Path) -> None:
    server = launch(write(tmp_path / "service", "onecopy"), workers=3).start()
    (segment,) = weights(server)
    assert f".{server.pid}." in segment, "the master owns it"
    assert (SHM / segment).stat().st_mode & 0o777 == 0o600
    assert segment not in Path(f"/proc/{server.pid}/maps").read_text()
    ids = np.random.default_rng(1).integers(0, ROWS, 4000)
    want = expected(ids)
    for _ in range(30):
        np.testing.assert_array_equal(scores(server, ids), want)
    pids = children(server.pid)
    assert len(pids) == 3
    for pid in pids:
        found = mapped(pid, segment)
        assert found["Size"] * 1024 > ROWS * WIDTH * 4
        assert found["Private_Dirty"] < 100, "only what forwards write to"
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        private = re.findall(r"^Private_Dirty:\s+(\d+)", rollup, re.MULTILINE)
        assert sum(map(int, private)) * 1024 / 1e6 < 400
    total = sum(mapped(pid, segment)["Pss"] for pid in pids) * 1024 / 1e6
    assert total < 1.1 * MEGABYTES, "a page counts once for all that map it"
    text = server.text()
    assert text.count("loaded on cpu") == 1, "one worker reads the archive"
    assert attached(server) == 3
    server.stop()


def test_a_killed_worker_attaches_again(launch: Launch, tmp_path: Path) -> None:
    server = launch(write(tmp_path / "service", "again"), workers=2).start()
    segment = weights(server)
    for victim in list(children(server.pid)):
        before = attached(server)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda before=before: attached(server) > before, 30)
    assert server.text().count("loaded on cpu") == 1
    assert weights(server) == segment
    wait_until(lambda: len(children(server.pid)) == 2, 30)
    ids = np.arange(50)
    np.testing.assert_array_equal(scores(server, ids), expected(ids))
    server.stop()


def test_more_workers_on_demand_attach_too(launch: Launch, tmp_path: Path) -> None:
    server = launch(write(tmp_path / "service", "grow"), workers=1).start()
    for count in (2, 3):
        os.kill(server.pid, signal.SIGTTIN)
        wait_until(lambda count=count: server.text().count("is ready") == count, 30)
    assert attached(server) == 3
    assert server.text().count("loaded on cpu") == 1
    server.stop()


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_a_lost_segment_costs_a_copy_and_a_warning(
    launch: Launch, tmp_path: Path, harm: str
) -> None:
    server = launch(write(tmp_path / "service", f"lost{harm}"), workers=1).start()
    path = SHM / weights(server)[0]
    if harm == "gone":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.seek(200)
            file.write(b"\xff" * 8)
    ids = np.arange(50)
    np.testing.assert_array_equal(scores(server, ids), expected(ids))
    (victim,) = children(server.pid)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: server.text().count("is ready") == 2, 30)
    assert server.text().count("has a copy of its own") == 1
    np.testing.assert_array_equal(scores(server, ids), expected(ids))
    server.stop()


def test_a_model_that_cannot_be_shared_is_served(
    launch: Launch, tmp_path: Path
) -> None:
    config = write(tmp_path / "service", "frozen")
    frozen = torch.jit.freeze(torch.jit.script(tiny_tower().eval()))
    frozen.save(str(tmp_path / "service" / "doubler.pt"))
    server = launch(config, workers=3).start()
    assert weights(server) == []
    assert server.text().count("weights are not shared") == 1
    assert "keeps its weights as constants" in server.text()
    assert server.text().count("loaded on cpu") == 3
    server.stop()


def tiny_tower() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())


def test_sharing_can_be_switched_off(launch: Launch, tmp_path: Path) -> None:
    config = write(tmp_path / "service", "apart", share_weights=False)
    server = launch(config, workers=2).start()
    assert weights(server) == []
    assert server.text().count("loaded on cpu") == 2
    assert "WARNING" not in server.text()
    server.stop()


def test_features_decide_that_shared_scores_are_the_same(
    launch: Launch, tmp_path: Path
) -> None:
    server = launch(tiny.write(tmp_path / "service", "proven"), workers=2).start()
    assert len(weights(server)) == 1
    assert "no forward pass" not in server.text()
    server.stop()


class Slow(torch.nn.Module):
    """Takes its time to load: the canary can be caught at it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight = state[0]
        self.training = state[1]
        total = 0
        for i in range(2_000_000_000):
            total += i % 7
        assert total >= 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


def only_worker(server: LiveServer) -> int:
    def there() -> bool:
        return len(children(server.pid)) == 1

    wait_until(there, 60)
    return children(server.pid)[0]


def test_a_canary_that_dies_ends_the_service_with_status_3(
    launch: Launch, tmp_path: Path
) -> None:
    server = launch(write(tmp_path / "service", "bird", Slow()), workers=3).launch()
    canary = only_worker(server)
    wait_until(lambda: "Booting worker" in server.text(), 10)
    time.sleep(0.5)
    assert children(server.pid) == [canary], "the others wait for it"
    os.kill(canary, signal.SIGKILL)
    assert server.process is not None
    assert server.process.wait(30) == 3
    text = server.text()
    assert text.count("the first worker died while it loaded the model") == 1
    assert "Traceback (most" not in text
    assert segments(server) == []


def test_a_service_that_is_stopped_while_its_canary_loads(
    launch: Launch, tmp_path: Path
) -> None:
    server = launch(write(tmp_path / "service", "early", Slow()), workers=2).launch()
    canary = only_worker(server)
    wait_until(lambda: "Booting worker" in server.text(), 10)
    time.sleep(0.2)
    os.kill(server.pid, signal.SIGTERM)
    # It cannot hear the signal while TorchScript runs, and is not waited for.
    assert server.process is not None
    assert server.process.wait(60) == 0, server.text()
    assert gone(canary)
    assert "Traceback (most" not in server.text()
    assert segments(server) == []


def test_a_killed_master_leaves_weights_that_the_next_removes(
    launch: Launch, tmp_path: Path
) -> None:
    config = write(tmp_path / "service", "heir")
    server = launch(config).start()
    family = children(server.pid)
    assert len(weights(server)) == 1
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: all(gone(pid) for pid in family), 5)
    heir = launch(config).start()
    assert weights(server) == []
    assert heir.stop() == 0
