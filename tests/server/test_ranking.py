"""Ranking requests through a real gunicorn: scores, rows, refusals."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny
import torch
from google.protobuf.message import DecodeError
from live import Answer, LiveServer, exchange

from procserver.fg import FeatureGenerator
from procserver.wire.pb import torch_predict_pb2, torchrec_predict_pb2
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

AUTH = {"Authorization": tiny.TOKEN}
CLICKS = ["item_0003", "item_0004", "gone", "item_0017"]


def build(items: list[str], *, positions: list[int] | None = None) -> PBRequest:
    request = PBRequest()
    request.user_features["user_id"].string_feature = "u001d"
    request.user_features["age"].int_feature = 44
    request.user_features["city"].string_feature = "杭州"
    request.user_features["clicks"].string_list.features.extend(CLICKS)
    request.item_ids.extend(items)
    if positions is None:
        positions = [i % 10 for i in range(len(items))]
    for position in positions:
        feature = request.context_features["position"].features.add()
        feature.int_feature = position
    return request


def post(server: LiveServer, body: bytes, path: str = "/api/predict/rank") -> Answer:
    return server.request("POST", path, body, AUTH)


def scores(answer: Answer) -> dict[str, np.ndarray]:
    assert answer.status == 200, answer.body
    response = PBResponse.FromString(answer.body)
    return {
        name: np.array(array.float_val, np.float32).reshape(array.array_shape.dim)
        for name, array in response.map_outputs.items()
    }


def columns_of(items: list[str], positions: list[int]) -> dict[str, pa.Array]:
    """What FG reads for a request of :func:`build`, item features joined by hand."""
    rows = {row["item_id"]: row for row in map(tiny.item, range(tiny.ITEMS))}
    joined = [rows.get(i, {}) for i in items]
    clicked = [rows.get(i, {}) for i in CLICKS]
    count = len(items)
    return {
        "user_id": pa.array(["u001d"]),
        "age": pa.array([44], pa.int32()),
        "city": pa.array(["杭州"]),
        "category": pa.array([r.get("category") for r in joined], pa.string()),
        "price": pa.array([r.get("price") for r in joined], pa.float64()),
        "vector": pa.array([r.get("vector") for r in joined], pa.list_(pa.float64())),
        "position": pa.array(positions, pa.int32()),
        "clicks__category": pa.array([[r.get("category") for r in clicked]] * count),
        "clicks__price": pa.array(
            [[r.get("price") for r in clicked]] * count, pa.list_(pa.float64())
        ),
    }


def forward(server: LiveServer, items: list[str], positions: list[int]):
    """The same model and FG in this process."""
    export = server.config.parent / "export"
    count = len(items)
    columns = columns_of(items, positions)
    tensors = FeatureGenerator(export / "fg.json").transform(columns)
    model = torch.jit.load(str(export / "scripted_model.pt"))
    batch = {name: torch.from_numpy(array) for name, array in tensors.items()}
    for name, tensor in batch.items():
        # User features come with one row; the tiny model wants one per item.
        rows_of = tensor.shape[0]
        if rows_of == 1 and count > 1:
            batch[name] = tensor.repeat(count, *[1] * (tensor.dim() - 1))
    with torch.inference_mode():
        return {name: tensor.numpy() for name, tensor in model(batch).items()}


@pytest.mark.parametrize("count", [1, 2, 37, 100])
def test_scores_equal_an_in_process_forward_bit_for_bit(
    ranking: LiveServer, count: int
) -> None:
    items = [f"item_{(7 * i + 1) % tiny.ITEMS:04d}" for i in range(count)]
    positions = [i % 10 for i in range(count)]
    ours = scores(post(ranking, build(items).SerializeToString()))
    theirs = forward(ranking, items, positions)
    assert sorted(ours) == ["probs_ctr", "probs_cvr"]
    for name, expected in theirs.items():
        assert ours[name].shape == (count,)
        assert np.array_equal(ours[name], expected), name


def test_items_that_do_not_exist_keep_their_row(ranking: LiveServer) -> None:
    items = ["item_0001", "nobody", "item_0002", ""]
    ours = scores(post(ranking, build(items).SerializeToString()))
    known = scores(
        post(
            ranking,
            build(["item_0001", "item_0002"], positions=[0, 2]).SerializeToString(),
        )
    )
    for name, values in ours.items():
        assert values[[1, 3]].tolist() == [-1, -1]
        assert np.array_equal(values[[0, 2]], known[name])


def test_item_ids_are_echoed_in_order(ranking: LiveServer) -> None:
    items = ["item_0009", "nobody", "item_0001", "item_0009"]
    answer = post(ranking, build(items).SerializeToString())
    assert list(PBResponse.FromString(answer.body).item_ids) == items


def test_item_features_of_the_request_win_over_the_cache(ranking: LiveServer) -> None:
    items = ["item_0001", "item_0002"]
    request = build(items)
    plain = scores(post(ranking, request.SerializeToString()))
    for price in (1.0, 900.0):
        request.item_features["price"].features.add().double_feature = price
    changed = scores(post(ranking, request.SerializeToString()))
    assert (plain["probs_ctr"] != changed["probs_ctr"]).all()


def test_one_context_value_broadcasts_and_surplus_is_dropped(
    ranking: LiveServer,
) -> None:
    items = ["item_0001", "item_0002", "item_0003"]
    one = scores(post(ranking, build(items, positions=[4]).SerializeToString()))
    all_ = scores(post(ranking, build(items, positions=[4] * 3).SerializeToString()))
    more = scores(
        post(ranking, build(items, positions=[4, 4, 4, 9]).SerializeToString())
    )
    for name in one:
        assert np.array_equal(one[name], all_[name])
        assert np.array_equal(one[name], more[name])


def test_too_few_context_values_are_refused_by_name(ranking: LiveServer) -> None:
    body = build(["item_0001"] * 3, positions=[1, 2]).SerializeToString()
    answer = post(ranking, body)
    assert answer.status == 400
    assert b"position" in answer.body
    assert b"2 values for 3 items" in answer.body


def test_sequence_ids_as_text_and_as_list_are_the_same(ranking: LiveServer) -> None:
    request = build(["item_0001", "item_0007"])
    as_list = scores(post(ranking, request.SerializeToString()))
    request.user_features["clicks"].string_feature = ";".join(CLICKS)
    as_text = scores(post(ranking, request.SerializeToString()))
    request.user_features["clicks"].string_feature = ""
    without = scores(post(ranking, request.SerializeToString()))
    assert np.array_equal(as_list["probs_ctr"], as_text["probs_ctr"])
    assert (as_list["probs_ctr"] != without["probs_ctr"]).all()


def test_a_sequence_given_in_the_request_is_taken_as_it_is(
    ranking: LiveServer,
) -> None:
    request = build(["item_0001"])
    joined = scores(post(ranking, request.SerializeToString()))
    prices = request.user_features["clicks__price"].double_list.features
    prices.extend(tiny.item(int(c[-4:]))["price"] if c != "gone" else 0 for c in CLICKS)
    same = scores(post(ranking, request.SerializeToString()))
    prices[0] = 1e4
    other = scores(post(ranking, request.SerializeToString()))
    assert np.allclose(joined["probs_ctr"], same["probs_ctr"], atol=1e-6)
    assert joined["probs_ctr"] != other["probs_ctr"]


def test_no_items_are_answered_without_rows(ranking: LiveServer) -> None:
    ours = scores(post(ranking, build([]).SerializeToString()))
    assert {name: values.shape for name, values in ours.items()} == {
        "probs_ctr": (0,),
        "probs_cvr": (0,),
    }


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", b"neither item_ids nor user_features"),
        (b"\xff\xff\xff", b"undecodable"),
        (b"\x12\x7fcut", b"undecodable"),
        (
            torch_predict_pb2.PredictRequest(
                inputs=[torch_predict_pb2.ArrayProto(dtype=1, float_val=[1.5])]
            ).SerializeToString(),
            b"another kind of service",
        ),
    ],
)
def test_bodies_that_are_no_request(
    ranking: LiveServer, body: bytes, named: bytes
) -> None:
    answer = post(ranking, body)
    assert answer.status == 400
    assert named in answer.body


def test_a_map_where_a_number_belongs_is_refused_by_name(ranking: LiveServer) -> None:
    request = build(["item_0001"])
    request.user_features["age"].string_int_map.map_field["x"] = 1
    answer = post(ranking, request.SerializeToString())
    assert answer.status == 400
    assert b"age" in answer.body


def test_too_many_items_are_refused(ranking: LiveServer) -> None:
    answer = post(ranking, build(["x"] * 5001, positions=[1]).SerializeToString())
    assert answer.status == 413
    assert b"5000" in answer.body


def test_answers_carry_the_versions(ranking: LiveServer) -> None:
    answer = post(ranking, build(["item_0001"]).SerializeToString())
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-cache-generation"] == "1"
    assert answer.headers["x-model-version"].startswith("export-")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/predict/rank",
        "/api/predict/rank/",
        "/api/predict/rank/v2/x?uid=11+68",
        "/api/predict/group.rank",
    ],
)
def test_paths_of_the_service(ranking: LiveServer, path: str) -> None:
    assert post(ranking, build(["item_0001"]).SerializeToString(), path).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/api/predict/other", 404),
        ("POST", "/api/predict/ranking", 404),
        ("POST", "/api/predict", 404),
        ("POST", "/api/predict/../rank", 404),
        ("PUT", "/api/predict/rank", 405),
        ("DELETE", "/api/predict/rank/x", 405),
        ("GET", "/nothing", 404),
    ],
)
def test_other_paths_and_methods(
    ranking: LiveServer, method: str, path: str, status: int
) -> None:
    answer = ranking.request(method, path, b"x", AUTH)
    assert answer.status == status
    assert answer.body
    with pytest.raises(DecodeError):
        torchrec_predict_pb2.PBResponse.FromString(answer.body)


def test_the_description(ranking: LiveServer) -> None:
    for path in ("/", "/api/predict/rank", "/api/predict/rank/"):
        answer = ranking.request("GET", path, None, AUTH)
        content: dict[str, Any] = json.loads(answer.body)
        assert content["name"] == "rank"
        assert sorted(output["name"] for output in content["outputs"]) == [
            "probs_ctr",
            "probs_cvr",
        ]
        assert content["outputs"][0] == {
            "name": content["outputs"][0]["name"],
            "shape": [-1],
            "type": "DT_FLOAT",
        }
        names = {item["name"]: item["shape"] for item in content["inputs"]}
        assert names["price"] == [-1]
        assert names["age"] == [1]
        assert content["signature_name"] == "forward"
        assert "price" in content["item_features"]
    assert ranking.request("GET", "/").status == 401


def test_health_needs_no_token(ranking: LiveServer) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/status/up"):
        assert ranking.request("GET", path).status == 200
    ready = ranking.request("GET", "/v2/health/ready")
    assert ranking.request("GET", "/status/up").body == ready.body
    assert ranking.request("GET", "/status/down").status == 404


def signature(path: str, body: bytes, token: str = tiny.TOKEN) -> dict[str, str]:
    headers = {
        "Content-MD5": hashlib.md5(body).hexdigest(),
        "Date": "Sat, 21 Nov 2026 19:03:18 GMT",
        "Content-Type": "application/octet-stream",
    }
    text = "\n".join(
        ["POST", headers["Content-MD5"], headers["Content-Type"], headers["Date"], path]
    )
    digest = hmac.new(token.encode(), text.encode(), hashlib.sha1).digest()
    return {**headers, "Authorization": "EAS " + base64.b64encode(digest).decode()}


def test_signed_requests(ranking: LiveServer) -> None:
    body = build(["item_0001"]).SerializeToString()
    for path in ("/api/predict/rank", "/api/predict/rank/v2/x?uid=11+68"):
        signed = signature(path, body)
        assert ranking.request("POST", path, body, signed).status == 200
        moved = ranking.request("POST", path + "x", body, signed)
        assert moved.status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "wrong"},
        {"Authorization": tiny.TOKEN + "x"},
        {"Authorization": tiny.TOKEN[:-1]},
        {"Authorization": "EAS AAAA"},
        {"Authorization": f"{tiny.TOKEN},{tiny.TOKEN}"},
        signature("/api/predict/rank", b"", token="other"),
    ],
)
def test_refused_authorizations_all_look_the_same(
    ranking: LiveServer, headers: dict[str, str]
) -> None:
    body = build(["item_0001"]).SerializeToString()
    answer = ranking.request("POST", "/api/predict/rank", body, headers)
    plain = ranking.request("POST", "/api/predict/rank", body)
    assert answer.status == plain.status == 401
    assert answer.body == plain.body
    assert tiny.TOKEN.encode() not in answer.body


def test_a_connection_survives_refused_requests(ranking: LiveServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", ranking.port, timeout=10)
    good = build(["item_0001"]).SerializeToString()
    path = "/api/predict/rank"
    for body, status in [(good, 200), (b"\xff", 400), (good, 200), (b"", 400)]:
        assert exchange(connection, "POST", path, body, AUTH).status == status
    connection.close()


def test_chunked_bodies(ranking: LiveServer) -> None:
    body = build(["item_0001", "item_0002"]).SerializeToString()
    connection = http.client.HTTPConnection("127.0.0.1", ranking.port, timeout=10)
    connection.request(
        "POST",
        "/api/predict/rank",
        iter([body[:10], body[10:]]),
        AUTH,
        encode_chunked=True,
    )
    response = connection.getresponse()
    assert response.status == 200
    assert PBResponse.FromString(response.read()).map_outputs
    connection.close()


def test_a_short_body_is_not_taken_for_a_whole_one(ranking: LiveServer) -> None:
    head = (
        "POST /api/predict/rank HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: {tiny.TOKEN}\r\nContent-Length: 100\r\n\r\n"
    )
    answer = ranking.raw(head.encode() + b"\x1a\x01x", half_close=True)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"3 of 100 bytes" in answer


def test_an_oversized_body_is_refused_unread(ranking: LiveServer) -> None:
    head = (
        "POST /api/predict/rank HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: {tiny.TOKEN}\r\nContent-Length: 99999999999999\r\n\r\n"
    )
    answer = ranking.raw(head.encode())
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
