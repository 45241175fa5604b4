"""The parts of the load test and the bench that measure."""

import os
import subprocess
import sys
import time
from pathlib import Path

import bench
import bench_server
import numpy as np
import pytest
import run_load
import torch
import workload

from procserver.fg import FeatureGenerator
from procserver.wire.pb import torchrec_predict_pb2 as torchrec


def test_cpu_time_counts_the_whole_tree():
    burn = "import time\nend = time.process_time() + 0.3\n"
    burn += "while time.process_time() < end: pass\n"
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {burn!r} 'time.sleep(60)'])\n"
        f"{burn}print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert bench_server.process_tree(parent.pid) == [parent.pid, child]
        deadline = time.monotonic() + 20
        while bench_server.cpu_of(child) < 0.3 and time.monotonic() < deadline:
            time.sleep(0.05)
        spent = [bench_server.cpu_of(pid) for pid in (parent.pid, child)]
        assert all(0.3 <= one < 2 for one in spent)
        os.kill(child, 9)
    finally:
        parent.kill()
        parent.communicate()
    assert bench_server.cpu_of(parent.pid) == 0.0


def test_no_server_is_not_ready():
    assert not bench_server.is_ready(f"http://127.0.0.1:{bench_server.free_port()}")


def test_summary_takes_percentiles_in_milliseconds():
    walls = [n * 1_000_000 for n in range(200, 0, -1)]
    assert bench.summary(3.0, walls) == bench.Round(cpu=15.0, p50=101.0, p99=199.0)


def test_run_load_names_a_missing_server(capsys, monkeypatch):
    url = f"http://127.0.0.1:{bench_server.free_port()}"
    monkeypatch.setattr(sys, "argv", ["run_load.py", "--url", url])
    assert run_load.main() == 2
    assert f"no server is ready at {url}" in capsys.readouterr().err


def test_run_load_reads_locusts_csv(tmp_path, capsys):
    path = tmp_path / "stats.csv"
    path.write_text(
        "Name,Request Count,Failure Count,Requests/s,50%,90%,95%,99%,100%\n"
        "rank_10,200,1,19.84,12,20,N/A,31.0,40\n"
    )
    run_load.print_table(run_load.read_csv(path))
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == ["rank_10", "200", "1", "19.8", "12", "20", "-", "31", "40"]
    assert run_load.read_csv(tmp_path / "absent.csv") == []


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """The bench's service with small tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "LARGE", 5000)
        patch.setattr(workload, "SMALL", 500)
        patch.setattr(workload, "REQUESTS", 2)
        return workload.build(tmp_path_factory.mktemp("load") / "data", items=1000)


def test_workload_tensors_fit_its_model(small):
    from tensors import TensorMaker

    maker = TensorMaker(small / "service.json")
    assert maker.tile
    body = (small / "requests" / "rank_100_00.pb").read_bytes()
    tensors = maker.tensors(body)
    assert tensors["batch_size"] == 100
    assert len(tensors["user_id_0.lengths"]) == 1
    assert len(tensors["item_id_0.lengths"]) == 100
    assert tensors["clicks__item.lengths"].tolist() == [workload.STEPS]
    model = torch.jit.load(str(small / "export" / "scripted_model.pt"))
    with torch.inference_mode():
        outputs = model({name: torch.from_numpy(a) for name, a in tensors.items()})
    for scores in outputs.values():
        assert scores.shape == (100,)
        assert torch.isfinite(scores).all()
        assert len(scores.unique()) > 90


def test_workload_is_written_once(small):
    before = (small / "workload.json").stat().st_ino
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "write_json", None)
        assert workload.build(small, items=1000) == small
    assert (small / "workload.json").stat().st_ino == before


def test_workload_requests_ask_for_items_that_exist(small):
    import pyarrow.parquet as pq

    known = set(pq.read_table(small / "items.parquet")["item_key"].to_pylist())
    paths = sorted((small / "requests").iterdir())
    assert len(paths) == 2 * len(workload.SIZES)
    for path in paths:
        message = torchrec.PBRequest()
        message.ParseFromString(path.read_bytes())
        assert known.issuperset(message.item_ids)
        assert len(message.item_ids) == int(path.stem.split("_")[1])


def test_untiled_rows_repeat_the_user(small):
    """The hand join agrees with FG's own tiling, feature by feature."""
    from tensors import TensorMaker

    maker = TensorMaker(small / "service.json")
    body = (small / "requests" / "rank_100_01.pb").read_bytes()
    tiled = maker.tensors(body)
    maker.tile = False
    whole = maker.tensors(body)
    assert isinstance(maker.generator, FeatureGenerator)
    for name in ("user_id_3.values", "user_num_1.values"):
        np.testing.assert_array_equal(whole[name], np.repeat(tiled[name], 100, axis=0))
    for name in ("item_id_5.values", "item_num_2.values", "ctx_id_1.values"):
        np.testing.assert_array_equal(whole[name], tiled[name])
    np.testing.assert_array_equal(
        whole["clicks__category.values"], np.tile(tiled["clicks__category.values"], 100)
    )
