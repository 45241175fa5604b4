"""Concurrent clients of a worker that merges requests."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from live import Answer, LiveServer
from test_metrics import scrape
from test_ranking import build
from test_ranking import post as post_ranking

from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse
from procserver.wire.pb.torchrec_predict_pb2 import PBResponse

CLIENTS = 8
RPC = {"worker_threads": 2, "batching": True, "max_batch_size": CLIENTS}


class MoreOutputs(torch.nn.Module):
    """The small ranker with a vector and an integer per item as well."""

    def __init__(self) -> None:
        super().__init__()
        self.ranker = tiny.Ranker()

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        outputs = self.ranker(data, device)
        both = torch.stack([outputs["probs_ctr"], outputs["probs_cvr"]], 1)
        outputs["vector"] = both
        outputs["best"] = both.argmax(1)
        return outputs


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("merging")
    config = tiny.write(folder, "merge", metadata={"rpc": RPC})
    torch.manual_seed(12)
    script = torch.jit.script(MoreOutputs().eval())
    script.save(str(folder / "export" / "scripted_model.pt"))
    server = LiveServer(config, folder / "server.log", workers=1).start()
    yield server
    server.stop()


class Named(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.arange(40.0).view(20, 2))

    def forward(
        self,
        data: dict[str, torch.Tensor],
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> dict[str, torch.Tensor]:
        lengths = data["id.lengths"]
        rows = torch.repeat_interleave(torch.arange(lengths.size(0)), lengths)
        looked = self.table.index_select(0, data["id.values"])
        return {"y": torch.zeros(lengths.size(0), 2).index_add(0, rows, looked)}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("named")
    config = tiny.write_bypass(
        folder, "named", metadata={"rpc": RPC}, model_path="named.pt"
    )
    torch.jit.script(Named()).save(str(folder / "named.pt"))
    server = LiveServer(config, folder / "server.log", workers=1).start()
    yield server
    server.stop()


def until_merged(server: LiveServer, work: Callable[[], None]) -> float:
    """Repeats ``work`` until passes were merged; their mean number of requests."""
    deadline = time.monotonic() + 60
    before = scrape(server)
    while True:
        work()
        after = scrape(server)
        batches, requests = (
            after[f"{name}_total{{}}"] - before[f"{name}_total{{}}"]
            for name in ("batches", "batched_requests")
        )
        if batches >= 5:
            return requests / batches
        assert time.monotonic() < deadline, server.text()


def outputs(answer: Answer) -> dict[str, np.ndarray]:
    assert answer.status == 200, answer.body
    found = {}
    for name, array in PBResponse.FromString(answer.body).map_outputs.items():
        values = array.int64_val if array.dtype == 9 else array.float_val
        found[name] = np.array(values).reshape(array.array_shape.dim)
    return found


def test_scores_are_those_of_lone_requests(merging: LiveServer) -> None:
    chance = random.Random(3)
    bodies = [
        build(
            [f"item_{chance.randrange(210):04d}" for _ in range(chance.randint(1, 40))]
        ).SerializeToString()
        for _ in range(3 * CLIENTS)
    ]
    url = "/api/predict/merge"
    bodies += [build([]).SerializeToString(), build(["nobody"]).SerializeToString()]
    alone = [outputs(post_ranking(merging, body, url)) for body in bodies]
    assert {name: array.shape for name, array in alone[-2].items()} == {
        **{"probs_ctr": (0,), "probs_cvr": (0,), "vector": (0, 2), "best": (0,)}
    }
    assert alone[-1]["probs_ctr"].tolist() == [-1]
    assert alone[-1]["vector"].tolist() == [[-1, -1]]
    assert alone[-1]["best"].tolist() == [-1]

    def work() -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = pool.map(lambda b: post_ranking(merging, b, url), bodies)
            for answer, expected in zip(answers, alone, strict=True):
                ours = outputs(answer)
                assert ours.keys() == expected.keys()
                for name, array in expected.items():
                    assert np.allclose(ours[name], array, rtol=0, atol=1e-6)

    assert until_merged(merging, work) > 1


def ids(*rows: list[int]) -> bytes:
    request = PredictRequest()
    values, lengths = request.map_inputs["id.values"], request.map_inputs["id.lengths"]
    for array, content in (
        (values, [i for row in rows for i in row]),
        (lengths, [len(row) for row in rows]),
    ):
        array.dtype = 9
        array.array_shape.dim.append(len(content))
        array.int64_val.extend(content)
    return request.SerializeToString()


def test_neighbours_of_a_bad_request_are_unharmed(named: LiveServer) -> None:
    table = np.arange(40.0).reshape(20, 2)
    chance = random.Random(4)

    def call(bad: bool) -> None:
        rows = [
            [chance.randrange(20) for _ in range(chance.randint(0, 3))]
            for _ in range(chance.randint(1, 5))
        ]
        body = ids([3], [4, 20]) if bad else ids(*rows)
        answer: Answer = named.request(
            "POST", "/api/predict/named", body, {"Authorization": tiny.TOKEN}
        )
        if bad:
            assert answer.status == 400
            assert b"id.values[2]: id 20 is outside of its table" in answer.body
            return
        assert answer.status == 200, answer.body
        (array,) = PredictResponse.FromString(answer.body).map_outputs.values()
        ours = np.array(array.float_val).reshape(array.array_shape.dim)
        expected = [table[row].sum(0) for row in rows]
        assert np.allclose(ours, expected, rtol=0, atol=1e-6)

    def work() -> None:
        with ThreadPoolExecutor(CLIENTS) as pool:
            for bad in (False, True):
                list(pool.map(call, [bad and n % 5 == 0 for n in range(40)]))

    assert until_merged(named, work) > 1


def test_a_request_of_wrong_lengths_never_gets_to_the_model(named: LiveServer) -> None:
    request = PredictRequest.FromString(ids([1], [2]))
    request.map_inputs["id.lengths"].int64_val[1] = 2
    answer = named.request(
        "POST",
        "/api/predict/named",
        request.SerializeToString(),
        {"Authorization": tiny.TOKEN},
    )
    assert answer.status == 400
    assert b"id.lengths: the lengths sum up to 3, but id.values has 2" in answer.body


def test_an_unknown_output_stops_the_start(
    launch: Callable[..., LiveServer], tmp_path: Path
) -> None:
    config = tiny.write(
        tmp_path / "svc",
        "wrong",
        model_config={"outputs": ["probs_ctr", "probs_xyz"]},
    )
    server = launch(config, workers=1).launch()
    assert server.process is not None
    assert server.process.wait(60) != 0
    assert "'probs_xyz'" in server.text()
