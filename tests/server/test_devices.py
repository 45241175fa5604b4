"""Devices and threads as a service JSON names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from live import LiveServer
from test_bypass import build

from procserver.wire.pb.torch_predict_pb2 import PredictResponse

AUTH = {"Authorization": tiny.TOKEN}


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_gpu_that_is_not_here_stops_the_start(
    launch: Callable[..., LiveServer], tmp_path: Path
) -> None:
    config = tiny.write_bypass(
        tmp_path / "svc", "nogpu", procserver={"device": "cuda:0", "state_dir": "s"}
    )
    server = launch(config, workers=2).launch()
    assert server.process is not None
    assert server.process.wait(60) != 0
    assert "device cuda:0" in server.text()
    assert "Traceback" not in server.text()


def test_threads_and_switches_of_torch(
    launch: Callable[..., LiveServer], tmp_path: Path
) -> None:
    config = tiny.write_bypass(
        tmp_path / "svc",
        "threads",
        model_config={
            "intra_op_parallelism_threads": 1,
            "inter_op_parallelism_threads": 16,
        },
        processor_envs=[
            {"name": "PYTORCH_TENSOREXPR_FALLBACK", "value": "2"},
            {"name": "NO_GRAD_GUARD", "value": "1"},
        ],
    )
    server = launch(config, workers=1).start()
    body = build().SerializeToString()
    answer = server.request("POST", "/api/predict/threads", body, AUTH)
    assert answer.status == 200, answer.body
    (output,) = PredictResponse.FromString(answer.body).outputs
    assert list(output.float_val) == [1.0, 5.5, 10.0]
    assert "No effect" not in server.text()
    assert server.stop() == 0
