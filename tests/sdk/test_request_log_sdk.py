"""The request log of a live service, read by the SDK's own messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from live import LiveServer
from test_ranking import build

ITEMS = ["item_0001", "nobody", "item_0002"]


def test_the_sdk_reads_what_is_saved(
    tmp_path: Path, sdk_reads: Callable[[Path], dict[str, Any]]
) -> None:
    config = tiny.write(
        tmp_path, "sdklog", model_config={"request_log_path": str(tmp_path / "log")}
    )
    server = LiveServer(config, tmp_path / "server.log", workers=1).start()
    try:
        request = build(ITEMS)
        request.debug_level = 100
        request.meta_data["request_id"] = "请求-17"
        answer = server.request(
            "POST",
            "/api/predict/sdklog",
            request.SerializeToString(),
            {"Authorization": tiny.TOKEN},
        )
        assert answer.status == 200
        deadline = time.monotonic() + 30
        while not (found := list((tmp_path / "log").rglob("*.pb"))):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        server.stop()
    entry = sdk_reads(found[0])
    assert (entry["request_id"], entry["debug_level"]) == ("请求-17", 100)
    assert entry["item_ids"] == ITEMS
    assert entry["age"] == 44
    price = tiny.item(1)["price"]
    assert f"price:{price}" in entry["raw_features"]["item_0001"].split(" | ")
    assert set(entry["generate_features"]) == set(ITEMS)
    assert "position:1" in entry["generate_features"]["nobody"].split(" | ")
