"""Captures of one start are what the next one warms up with."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tiny
from live import LiveServer

from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

sys.path.insert(0, str(Path(__file__).parent.parent / "lifecycle"))

import counting

Launch = Callable[..., LiveServer]
AUTH = {"Authorization": tiny.TOKEN}
COUNT = 6
ROUNDS = 5
SYNTHESIZED = 6


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def post(server: LiveServer, body: bytes) -> PBResponse:
    answer = server.request("POST", f"/api/predict/{server.name}", body, AUTH)
    assert answer.status == 200, answer.body
    return PBResponse.FromString(answer.body)


def captured(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pb"))


def write(folder: Path, name: str) -> Path:
    return counting.write(
        folder,
        name,
        token=tiny.TOKEN,
        model_config={
            "warmup_data_path": "captures",
            "warmup_pb_files_count": COUNT,
            "warmup_cnt_per_file": ROUNDS,
        },
    )


def test_captures_of_the_first_start_warm_up_the_second(
    launch: Launch, tmp_path: Path
) -> None:
    config = write(tmp_path / "service", "memory")
    folder = tmp_path / "service" / "captures"
    first = launch(config, workers=2).start()
    assert "and 0 recorded requests" in first.text()
    probe = counting.request("probe")
    for _ in range(20):
        post(first, probe)
    debugged = PBRequest.FromString(counting.request("debugged"))
    debugged.debug_level = 100
    first.request("POST", "/api/predict/memory", debugged.SerializeToString(), AUTH)
    refused = first.request("POST", "/api/predict/memory", b"\xff\xff", AUTH)
    assert refused.status == 400
    sent = {probe}
    number = 0

    def all_there() -> bool:
        nonlocal number
        number += 1
        body = counting.request(f"user {number}", (1.0,) * (number % 40 + 1))
        sent.add(body)
        post(first, body)
        return len(captured(folder)) == COUNT

    wait_until(all_there)
    for _ in range(20):
        all_there()
    first.stop()
    files = captured(folder)
    assert len(files) == COUNT, "of both workers together"
    bodies = {file.read_bytes() for file in files}
    assert len(bodies) == COUNT
    assert bodies <= sent
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}

    second = launch(config, workers=1).start()
    (line,) = re.findall(r"warmed up in .*", second.text())
    assert f"{SYNTHESIZED} synthesized and {COUNT * ROUNDS} recorded" in line
    assert f"{COUNT} replayed, 0 skipped, 0 failed" in line
    expected = SYNTHESIZED + COUNT * ROUNDS
    for live in (1, 2, 3):
        output = post(second, counting.request(f"live {live}")).map_outputs["calls"]
        assert list(output.float_val) == [expected + live] * 2
    second.stop()
    assert captured(folder) == files, "nothing is captured any more"
    assert {file.read_bytes() for file in files} == bodies


def test_an_item_cache_and_a_store_without_captures_yet(
    launch: Launch, tmp_path: Path
) -> None:
    config = tiny.write(
        tmp_path / "service",
        "cached",
        model_config={"warmup_data_path": "/warmup"},
        storage=[{"mount_path": "/warmup", "oss": {"path": f"file://{tmp_path}/no"}}],
    )
    env = {"PROCSERVER_ROOT": str(tmp_path / "root")}
    server = launch(config, workers=1, env=env).start()
    assert f"{SYNTHESIZED} synthesized" in server.text()
    assert "failed" not in server.text()
    assert "no captured requests to warm up with" in server.text()
    message = PBRequest(item_ids=["item_0001"])
    message.user_features["user_id"].string_feature = "u"
    post(server, message.SerializeToString())
    folder = tmp_path / "service" / "state" / "warmup"
    wait_until(lambda: bool(captured(folder)))
    server.stop()


def test_a_folder_of_garbage_delays_nothing(launch: Launch, tmp_path: Path) -> None:
    config = write(tmp_path / "service", "dump")
    folder = tmp_path / "service" / "captures"
    folder.mkdir()
    for i in range(2000):
        (folder / f"{i:04}.pb").write_bytes(b"\xff" * i)
    server = launch(config, workers=1).start()
    text = server.text()
    assert "0 replayed, 1941 skipped, 59 failed" in text
    assert "NOT ONE recorded request" in text
    assert text.count("warm-up:") < 15
    output = post(server, counting.request()).map_outputs["calls"]
    assert list(output.float_val) == [SYNTHESIZED + 1] * 2
    server.stop()
