"""A killed service's item cache serves the next start; so does a kept one."""

from __future__ import annotations

import json
import mmap
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from live import SHM, LiveServer, children, segments
from test_ranking import build, post, scores

Launch = Callable[..., LiveServer]
ITEMS = ["item_0001", "item_0017", "nobody", "item_0034"]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def ask(server: LiveServer) -> tuple[int, dict[str, np.ndarray]]:
    """The cache generation of an answer, and the answer."""
    body = build(ITEMS).SerializeToString()
    answer = post(server, body, f"/api/predict/{server.name}")
    return int(answer.headers["x-cache-generation"]), scores(answer)


def kill(server: LiveServer) -> None:
    """kill -9 of the master; its children follow by themselves."""
    family = children(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    assert server.process is not None
    server.process.wait(30)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


def kept(name: str) -> list[Path]:
    return sorted(SHM.glob(f"procserver-kept.{name}.*"))


def test_a_killed_services_cache_serves_its_next_start(
    launch: Launch, tmp_path: Path
) -> None:
    config = tiny.write(tmp_path / "service", "heir")
    first = launch(config).start()
    number, before = ask(first)
    assert number == 1
    kill(first)
    assert len(segments(first)) > 3
    # Its source is away, so that only what was left can answer.
    items = tmp_path / "service" / "items.parquet"
    items.rename(tmp_path / "aside")
    second = launch(config).start()
    assert "item cache generation 1 taken over: 200 items" in second.text()
    assert segments(first) == []
    number, after = ask(second)
    assert number == 1
    for name, values in before.items():
        assert np.array_equal(values, after[name])
    # Features that were generated ahead came along.
    assert second.text().count("3 of 9 features are taken from the cache") == 2
    wait_until(lambda: "item cache build failed" in second.text())
    assert ask(second)[0] == 1
    second.stop()


def test_the_refresh_goes_on_behind_it(launch: Launch, tmp_path: Path) -> None:
    config = tiny.write(tmp_path / "service", "behind")
    first = launch(config).start()
    kill(first)
    second = launch(config).start()
    assert "item cache generation 1 taken over" in second.text()
    wait_until(lambda: ask(second)[0] == 2)
    second.stop()


def test_a_damaged_cache_is_built_anew(launch: Launch, tmp_path: Path) -> None:
    config = tiny.write(tmp_path / "service", "damaged")
    first = launch(config).start()
    _, before = ask(first)
    kill(first)
    path = SHM / f"procserver.{first.name}.{first.pid}.1"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    second = launch(config).start()
    assert "generation 1 cannot be used: generation 1: body is damaged" in second.text()
    number, after = ask(second)
    assert number == 2
    for name, values in before.items():
        assert np.array_equal(values, after[name])
    second.stop()


@pytest.fixture
def _nothing_kept() -> Iterator[None]:
    yield
    for path in kept("keeper"):
        path.unlink()


@pytest.mark.usefixtures("_nothing_kept")
def test_a_kept_cache_outlives_a_clean_stop(launch: Launch, tmp_path: Path) -> None:
    config = tiny.write(
        tmp_path / "service",
        "keeper",
        procserver={"keep_item_cache": True, "max_cache_age_seconds": 3},
    )
    first = launch(config).start()
    _, before = ask(first)
    first.stop()
    assert "4 segments of the item cache are kept for the next start" in first.text()
    assert len(kept("keeper")) == 4
    (tmp_path / "service" / "items.parquet").rename(tmp_path / "aside")
    second = launch(config).start()
    assert kept("keeper") == []
    number, after = ask(second)
    assert number == 1
    for name, values in before.items():
        assert np.array_equal(values, after[name])
    # Its age is that of its data, and a readiness check may mind it.
    wait_until(lambda: second.request("GET", "/v2/health/ready").status == 503)
    answer = second.request("GET", "/v2/health/ready")
    told = json.loads(answer.body)
    assert told["ready"] is False
    assert "max_cache_age_seconds (3)" in told["reason"]
    assert second.request("GET", "/v2/health/live").status == 200
    assert ask(second)[0] == 1
    # Another source's data would be wrong.
    content = json.loads(config.read_text())
    content["model_config"]["url"] = "others.parquet"
    content["procserver"]["max_cache_age_seconds"] = 1000
    config.write_text(json.dumps(content))
    rows = pa.Table.from_pylist([tiny.item(i) for i in range(5)])
    pq.write_table(rows, tmp_path / "service" / "others.parquet")
    second.stop()
    third = launch(config).start()
    assert "is not taken over: it was loaded from another source" in third.text()
    assert "5 items" in third.text()
    assert third.request("GET", "/v2/health/ready").status == 200
    third.stop()


def test_a_damaged_delta_is_not_taken_over(launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    config = tiny.write(folder, "bent", model_config={"stream": {"url": "log.jsonl"}})
    first = launch(config).start()
    _, before = ask(first)
    with (folder / "log.jsonl").open("a") as file:
        for price in range(3):
            file.write(json.dumps({"item_id": "item_0001", "price": price + 70}) + "\n")

    def changed() -> bool:
        return not np.array_equal(ask(first)[1]["probs_ctr"], before["probs_ctr"])

    wait_until(changed)
    kill(first)
    path = SHM / f"procserver.{first.name}.{first.pid}.1-delta"
    text = b"item_0001"
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        # In the heap, where the id is: no header tells of it.
        place = memory.rfind(text, 0, 64 << 20)
        if place < 0:
            place = memory.find(text)
        assert place > 0
        memory[place] ^= 1
    second = launch(config).start()
    assert "generation 1 taken over" in second.text()
    told = "generation 1 cannot be used: generation 1: its delta is damaged"
    assert told in second.text()
    number, after = ask(second)
    assert number == 2
    for name, values in before.items():
        assert np.array_equal(values, after[name])
    second.stop()
