"""A service whose items come from Feast scores as one that reads Parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny
from live import LiveServer

from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse


def ask(server: LiveServer) -> dict[str, np.ndarray]:
    request = PBRequest()
    request.user_features["user_id"].string_feature = "u001d"
    request.item_ids.extend(["item_0000", "item_0034", "item_0199", "nobody"])
    answer = server.request(
        "POST",
        f"/api/predict/{server.name}",
        request.SerializeToString(),
        {"Authorization": tiny.TOKEN},
    )
    assert answer.status == 200, answer.body
    response = PBResponse.FromString(answer.body)
    return {
        output: np.array(array.float_val, np.float32)
        for output, array in response.map_outputs.items()
    }


def scores(config: Path, log: Path, python: str | None = None) -> dict[str, np.ndarray]:
    server = LiveServer(config, log, workers=1)
    if python is not None:
        server.python = python
    try:
        server.start()
        found = ask(server)
    except BaseException:
        server.stop(expect_clean=False)
        raise
    server.stop()
    return found


def test_scores(tmp_path: Path, repository: Path, feast_python: str) -> None:
    config = tiny.write(tmp_path / "files", "feastly")
    expected = scores(config, tmp_path / "files.log")
    source = {
        "remote_type": "feast",
        "url": str(repository),
        "fs_model": "live_items",
        "load_feature_from_offlinestore": True,
        "tables": [],
    }
    config = tiny.write(tmp_path / "feast", "feastly", model_config=source)
    ours = scores(config, tmp_path / "feast.log", feast_python)
    assert list(ours) == list(expected)
    for name, theirs in expected.items():
        assert np.array_equal(ours[name], theirs), name
        assert ours[name][-1] == -1
