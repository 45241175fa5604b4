"""What ``procserver check`` says about models of every kind."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exports import distributed, export, hot_version, publish
from test_operators import script

from procserver.config.check import check
from procserver.model.inspection import inspect


def run(folder: Path, **document: Any) -> tuple[int, str, str]:
    """Status, report and problems of a service whose model lies in ``folder``."""
    content = {
        "name": "svc",
        "processor": "easyrec-torch-1.12",
        "model_path": "m",
        **document,
    }
    file = folder / "service.json"
    file.write_text(json.dumps(content))
    out, err = io.StringIO(), io.StringIO()
    status = check(file, {"HOME": "/h"}, out, err, inspect)
    return status, out.getvalue(), err.getvalue()


def report(folder: Path, **document: Any) -> dict[str, str]:
    """The lines of a report by their key."""
    status, out, err = run(folder, **document)
    assert (status, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    found = {line[:32].strip(): line[32:].strip() for line in lines}
    return found | {"all": out}


NORMAL = {"fg_mode": "normal", "remote_type": "none"}


def test_an_export(tmp_path: Path) -> None:
    export(tmp_path / "m", INPUT_TILE="3")
    lines = report(tmp_path, processor_envs={"INPUT_TILE": "2"})
    assert lines["model"] == f"{tmp_path / 'm'}  (TorchEasyRec export)"
    assert lines["model version"].startswith("m-")
    assert lines["model files"] == "scripted_model.pt, fg.json, model_acc.json"
    assert lines["model INPUT_TILE"] == "3"
    assert "exported with 3, which counts" in lines["all"]


def test_candidates_as_a_sequence_are_for_bypass(tmp_path: Path) -> None:
    export(tmp_path / "m", cand_seq_pk="cand_seq")
    assert run(tmp_path)[0] == 0
    status, _, problems = run(tmp_path, model_config=NORMAL)
    assert status == 2
    assert "cand_seq_pk" in problems
    assert "'cand_seq'" in problems


def test_batching_of_a_tile_export_is_warned_of(tmp_path: Path) -> None:
    export(tmp_path / "m", INPUT_TILE="3")
    batching = {"rpc": {"batching": True}}
    assert "cannot be merged" in report(tmp_path, metadata=batching)["all"]
    export(tmp_path / "m")
    assert "cannot be merged" not in report(tmp_path, metadata=batching)["all"]


def _no_fg(folder: Path) -> None:
    (folder / "fg.json").unlink()


def _no_model(folder: Path) -> None:
    (folder / "scripted_model.pt").unlink()


def _aot(folder: Path) -> None:
    (folder / "aoti").mkdir()


def _rtp(folder: Path) -> None:
    (folder / "model-000000-of-000001.safetensors").write_bytes(b"")


def _trt(folder: Path) -> None:
    (folder / "model_acc.json").write_text('{"ENABLE_TRT": "1"}')


def _bad_fg(folder: Path) -> None:
    (folder / "fg.json").write_text('{"features": [}')


def _no_list(folder: Path) -> None:
    (folder / "fg.json").write_text("{}")


def _hot(folder: Path) -> None:
    (folder / "fg.json").unlink()
    (folder / "dense_meta.json").write_text("{}")


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_no_fg, 'fg_mode "normal" needs fg.json'),
        (_no_model, "holds no scripted_model.pt"),
        (_aot, "this is an AOTInductor export"),
        (_rtp, "this is an RTP export"),
        (_trt, "this is a TensorRT export"),
        (_bad_fg, "fg.json is not JSON: Expecting value: line 1 column 15"),
        (_no_list, 'no list "features" in it'),
        (_hot, "set model_path to the base export and procserver.hot_export"),
    ],
)
def test_what_is_not_served(
    spoil: Callable[[Path], None], text: str, tmp_path: Path
) -> None:
    spoil(export(tmp_path / "m"))
    status, _, err = run(tmp_path, model_config=NORMAL)
    assert status == 2
    assert err.startswith("1 problem:\n  model: ")
    assert text in err


def test_a_missing_folder(tmp_path: Path) -> None:
    status, _, err = run(tmp_path)
    assert status == 2
    assert f"model: model path {tmp_path / 'm'} does not exist" in err


def test_a_bare_script(tmp_path: Path) -> None:
    (tmp_path / "bare.pt").write_bytes(b"PK")
    lines = report(tmp_path, model_path="bare.pt")
    assert lines["model"].endswith("(TorchScript file)")
    status, _, err = run(tmp_path, model_path="bare.pt", model_config=NORMAL)
    assert status == 2
    assert "needs fg.json" in err


def test_towers(tmp_path: Path) -> None:
    for tower in ("user", "item"):
        export(tmp_path / "m" / tower)
    lines = report(tmp_path)
    assert lines["part"] == "user (of user, item)"
    assert '"model_entry" chooses another part (user, item)' in lines["all"]
    lines = report(tmp_path, model_entry="item")
    assert lines["part"].startswith("item")
    assert "chooses another part" not in lines["all"]


def test_versions(tmp_path: Path) -> None:
    for name in ("9", "10", "rollback"):
        export(tmp_path / "m" / name)
    (tmp_path / "m" / "11").mkdir()
    lines = report(tmp_path)
    assert lines["model version"] == "10 (latest; there are 9, 10, 11, rollback)"
    assert "version 11 is incomplete and passed over" in lines["all"]
    lines = report(tmp_path, procserver={"model_version": 9})
    assert lines["model version"].startswith("9 (chosen by model_version;")
    status, _, err = run(tmp_path, procserver={"model_version": "12"})
    assert status == 2
    assert "there is no version '12', only 9, 10, 11, rollback" in err


def test_distributed_and_hot(tmp_path: Path) -> None:
    base = distributed(tmp_path / "m")
    lines = report(tmp_path)
    assert lines["sparse tables"] == "2 archives"
    assert lines["model INPUT_TILE"] == "3"
    hot_version(base / "dense_hot_export", "20261121080000")
    publish(base / "dense_hot_export", "20261121080000")
    lines = report(tmp_path)
    assert lines["model"].endswith("(dense hot export)")
    assert lines["dense part"].endswith("versions/20261121080000")
    assert lines["model version"].endswith("+20261121080000")


def test_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fbgemm_gpu", None)
    file = script(tmp_path / "m.pt", "ops.fbgemm.segment_sum_csr(1, x, x)")
    status, _, err = run(tmp_path, model_path=file.name)
    assert status == 2
    assert 'pip install "procserver[torchrec]"' in err
    monkeypatch.undo()
    package = tmp_path / "site" / "fbgemm_gpu"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "site")
    lines = report(tmp_path, model_path=file.name)
    assert lines["operators"] == "fbgemm (the extra torchrec)"


def test_saved_model(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    assert run(tmp_path, processor="easyrec-2.4")[0] == 2
    (tmp_path / "m" / "1" / "saved_model.pb").write_bytes(b"")
    assert run(tmp_path, processor="easyrec-2.4")[0] == 0
