"""The README's way to serve one's own export, taken literally."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import tiny
from live import ROOT, LiveServer

from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse


def test_serve_your_own_export(
    launch: Callable[..., LiveServer], tmp_path: Path
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Serve your own export")[2].partition("\n## ")[0]
    found = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert found is not None
    text = found.group(1)
    lines = [line for line in text.splitlines() if line.strip() not in ("{", "}")]
    assert len(lines) < 10
    tiny.write(tmp_path / "made", "made")
    for name in ("export", "items.parquet"):
        shutil.move(tmp_path / "made" / name, tmp_path / name)
    config = tmp_path / "service.json"
    config.write_text(text)
    server = launch(config, env={"PROCSERVER_STATE": str(tmp_path / "state")}).start()
    content = json.loads(text)
    request = PBRequest(item_ids=["item_0001", "item_0002"])
    answer = server.request(
        "POST",
        f"/api/predict/{content['metadata']['name']}",
        request.SerializeToString(),
        {"Authorization": content["token"]},
    )
    assert answer.status == 200
    outputs = PBResponse.FromString(answer.body).map_outputs
    assert len(outputs["probs_ctr"].float_val) == 2
    assert server.stop() == 0
