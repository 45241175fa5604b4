"""Tensors straight into a bare model through a real gunicorn."""

from __future__ import annotations

import tiny
from live import Answer, LiveServer

from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse

AUTH = {"Authorization": tiny.TOKEN}


def build(rows: int = 3) -> PredictRequest:
    request = PredictRequest()
    first = request.inputs.add(dtype=9)
    first.array_shape.dim.extend([rows, 2])
    first.int64_val.extend(range(2 * rows))
    second = request.inputs.add(dtype=1)
    second.array_shape.dim.append(rows)
    second.float_val.extend(i / 4 for i in range(rows))
    return request


def post(server: LiveServer, request: PredictRequest) -> Answer:
    return server.request(
        "POST", "/api/predict/bare", request.SerializeToString(), AUTH
    )


def test_positional_tensors(bypass: LiveServer) -> None:
    request = build()
    answer = post(bypass, request)
    assert answer.status == 200, answer.body
    (output,) = PredictResponse.FromString(answer.body).outputs
    assert output.dtype == 1
    assert list(output.array_shape.dim) == [3]
    assert list(output.float_val) == [1.0, 5.5, 10.0]
    request.output_filter.append(0)
    assert post(bypass, request).body == answer.body
    assert "x-cache-generation" not in answer.headers


def test_refusals_name_the_tensor(bypass: LiveServer) -> None:
    request = build()
    request.inputs[1].array_shape.dim[0] = 4
    answer = post(bypass, request)
    assert answer.status == 400
    assert b"inputs[1]" in answer.body

    request = build()
    request.inputs[1].dtype = 0
    answer = post(bypass, request)
    assert answer.status == 400
    assert b"inputs[1]" in answer.body

    request = build()
    del request.inputs[1]
    answer = post(bypass, request)
    assert answer.status == 400
    assert b"takes 2 tensors, got 1" in answer.body

    request = build()
    request.output_filter.append(3)
    answer = post(bypass, request)
    assert answer.status == 400
    assert b"index 3" in answer.body

    request = build()
    request.inputs[1].array_shape.dim[0] = 2
    del request.inputs[1].float_val[2:]
    answer = post(bypass, request)
    assert answer.status == 400
    assert b"inputs[0] int64[3, 2], inputs[1] float32[2]" in answer.body
    assert b"forward" not in answer.body

    answer = post(bypass, PredictRequest())
    assert answer.status == 400


def test_named_tensors_for_a_positional_model(bypass: LiveServer) -> None:
    request = PredictRequest()
    request.map_inputs["a"].CopyFrom(build().inputs[0])
    answer = post(bypass, request)
    assert answer.status == 400
    assert b"positional" in answer.body
