"""Debug levels as the SDK sets them, and answers as it reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from live import LiveServer

Sdk = Callable[..., list[dict[str, Any]]]

ITEMS = ["item_0001", "nobody", "item_0002"]


def calls(server: LiveServer, *levels: int, **changes: Any) -> list[dict[str, Any]]:
    call = {
        "kind": "torchrec",
        "endpoint": server.url,
        "service": server.name,
        "token": tiny.TOKEN,
        "user": [["user_id", "u1", "STRING"], ["age", 12, "INT"]],
        "context": [["position", p, "INT"] for p in (1, 2, 3)],
        "items": ITEMS,
        "retries": 1,
    }
    return [{**call, "debug_level": level, **changes} for level in levels]


@pytest.fixture
def server(tmp_path: Path) -> Any:
    config = tiny.write(
        tmp_path, "sdkdebug", procserver={"pass_through_data": {"model": "a 模型"}}
    )
    running = LiveServer(config, tmp_path / "server.log", workers=1).start()
    yield running
    running.stop()


def test_every_level(server: LiveServer, sdk: Sdk) -> None:
    plain, inputs, both, table, saved, timed, absent = sdk(
        *calls(server, 0, 1, 2, 3, 100, 903, 904)
    )
    assert sorted(plain["scores"]) == ["probs_ctr", "probs_cvr"]
    assert plain["raw_features"] == plain["generate_features"] == {}
    assert plain["pass_through_data"] == {"model": "a 模型"}
    assert plain == saved == timed == absent
    assert inputs["scores"] == table["scores"] == {}
    assert both["scores"] == plain["scores"]
    for answer in (inputs, both):
        assert answer["raw_features"] == inputs["raw_features"]
        assert answer["generate_features"] == inputs["generate_features"]
        assert answer["items"] == ITEMS
    assert set(inputs["raw_features"]) == set(ITEMS)
    assert "age:12" in inputs["raw_features"]["item_0002"].split(" | ")
    assert "position:3" in inputs["generate_features"]["item_0002"].split(" | ")
    assert table["raw_features"] == {}
    for item, text in table["generate_features"].items():
        pairs = inputs["generate_features"][item].split(" | ")
        values = [pair.split(":", 1)[1] for pair in pairs]
        assert text.replace("\x03", ",").split("\x02") == values


def test_refusals(server: LiveServer, sdk: Sdk) -> None:
    (recall,) = sdk(*calls(server, 102))
    assert recall["status"] == 400
    assert "recall" in recall["text"]
    wrong = [["agee", 12, "INT"]]
    refused, accepted = sdk(*calls(server, 1, 0, user=wrong))
    assert refused["status"] == 400
    assert "user_features: 'agee'" in refused["text"]
    assert sorted(accepted["scores"]) == ["probs_ctr", "probs_cvr"]
