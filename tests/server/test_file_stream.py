"""A file of changes beside Parquet items, in a running service."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import tiny
from live import LiveServer
from test_lifecycle import wait_until

from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse


def scores(server: LiveServer) -> list[float]:
    request = PBRequest(item_ids=["item_0001", "item_0034"])
    request.user_features["user_id"].string_feature = "u001d"
    body = request.SerializeToString()
    headers = {"Authorization": tiny.TOKEN}
    answer = server.request("POST", "/api/predict/appended", body, headers)
    assert answer.status == 200, answer.body
    return list(PBResponse.FromString(answer.body).map_outputs["probs_ctr"].float_val)


def test_scores_follow_the_file_also_after_the_refresher_was_killed(
    tmp_path: Path,
) -> None:
    config = tiny.write(
        tmp_path, "appended", model_config={"stream": {"url": "changes.jsonl"}}
    )
    server = LiveServer(config, tmp_path / "server.log", workers=1)

    def change(**fields: object) -> None:
        with (config.parent / "changes.jsonl").open("a") as file:
            file.write(json.dumps(fields) + "\n")

    try:
        server.start()
        first, other = scores(server)
        change(item_id="item_0001", price=77.5)
        wait_until(lambda: scores(server)[0] != first, 60)
        second = scores(server)[0]
        pid = server.text().rpartition("refresher started (pid ")[2].split(")")[0]
        os.kill(int(pid), signal.SIGKILL)
        change(item_id="item_0001", price=99.5)
        wait_until(lambda: scores(server)[0] != second, 60)
        wait_until(lambda: "1 changes taken over, goes on" in server.text(), 60)
        assert scores(server)[1] == other
        change(item_id="item_0034", _op="delete")
        wait_until(lambda: scores(server)[1] == -1, 60)
    except BaseException:
        server.stop(expect_clean=False)
        raise
    server.stop()
