"""Items of which nothing is heard any more are unknown, in a running service."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import tiny
from live import LiveServer
from test_cache_command import run
from test_lifecycle import wait_until
from test_metrics import scrape

from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

EXPIRED = "cache_changes_total{outcome=expired}"


def scores(server: LiveServer) -> list[float]:
    request = PBRequest(item_ids=["item_0001", "item_0034"])
    request.user_features["user_id"].string_feature = "u001d"
    body = request.SerializeToString()
    headers = {"Authorization": tiny.TOKEN}
    answer = server.request("POST", f"/api/predict/{server.name}", body, headers)
    assert answer.status == 200, answer.body
    return list(PBResponse.FromString(answer.body).map_outputs["probs_ctr"].float_val)


def test_only_what_is_heard_of_stays(tmp_path: Path) -> None:
    config = tiny.write(
        tmp_path,
        "heard",
        # Three seconds.
        model_config={"stream": {"url": "changes.jsonl"}, "item_ttl": 0.05},
    )
    server = LiveServer(config, tmp_path / "server.log", workers=1)
    quiet = threading.Event()

    def change(item: str, price: float) -> None:
        with (config.parent / "changes.jsonl").open("a") as file:
            file.write(json.dumps({"item_id": item, "price": price}) + "\n")

    def go_on() -> None:
        price = 1.0
        while not quiet.wait(0.2):
            change("item_0001", price)
            price += 1

    def comes_back(item: str) -> bool:
        # NOTE: again and again, since it stays for three seconds only.
        change(item, 5.0)
        return scores(server)[1] != -1

    def told(item: str) -> str:
        return run("get", item, str(config)).stdout

    writer = threading.Thread(target=go_on)
    try:
        server.start()
        writer.start()
        wait_until(lambda: scores(server)[1] == -1, 60)
        wait_until(lambda: scores(server)[0] != -1, 60)
        wait_until(lambda: scrape(server)[EXPIRED] >= tiny.ITEMS - 1, 60)
        wait_until(lambda: "procserver_time" in told("item_0001"), 60)
        quiet.set()
        wait_until(lambda: scores(server) == [-1, -1], 60)
        wait_until(lambda: comes_back("item_0034"), 60)
        wait_until(lambda: scores(server)[1] == -1, 60)
    except BaseException:
        server.stop(expect_clean=False)
        raise
    finally:
        quiet.set()
        writer.join()
    server.stop()
