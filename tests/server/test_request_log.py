"""Level 100 and slow requests of live services: what is on disk and in the log."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from live import LiveServer
from test_metrics import eventually, grown, scrape
from test_ranking import build, post, scores

from procserver.wire.pb import torch_predict_pb2
from procserver.wire.pb.torchrec_predict_pb2 import PBLogData

ITEMS = ["item_0001", "nobody", "item_0017", "item_0001"]
SAVED = 100


def saved(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.pb"))


def read(path: Path) -> PBLogData:
    return PBLogData.FromString(path.read_bytes())


def logged_request(request_id: str | None = "r-1", level: int = SAVED) -> bytes:
    request = build(ITEMS)
    request.debug_level = level
    if request_id is not None:
        request.meta_data["request_id"] = request_id
    return request.SerializeToString()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("logging")
    config = tiny.write(
        folder,
        "logging",
        model_config={
            "request_log_path": str(folder / "log"),
            "long_request_threshold": 0,
            "save_long_request": True,
        },
    )
    server = LiveServer(config, folder / "server.log", workers=1).start()
    yield server
    server.stop()


@pytest.fixture
def logging(service: LiveServer) -> LiveServer:
    """The service with nothing saved yet."""
    for path in service.config.parent.rglob("*.pb"):
        path.unlink()
    return service


def folders(server: LiveServer) -> tuple[Path, Path]:
    """(request log, slow requests)"""
    root = server.config.parent
    return root / "log", root / "export" / "torch_req"


def send(server: LiveServer, body: bytes):
    return post(server, body, f"/api/predict/{server.name}")


def test_requests_of_level_100_are_saved_with_their_features(
    logging: LiveServer,
) -> None:
    log, _ = folders(logging)
    before = scrape(logging)
    plain = send(logging, logged_request(level=0))
    answer = send(logging, logged_request())
    assert answer.status == 200
    assert answer.body == plain.body
    eventually(lambda: len(saved(log)) == 1)
    (path,) = saved(log)
    assert re.fullmatch(r"\d{8}_\d{2}", path.parent.name)
    assert path.parent.parent == log
    assert re.fullmatch(r"r-1_[0-9a-f]{16}\.pb", path.name)
    assert path.stat().st_mode & 0o007 == 0
    entry = read(path)
    assert entry.request.SerializeToString(
        deterministic=True
    ) == entry.request.FromString(logged_request()).SerializeToString(
        deterministic=True
    )
    assert set(entry.raw_features) == set(ITEMS)
    row = tiny.item(1)
    vector = ",".join(map(str, row["vector"]))
    # The last context value of a repeated id is the one that is kept.
    assert entry.raw_features["item_0001"].split(" | ") == [
        f"category:{row['category']}",
        f"price:{row['price']}",
        f"vector:{vector}",
        "position:3",
    ]
    assert entry.raw_features["nobody"] == "category: | price: | vector: | position:1"
    made = dict(
        pair.split(":", 1) for pair in entry.generate_features["item_0001"].split(" | ")
    )
    assert set(made) == {"category", "price", "vector", "position", "city_x_category"}
    assert made["category"] == str(2 + tiny.CATEGORIES.index(row["category"]))
    assert made["position"] == "3"
    assert made["price"] == "0.14285715"
    assert set(entry.generate_features) == set(ITEMS)
    changes = grown(before, scrape(logging))
    assert changes["slow_requests_total{}"] == 2


@pytest.mark.parametrize(
    "request_id",
    [
        None,
        "../../../outside",
        "/etc/outside",
        "a/b\\c",
        "x" * 5000,
        "请求-🦊",
        "..",
        ".hidden",
        "nul\0new\nline",
        "%2e%2e%2f",
    ],
)
def test_hostile_request_ids_stay_in_the_folder(
    logging: LiveServer, request_id: str | None
) -> None:
    log, slow = folders(logging)
    root = logging.config.parent.parent
    others = {path for path in root.rglob("*") if log not in path.parents}
    assert send(logging, logged_request(request_id)).status == 200
    eventually(lambda: len(saved(log)) == 1)
    (path,) = saved(log)
    assert len(path.relative_to(log).parts) == 2
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}\.pb", path.name)
    assert read(path).request.meta_data.get("request_id") == request_id
    now = {path for path in root.rglob("*") if log not in path.parents}
    new = {path for path in now - others if path.suffix == ".pb"}
    assert {path.parent for path in new} <= {slow}
    assert not list(Path("/").glob("outside*"))


def test_slow_requests_are_one_line_and_a_file(
    logging: LiveServer,
) -> None:
    log, folder = folders(logging)
    text = logging.text()
    body = logged_request('evil"\n{"x": 1}\x1b[31m', level=0)
    assert send(logging, body).status == 200
    lines = [
        line
        for line in logging.text()[len(text) :].splitlines()
        if "slow request" in line
    ]
    assert len(lines) == 1
    entry = json.loads(lines[0].partition("slow request ")[2])
    assert entry["request_id"] == 'evil"\n{"x": 1}\x1b[31m'
    assert "\x1b" not in lines[0]
    assert (entry["items"], entry["missing"], entry["bytes"]) == (4, 1, len(body))
    times = entry["ms"]
    assert list(times) == [
        *("total", "receive", "queue", "decode", "gather", "generate", "run", "encode"),
    ]
    assert all(value >= 0 for value in times.values())
    assert sum(times.values()) - times["total"] <= times["total"] + 0.01
    eventually(lambda: len(saved(folder)) == 1)
    assert saved(folder)[0].read_bytes() == body
    assert saved(log) == []


def test_requests_that_fail_are_slow_requests_too(
    logging: LiveServer,
) -> None:
    assert send(logging, b"\xff\xff\xff").status == 400
    _, folder = folders(logging)
    eventually(lambda: len(saved(folder)) == 1)
    assert saved(folder)[0].read_bytes() == b"\xff\xff\xff"


def test_a_log_that_cannot_be_written_costs_no_request(
    tmp_path: Path, launch: Callable[..., LiveServer]
) -> None:
    (tmp_path / "file").write_text("in the way")
    config = tiny.write(
        tmp_path / "service",
        "unwritable",
        model_config={"request_log_path": str(tmp_path / "file" / "log")},
    )
    server = launch(config, workers=1).start()
    expected = scores(send(server, logged_request(level=0)))
    for _ in range(3):
        answer = scores(send(server, logged_request()))
        assert answer["probs_ctr"].tolist() == expected["probs_ctr"].tolist()
    eventually(lambda: scrape(server)["log_entries_total{outcome=failed}"] == 3)
    assert server.text().count("a request was not saved") == 1
    server.stop()


def test_without_a_token_nothing_of_people_is_saved(
    tmp_path: Path, launch: Callable[..., LiveServer]
) -> None:
    server = launch(tiny.write(tmp_path, "open", token=None), workers=1).start()
    answer = server.request("POST", "/api/predict/open", logged_request())
    assert answer.status in (200, 400)
    server.stop()
    assert saved(tmp_path) == []


def test_the_default_place_and_bypass_requests(
    tmp_path: Path, launch: Callable[..., LiveServer]
) -> None:
    server = launch(tiny.write_bypass(tmp_path, "bare-log"), workers=1).start()
    request = torch_predict_pb2.PredictRequest(debug_level=SAVED)
    for shape, values in (([2, 3], [1] * 6), ([2], [2, 3])):
        array = request.inputs.add(dtype=torch_predict_pb2.DT_FLOAT)
        array.array_shape.dim.extend(shape)
        array.float_val.extend(values)
    body = request.SerializeToString()
    answer = server.request(
        "POST", "/api/predict/bare-log", body, {"Authorization": tiny.TOKEN}
    )
    assert answer.status == 200
    # What is queued when a worker ends is written.
    server.stop()
    (path,) = saved(tmp_path / "state" / "request_log")
    assert path.name.startswith("request_")
    assert path.read_bytes() == body
    assert time.strftime("%Y%m%d") in path.parent.name
