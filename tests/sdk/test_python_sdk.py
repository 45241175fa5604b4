"""The EAS Python SDK against real services."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
from live import LiveServer

Sdk = Callable[..., list[dict[str, Any]]]

USER = [
    ["user_id", "u001d", "STRING"],
    ["age", 12, "INT"],
    ["city", "杭州", "STRING"],
    ["weight", 129.8, "FLOAT"],
    ["clicks", ["item_0003", "item_0004"], "list<string>"],
    ["raw_3", [0.24689289764507472, 0.005758482924454689], "list<double>"],
    ["map_1", {"0": 0.37845234405201145}, "map<int,float>"],
    ["map_2", {"866": 4143, "1627": 2451}, "map<int,int>"],
    ["nested", [[0.94433516, 0.49145547], [0.94433516]], "list<list<float>>"],
    ["nothing", [], "list<int>"],
]


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("sdk-ranking")
    server = LiveServer(tiny.write(folder, "sdkrank"), folder / "server.log").start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bypass(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("sdk-bypass")
    config = tiny.write_bypass(folder, "sdkbare")
    server = LiveServer(config, folder / "server.log", workers=1).start()
    yield server
    server.stop()


def ranked(server: LiveServer, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "torchrec",
        "endpoint": server.url,
        "service": "sdkrank",
        "token": tiny.TOKEN,
        "user": USER,
        "items": ["item_0001", "nobody", "item_0002"],
        **changes,
    }


def test_the_vendor_example_returns_scores(ranking: LiveServer, sdk: Sdk) -> None:
    first, again = sdk(ranked(ranking), ranked(ranking))
    assert first["items"] == ["item_0001", "nobody", "item_0002"]
    assert sorted(first["scores"]) == ["probs_ctr", "probs_cvr"]
    for values in first["scores"].values():
        assert values[1] == -1
        assert 0 < values[0] < 1
        assert values[0] != values[2]
    assert first == again


def test_context_features_reach_the_model(ranking: LiveServer, sdk: Sdk) -> None:
    low, high, surplus = sdk(
        ranked(ranking, context=[["position", p, "INT"] for p in (1, 1, 1)]),
        ranked(ranking, context=[["position", p, "INT"] for p in (7, 7, 7)]),
        ranked(ranking, context=[["position", p, "INT"] for p in (7, 7, 7, 1)]),
    )
    assert low["scores"]["probs_ctr"][0] != high["scores"]["probs_ctr"][0]
    assert high == surplus


def test_what_the_sdk_makes_of_refusals(ranking: LiveServer, sdk: Sdk) -> None:
    wrong, elsewhere, short = sdk(
        ranked(ranking, token="wrong"),
        ranked(ranking, service="nosuch"),
        ranked(ranking, context=[["position", p, "INT"] for p in (1, 1)]),
    )
    assert wrong["status"] == 401
    assert elsewhere["status"] == 404
    assert short["status"] == 400
    assert "2 values for 3 items" in short["text"]


def test_tensors(bypass: LiveServer, sdk: Sdk) -> None:
    call = {
        "kind": "torch",
        "endpoint": bypass.url,
        "service": "sdkbare",
        "token": tiny.TOKEN,
        "inputs": [[[3, 2], "DT_INT64", 4], [[3], "DT_FLOAT", 0.5]],
    }
    integers = {**call, "inputs": [[[3, 2], "DT_INT8", -4], call["inputs"][1]]}
    plain, fetched, small, refused = sdk(
        call,
        {**call, "fetch": [0]},
        integers,
        {**call, "inputs": call["inputs"][:1]},
    )
    assert plain["outputs"] == fetched["outputs"] == [[9.0] * 3]
    assert small["outputs"] == [[-7.0] * 3]
    assert refused["status"] == 400
    assert "takes 2 tensors, got 1" in refused["text"]
