"""The demo through a real server: the same numbers as by hand, in every bit."""

import importlib.util
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest
import run_load
import torch
from bench_server import BenchServer
from tensors import TensorMaker

from procserver.demo.call import call
from procserver.demo.requests import EMPTY_SEQUENCE, FILES, UNKNOWN_ITEMS
from procserver.wire.pb import torch_predict_pb2 as torch_pb
from procserver.wire.pb import torchrec_predict_pb2 as torchrec

# One core means one thread, as in this process: the bits of scores depend on it.
CORE = min(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def ranking(demo: Path) -> Iterator[BenchServer]:
    with BenchServer(demo / "service.json", core=CORE) as server:
        yield server


@pytest.fixture(scope="module")
def twin(demo: Path) -> Iterator[BenchServer]:
    with BenchServer(demo / "bypass.json", core=CORE) as server:
        yield server


def load(arguments: list[str], expected: Collection[str], capsys, monkeypatch):
    """Runs Locust until each of the ``expected`` requests was made.

    On a machine that is busy with something else two seconds may not be enough.

    :returns: exit status, lines of the printed table by request, and all text
    """
    for seconds in (2, 10, 40):
        command = ["run_load.py", *arguments, "--seconds", str(seconds)]
        monkeypatch.setattr(sys, "argv", command)
        status = run_load.main()
        printed = capsys.readouterr().out
        rows = {line.split()[0]: line.split() for line in printed.splitlines() if line}
        if all(name in rows and int(rows[name][1]) for name in expected):
            break
    return status, rows, printed


def ask(server: BenchServer, body: bytes) -> bytes:
    connection = server.connect()
    try:
        return server.post(connection, body)
    finally:
        connection.close()


@pytest.mark.parametrize("name", [*FILES, UNKNOWN_ITEMS, EMPTY_SEQUENCE])
def test_samples_score_as_in_process(demo, ranking, name):
    body = (demo / "requests" / name).read_bytes()
    response = torchrec.PBResponse()
    response.ParseFromString(ask(ranking, body))
    maker = TensorMaker(demo / "service.json")
    model = torch.jit.load(str(demo / "export" / "scripted_model.pt"))
    tensors = {n: torch.from_numpy(a) for n, a in maker.tensors(body).items()}
    with torch.inference_mode():
        expected = model(tensors)
    known = np.array([one in maker.row_of for one in response.item_ids])
    assert set(response.map_outputs) == {"probs_ctr", "probs_cvr"}
    for output, array in response.map_outputs.items():
        scores = np.array(array.float_val, np.float32)
        by_hand = np.where(known, expected[output].numpy(), np.float32(-1))
        np.testing.assert_array_equal(scores, by_hand)


def test_call_prints_the_scores_of_a_real_server(demo, ranking):
    text = call(demo, ranking.url, ["item_0001", "item_0002", "no_such_item"])
    rows = [line.split() for line in text.splitlines()[5:8]]
    assert {row[0] for row in rows} == {"item_0001", "item_0002", "no_such_item"}
    assert rows[-1][0] == "no_such_item"
    assert rows[-1][-2:] == ["-1.0000", "-1.0000"]
    assert float(rows[0][-2]) >= float(rows[1][-2]) > 0


def test_the_vendor_pages_user_is_scored(ranking):
    """Features that the model does not read are ignored, missing ones default."""
    message = torchrec.PBRequest(item_ids=["item_0001", "item_0002", "item_0003"])
    user = message.user_features
    user["user_id"].string_feature = "u001d"
    user["age"].int_feature = 12
    user["weight"].float_feature = 129.8
    user["raw_3"].double_list.features.extend([0.2, 0.006, 0.7, 0.2])
    user["map_1"].int_float_map.map_field[0] = 0.378
    user["map_2"].int_int_map.map_field[866] = 4143
    user["click"].float_lists.lists.add().features.extend([0.9, 0.5])
    for values in ([866], [7022, 1], [7022, 1]):
        feature = message.context_features["id_2"].features.add()
        feature.int_list.features.extend(values)
    response = torchrec.PBResponse()
    response.ParseFromString(ask(ranking, message.SerializeToString()))
    for array in response.map_outputs.values():
        assert len(set(array.float_val)) == 3
        assert all(0 < score < 1 for score in array.float_val)


def test_the_twin_scores_as_in_process(demo, twin):
    body = (demo / "requests" / "bypass.pb").read_bytes()
    request, response = torch_pb.PredictRequest(), torch_pb.PredictResponse()
    request.ParseFromString(body)
    response.ParseFromString(ask(twin, body))
    inputs = []
    for array in request.inputs:
        if array.dtype == torch_pb.DT_FLOAT:
            values = np.array(array.float_val, np.float32)
        else:
            values = np.array(array.int64_val, np.int64)
        inputs.append(torch.from_numpy(values).view(list(array.array_shape.dim)))
    model = torch.jit.load(str(demo / "bypass" / "scripted_model.pt"))
    with torch.inference_mode():
        expected = model(*inputs)
    assert [list(a.array_shape.dim) for a in response.outputs] == [[300]]
    scores = np.array(response.outputs[0].float_val, np.float32)
    np.testing.assert_array_equal(scores, expected.numpy())


@pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="extra [loadtest] not installed"
)
def test_load_of_both_kinds(demo, ranking, twin, capsys, monkeypatch):
    arguments = ["--url", ranking.url, "--bypass-url", twin.url, "--demo", str(demo)]
    names = ("rank_1", "rank_300", "bypass")
    arguments += ["--users", "5"]
    status, rows, _ = load(arguments, names, capsys, monkeypatch)
    assert status == 0
    for name in names:
        assert int(rows[name][1]) > 0
    assert rows["errors:"] == ["errors:", "0"]


@pytest.mark.skipif(
    importlib.util.find_spec("locust") is None, reason="extra [loadtest] not installed"
)
def test_load_that_fails_is_an_error(demo, ranking, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.pb").write_bytes(b"\xff\xff")
    arguments = ["--url", ranking.url, "--demo", str(demo), "--no-bypass"]
    arguments += ["--requests", str(tmp_path / "broken.pb")]
    arguments += ["--users", "1"]
    status, _, printed = load(arguments, ["broken"], capsys, monkeypatch)
    assert status == 1
    assert "status 400" in printed
