"""What `procserver demo DIR` writes, and when it refuses to."""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from procserver import config
from procserver.demo import command, service
from procserver.demo import write as demo_write
from procserver.demo.requests import EMPTY_SEQUENCE, FILES, UNKNOWN_ITEMS
from procserver.demo.write import ROW_GROUP, Size, write_demo, written
from procserver.fg import FeatureGenerator

ROOT = Path(__file__).resolve().parents[2]


def digests(folder: Path) -> dict[str, str]:
    """Digest of every file that does not depend on floating-point training."""
    names = ["items.parquet", "export/fg.json", "service.json", "bypass.json"]
    names += [f"requests/{p.name}" for p in sorted((folder / "requests").iterdir())]
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}


@pytest.fixture
def untrained(monkeypatch):
    """Demos with everything but a model."""
    monkeypatch.setattr(demo_write, "write_models", lambda *args: "untrained")


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.main(parser.parse_args(arguments))


def quiet(text: str) -> None:
    pass


def test_the_files_of_a_demo(demo):
    found = {p.relative_to(demo).as_posix() for p in demo.rglob("*") if p.is_file()}
    samples = {*FILES, UNKNOWN_ITEMS, EMPTY_SEQUENCE, "bypass.pb"}
    assert found == {
        "items.parquet",
        "service.json",
        "bypass.json",
        "demo.json",
        "export/scripted_model.pt",
        "export/fg.json",
        "export/model_acc.json",
        "bypass/scripted_model.pt",
        "bypass/model_acc.json",
        *(f"requests/{name}" for name in samples),
    }
    assert [p.name for p in demo.parent.iterdir()] == [demo.name]


def test_the_same_seed_writes_the_same_bytes(demo, tmp_path, untrained):
    size = Size(items=2000, requests=4000, seed=7)
    write_demo(tmp_path / "again", size, quiet)
    write_demo(tmp_path / "other", Size(items=2000, requests=4000, seed=8), quiet)
    first = digests(demo)
    assert digests(tmp_path / "again") == first
    other = digests(tmp_path / "other")
    same = {name for name in first if first[name] == other[name]}
    assert same == {"export/fg.json", "service.json", "bypass.json"}


def test_items_are_in_row_groups(tmp_path, untrained):
    write_demo(tmp_path / "demo", Size(items=25_000, requests=200), quiet)
    meta = pq.read_metadata(tmp_path / "demo" / "items.parquet")
    rows = [meta.row_group(n).num_rows for n in range(meta.num_row_groups)]
    assert rows == [ROW_GROUP, ROW_GROUP, 5000]


def test_the_export_is_one_that_fg_and_torch_load(demo):
    generator = FeatureGenerator(demo / "export" / "fg.json")
    model = torch.jit.load(str(demo / "export" / "scripted_model.pt"))
    rows = generator.transform({})
    with torch.inference_mode():
        scores = model({n: torch.from_numpy(array) for n, array in rows.items()})
    assert set(scores) == {"logits_ctr", "probs_ctr", "logits_cvr", "probs_cvr"}
    acc = json.loads((demo / "export" / "model_acc.json").read_text())
    assert acc == {"SPARSE_INT64": "1"}


@pytest.mark.parametrize("name", ["service.json", "bypass.json"])
def test_the_service_json_is_accepted_without_remarks(demo, name):
    loaded = config.load(demo / name, {})
    assert loaded.warnings == []
    assert loaded.notices == []
    folder = "export" if name == "service.json" else "bypass"
    assert (loaded.service.model_dir / "scripted_model.pt").samefile(
        demo / folder / "scripted_model.pt"
    )


def test_the_default_service_is_the_demo():
    default = json.loads((ROOT / "conf" / "service.json").read_text())
    assert default == service.service_document("../demo/")


def test_a_demo_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no disk")

    monkeypatch.setattr(demo_write, "write_models", fail)
    with pytest.raises(RuntimeError, match="no disk"):
        write_demo(tmp_path / "demo", Size(items=1000, requests=200), quiet)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_demo(tmp_path, untrained, monkeypatch):
    write_demo(tmp_path / "demo", Size(items=1000, requests=200), quiet)
    before = digests(tmp_path / "demo")

    def fail(*args):
        raise RuntimeError("no disk")

    monkeypatch.setattr(demo_write, "write_models", fail)
    with pytest.raises(RuntimeError, match="no disk"):
        write_demo(tmp_path / "demo", Size(items=1200, requests=200), quiet)
    assert digests(tmp_path / "demo") == before
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_what_a_killed_writer_left_is_removed(tmp_path, untrained):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".demo.partial-{gone.pid}" / "export").mkdir(parents=True)
    (tmp_path / f".demo.partial-{os.getppid()}").mkdir()
    write_demo(tmp_path / "demo", Size(items=1000, requests=200), quiet)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"demo", f".demo.partial-{os.getppid()}"}


def test_command_writes_once_and_replaces_only_by_force(
    tmp_path, untrained, monkeypatch, capsys
):
    monkeypatch.setattr(
        demo_write, "Size", lambda items, seed: Size(items, 200, seed), raising=True
    )
    folder = tmp_path / "demo"
    assert run(str(folder), "--items", "1000") == 0
    first = written(folder)
    assert first == {"format": 1, "items": 1000, "requests": 200, "seed": 7}
    inode = folder.stat().st_ino

    assert run(str(folder), "--items", "1000") == 0
    assert "already" in capsys.readouterr().out
    assert folder.stat().st_ino == inode

    assert run(str(folder), "--items", "1000", "--seed", "8") == 2
    assert "--force" in capsys.readouterr().err
    assert written(folder) == first

    assert run(str(folder), "--items", "1000", "--seed", "8", "--force") == 0
    assert written(folder)["seed"] == 8
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_command_does_not_write_over_something_else(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    for arguments in ([str(tmp_path)], [str(tmp_path), "--force"]):
        assert run(*arguments) == 2
        assert "no demo" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("given", [["many"], ["10"], ["1000", "2000"]])
def test_command_wants_a_sensible_number_of_items(tmp_path, capsys, given):
    assert run(str(tmp_path / "demo"), "--items", *given) == 2
    assert "one number" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_demo_items_are_what_requests_ask_for(demo):
    table = pq.read_table(demo / "items.parquet", columns=["item_id"])
    ids = table["item_id"].to_numpy(zero_copy_only=False)
    assert len(np.unique(ids)) == 2000
    assert {"item_0001", "item_0002", "item_0003"} <= set(ids)
