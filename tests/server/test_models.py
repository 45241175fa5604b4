"""Which model a real service serves: metadata, versions, towers, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from live import LiveServer

from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

AUTH = {"Authorization": tiny.TOKEN}

Launch = Callable[..., LiveServer]


def metadata(server: LiveServer, rest: str = "") -> dict[str, Any]:
    answer = server.request("GET", f"/v2/models/{server.name}{rest}", headers=AUTH)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].startswith("application/json")
    found: dict[str, Any] = json.loads(answer.body)
    assert found["name"] == server.name
    if "model_version" in found:
        assert answer.headers["x-model-version"] == found["model_version"]
    return found


def predict(server: LiveServer, items: list[str]) -> tuple[PBResponse, str]:
    request = PBRequest()
    request.user_features["user_id"].string_feature = "u1"
    request.item_ids.extend(items)
    for _ in items:
        request.context_features["position"].features.add().int_feature = 1
    path = f"/api/predict/{server.name}"
    answer = server.request("POST", path, request.SerializeToString(), AUTH)
    assert answer.status == 200, answer.body
    return PBResponse.FromString(answer.body), answer.headers["x-model-version"]


def test_metadata(ranking: LiveServer) -> None:
    found = metadata(ranking)
    assert found["platform"] == "pytorch_torchscript"
    assert found["versions"] == [found["model_version"]]
    assert found["model_version"].startswith("export-")
    assert found["kind"] == "TorchEasyRec export"
    assert found["input_tile"] == 0
    assert found["weights"] in ("shared", "own")
    assert found["loaded_at"].endswith("+00:00")
    inputs = {entry["name"]: entry for entry in found["inputs"]}
    assert inputs["vector.values"] == {
        "name": "vector.values",
        "datatype": "FP32",
        "shape": [-1, 4],
    }
    assert inputs["clicks__category.values"]["datatype"] == "INT64"
    assert inputs["clicks__category.lengths"]["shape"] == [-1]
    assert found["outputs"] == [
        {"name": name, "datatype": "FP32", "shape": [-1]}
        for name in ("probs_ctr", "probs_cvr")
    ]


def test_metadata_by_version_and_readiness(ranking: LiveServer) -> None:
    found = metadata(ranking)
    version = found["model_version"]
    again = metadata(ranking, f"/versions/{version}")
    assert again["inputs"] == found["inputs"]
    ready = {
        "name": ranking.name,
        "ready": True,
        "state": "ready",
        "workers": {"ready": 2, "wanted": 2},
    }
    assert metadata(ranking, "/ready") == ready
    assert metadata(ranking, f"/versions/{version}/ready") == ready


@pytest.mark.parametrize("rest", ["", "/ready"])
def test_metadata_is_for_clients_of_this_service(
    ranking: LiveServer, rest: str
) -> None:
    own = f"/v2/models/{ranking.name}{rest}"
    assert ranking.request("GET", own).status == 401
    for path in (f"/v2/models/other{rest}", own.replace("rank", "rank/versions/0")):
        answer = ranking.request("GET", path, headers=AUTH)
        assert answer.status == 404
        assert answer.body
    assert ranking.request("POST", own, b"", AUTH).status == 405


def test_metadata_of_a_bare_model(bypass: LiveServer) -> None:
    found = metadata(bypass)
    assert found["kind"] == "TorchScript file"
    assert found["model_version"].startswith("doubler-")
    assert found["inputs"] == [{"name": "a"}, {"name": "b"}]


def versions_root(folder: Path, config: Path) -> Path:
    """Turns the service's export into version 9 of a root, with 10 beside it."""
    root = folder / "versions"
    root.mkdir()
    shutil.move(folder / "export", root / "9")
    shutil.copytree(root / "9", root / "10")
    torch.manual_seed(12)
    torch.jit.script(tiny.Ranker().eval()).save(str(root / "10/scripted_model.pt"))
    shutil.copytree(root / "9", root / "11.tmp.5")
    (root / "12").mkdir()
    content = json.loads(config.read_text()) | {"model_path": "versions"}
    config.write_text(json.dumps(content))
    return root


def test_the_newest_complete_version_is_served(tmp_path: Path, launch: Launch) -> None:
    config = tiny.write(tmp_path / "s", "versions")
    root = versions_root(tmp_path / "s", config)
    server = launch(config, workers=1).start()
    newest, version = predict(server, ["item_0001", "item_0002"])
    assert version == "10"
    assert metadata(server)["versions"] == ["10"]
    assert "version 12 is incomplete and passed over" in server.text()
    server.stop()

    (root / "current.json").write_text('{"version": "9"}')
    server = launch(config, workers=1).start()
    current, version = predict(server, ["item_0001", "item_0002"])
    assert version == "9"
    assert current.map_outputs["probs_ctr"] != newest.map_outputs["probs_ctr"]
    server.stop()


class Tower(torch.nn.Module):
    """An item tower: features of items alone, one embedding each."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(7, 3))

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        values = tiny.pooled(
            self.table, data["category.values"], data["category.lengths"]
        )
        return {"item_tower_emb": values}


def match_export(folder: Path, config: Path) -> None:
    """A match export at ``export``; only the item tower has a script to load."""
    export = folder / "export"
    fg = {"features": [f for f in tiny.FG["features"] if "feature_name" in f]}
    fg["features"] = [f for f in fg["features"] if f["feature_name"] == "category"]
    for tower in ("user", "item"):
        (export / tower).mkdir()
        torch.jit.script(Tower().eval()).save(str(export / tower / "scripted_model.pt"))
        (export / tower / "fg.json").write_text(json.dumps(fg))
    for name in ("scripted_model.pt", "fg.json", "model_acc.json"):
        (export / name).unlink()
    content = json.loads(config.read_text()) | {"model_entry": "item"}
    config.write_text(json.dumps(content))


def test_an_item_tower_answers_without_item_ids(tmp_path: Path, launch: Launch) -> None:
    config = tiny.write(tmp_path / "s", "towers")
    match_export(tmp_path / "s", config)
    server = launch(config, workers=1).start()
    found = metadata(server)
    assert found["part"] == "item"
    assert found["model_version"].startswith("export-item-")
    assert found["outputs"] == [
        {"name": "item_tower_emb", "datatype": "FP32", "shape": [-1, 3]}
    ]
    by_id, _ = predict(server, ["item_0001"])
    request = PBRequest()
    feature = request.item_features["category"].features.add()
    feature.string_feature = tiny.item(1)["category"]
    request.user_features["unused"].string_feature = "x"
    answer = server.request(
        "POST", "/api/predict/towers", request.SerializeToString(), AUTH
    )
    assert answer.status == 200, answer.body
    by_features = PBResponse.FromString(answer.body)
    assert by_features.map_outputs == by_id.map_outputs
    server.stop()


def _flipped(export: Path) -> None:
    script = export / "scripted_model.pt"
    data = bytearray(script.read_bytes())
    data[len(data) // 2] ^= 255
    script.write_bytes(bytes(data))


def _aot(export: Path) -> None:
    (export / "model_acc.json").write_text('{"ENABLE_AOT": "1"}')


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_flipped, "scripted_model.pt is damaged"),
        (_aot, "this is an AOTInductor export"),
    ],
)
def test_what_is_not_served_is_said_in_one_sentence(
    spoil: Callable[[Path], None], sentence: str, tmp_path: Path, launch: Launch
) -> None:
    config = tiny.write(tmp_path / "s", "refused")
    spoil(tmp_path / "s" / "export")
    server = launch(config, workers=1).launch()
    assert server.process is not None
    assert server.process.wait(60) != 0
    assert sentence in server.text()
    assert "Traceback" not in server.text()
