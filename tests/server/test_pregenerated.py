"""A live service with features generated ahead, and the same one without."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tiny
from live import SHM, LiveServer, children, segments
from test_ranking import build, forward, post, scores

from procserver.wire.pb.torchrec_predict_pb2 import PBRequest

Launch = Callable[..., LiveServer]
ITEMS = ["item_0001", "item_0017", "nobody", "item_0034", "item_0001", "item_0199"]
USED = "3 of 9 features are taken from the cache"


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def bodies() -> list[bytes]:
    """Requests of all sorts: plain, with item features of their own, repeated."""
    plain = build(ITEMS)
    own = build(ITEMS)
    for i in range(len(ITEMS)):
        feature = own.item_features["price"].features.add()
        feature.double_feature = i / 3
    other = build(ITEMS)
    other.item_features["weather"].features.add().string_feature = "rain"
    many = build([f"item_{i:04d}" for i in range(tiny.ITEMS)])
    requests: list[PBRequest] = [plain, own, other, many]
    return [request.SerializeToString() for request in requests]


def answers(server: LiveServer) -> list[dict[str, np.ndarray]]:
    path = f"/api/predict/{server.name}"
    return [scores(post(server, body, path)) for body in bodies()]


def test_scores_with_and_without_are_equal_bit_for_bit(
    launch: Launch, tmp_path: Path
) -> None:
    server = launch(tiny.write(tmp_path / "service", "ahead")).start()
    refresher, *workers = children(server.pid)
    assert "3 features generated ahead" in server.text()
    assert server.text().count(USED) == 2
    ahead = answers(server)
    known = [item for item in ITEMS if item != "nobody"]
    body = build(known).SerializeToString()
    ours = scores(post(server, body, "/api/predict/ahead"))
    theirs = forward(server, known, list(range(len(known))))
    for name, values in theirs.items():
        assert np.array_equal(ours[name], values)
    [companion] = [n for n in cache_segments(server) if "-" in n]
    (SHM / companion).unlink()
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    # New workers do not find it, and generate everything themselves.
    wait_until(
        lambda: (
            len(children(server.pid)) == 3
            and not set(workers) & set(children(server.pid))
            and server.text().count("warmed up") == 4
        )
    )
    assert server.text().count(USED) == 2
    assert refresher in children(server.pid)
    for one, other in zip(ahead, answers(server), strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            assert values.tobytes() == other[name].tobytes()
    server.stop()


def cache_segments(server: LiveServer) -> list[str]:
    """The item cache's segments: control, generation, companion."""
    ours = re.compile(r"\.(control|\d+(-\w+)?)$")
    return [name for name in segments(server) if ours.search(name)]


def test_the_next_refresher_makes_what_is_missing_and_keeps_the_rest(
    launch: Launch, tmp_path: Path
) -> None:
    server = launch(tiny.write(tmp_path / "service", "again")).start()
    before = answers(server)
    first = cache_segments(server)
    assert len(first) == 3
    os.kill(min(children(server.pid)), signal.SIGKILL)
    wait_until(lambda: server.text().count("goes on from there") == 1)
    assert cache_segments(server) == first
    [companion] = [name for name in first if "-" in name]
    (SHM / companion).unlink()
    os.kill(refresher_of(server), signal.SIGKILL)
    wait_until(lambda: server.text().count("goes on from there") == 2)
    assert cache_segments(server) == first
    for one, other in zip(before, answers(server), strict=True):
        for name, values in one.items():
            assert values.tobytes() == other[name].tobytes()
    server.stop()


def refresher_of(server: LiveServer) -> int:
    """The refresher that was started last."""
    text = server.text()
    return int(text.rpartition("refresher started (pid ")[2].split(")")[0])


def test_an_export_that_cannot_be_read_is_told_once_by_each(
    launch: Launch, tmp_path: Path
) -> None:
    config = tiny.write(tmp_path / "service", "unread")
    (tmp_path / "service" / "export" / "fg.json").write_text('{"features": [{}]}')
    server = launch(config).launch()
    assert server.process is not None
    assert server.process.wait(60) == 3
    assert "no features are generated ahead: fg.json" in server.text()
    assert "Traceback (most" not in server.text()
    assert segments(server) == []
