"""Debug levels over HTTP: what is where in the answer, in the log, on disk."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from google.protobuf.message import DecodeError
from live import Answer, LiveServer, exchange
from test_ranking import CLICKS, build, columns_of, scores

from procserver.fg import FeatureGenerator
from procserver.wire.pb import torch_predict_pb2
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest, PBResponse

AUTH = {"Authorization": tiny.TOKEN}
ITEMS = ["item_0001", "nobody", "item_0017", "item_0003"]
POSITIONS = [0, 1, 2, 3]
KNOWN = (1, 2, 3, 100, 102, 903, 904)
UNKNOWN = (-1, 4, 99, 101, 905, 2**31 - 1)


def post(server: LiveServer, request: Any) -> Answer:
    path = f"/api/predict/{server.name}"
    return server.request("POST", path, request.SerializeToString(), AUTH)


def at(level: int, items: list[str] = ITEMS, **more: Any) -> PBRequest:
    request = build(items, **more)
    request.debug_level = level
    request.meta_data["request_id"] = f"at-{level}"
    return request


def answered(server: LiveServer, request: PBRequest) -> PBResponse:
    answer = post(server, request)
    assert answer.status == 200, answer.body
    return PBResponse.FromString(answer.body)


def logged(server: LiveServer, title: str, since: int) -> list[dict[str, Any]]:
    """Entries of one kind in the service's log, from a place on."""
    lines = [line for line in server.text()[since:].splitlines() if title in line]
    return [json.loads(line.partition(title)[2]) for line in lines]


def generator(server: LiveServer) -> FeatureGenerator:
    return FeatureGenerator(server.config.parent / "export" / "fg.json")


@pytest.fixture(scope="module")
def debugged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("debug")
    config = tiny.write(
        folder,
        "debug",
        model_config={"request_log_path": str(folder / "log")},
        procserver={
            "pass_through_data": {
                "model.name": "排序",
                "served": "v={model_version}",
                "n": 3,
            }
        },
    )
    server = LiveServer(config, folder / "server.log", workers=1).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("lenient")
    config = tiny.write(folder, "lenient", procserver={"strict_debug_keys": False})
    server = LiveServer(config, folder / "server.log", workers=1).start()
    yield server
    server.stop()


def test_level_0_is_scores_alone(debugged: LiveServer) -> None:
    plain = answered(debugged, at(0))
    assert sorted(plain.map_outputs) == ["probs_ctr", "probs_cvr"]
    assert not plain.raw_features
    assert not plain.generate_features
    assert list(plain.item_ids) == ITEMS


@pytest.mark.parametrize("level", UNKNOWN)
def test_levels_without_meaning_count_as_0(debugged: LiveServer, level: int) -> None:
    assert post(debugged, at(level)).body == post(debugged, at(0)).body


def test_generated_features_are_those_of_the_offline_dump(
    debugged: LiveServer,
) -> None:
    """Items that are not in the cache included: they have their defaults."""
    fg = generator(debugged)
    lines = fg.dump(fg.transform(columns_of(ITEMS, POSITIONS)))
    expected = dict(zip(ITEMS, lines, strict=True))
    for level in (1, 2):
        assert dict(answered(debugged, at(level)).generate_features) == expected
    nobody = dict(part.split(":", 1) for part in expected["nobody"].split(" | "))
    assert nobody["price"] == "0.0"
    assert nobody["position"] == "1"


def test_raw_features_are_what_was_sent_and_what_the_cache_holds(
    debugged: LiveServer,
) -> None:
    for level in (1, 2):
        raw = answered(debugged, at(level)).raw_features
        assert set(raw) == set(ITEMS)
        pairs = dict(part.split(":", 1) for part in raw["item_0003"].split(" | "))
        row = tiny.item(3)
        assert pairs["user_id"] == "u001d"
        assert pairs["age"] == "44"
        assert pairs["city"] == "杭州"
        assert pairs["category"] == row["category"]
        assert pairs["price"] == str(row["price"])
        assert pairs["vector"] == ",".join(map(str, row["vector"]))
        assert pairs["position"] == "3"
        clicked = [tiny.item(int(i[-4:])) if i != "gone" else {} for i in CLICKS]
        prices = [str(one["price"]) if one else "" for one in clicked]
        assert pairs["clicks__price"] == ",".join(prices)
        assert "category: | price: | vector: | position:1" in raw["nobody"]


def test_level_1_makes_no_prediction(debugged: LiveServer) -> None:
    response = answered(debugged, at(1))
    assert not response.map_outputs
    assert list(response.item_ids) == ITEMS


def test_level_2_adds_the_scores_and_nothing_else_to_the_outputs(
    debugged: LiveServer,
) -> None:
    place = len(debugged.text())
    both = scores(post(debugged, at(2)))
    plain = scores(post(debugged, at(0)))
    assert both.keys() == plain.keys()
    for name, values in plain.items():
        assert values.shape == (len(ITEMS),)
        assert np.array_equal(values, both[name])
    (entry,) = logged(debugged, "input tensors ", place)
    assert entry["request_id"] == "at-2"
    assert entry["tensors"]["vector.values"] == "float32[4, 4]"
    assert entry["tensors"]["category.lengths"] == "int32[4]"
    # Names and shapes alone: values are features of people.
    assert "u001d" not in debugged.text()[place:]


def test_level_3_is_a_table(debugged: LiveServer) -> None:
    response = answered(debugged, at(3))
    assert not response.map_outputs
    assert not response.raw_features
    assert set(response.generate_features) == set(ITEMS)
    named = answered(debugged, at(1)).generate_features
    for item, text in response.generate_features.items():
        fields = text.split("\x02")
        pairs = [part.split(":", 1)[1] for part in named[item].split(" | ")]
        assert len(fields) == len(pairs) == 9
        assert [field.replace("\x03", ",") for field in fields] == pairs
    vector = response.generate_features["item_0003"].split("\x02")[4]
    assert vector == "\x03".join(["1.0", "-0.6", "0.25", "1.0"])


def test_level_100_answers_as_level_0(debugged: LiveServer) -> None:
    assert post(debugged, at(100)).body == post(debugged, at(0)).body


def test_level_102_is_for_recall(debugged: LiveServer) -> None:
    answer = post(debugged, at(102))
    assert answer.status == 400
    assert b"debug level 102 asks for recall" in answer.body


def test_level_903_logs_the_time_of_each_stage(debugged: LiveServer) -> None:
    place = len(debugged.text())
    assert post(debugged, at(903)).body == post(debugged, at(0)).body
    (entry,) = logged(debugged, "request times ", place)
    assert (entry["request_id"], entry["items"], entry["missing"]) == ("at-903", 4, 1)
    assert list(entry["ms"]) == [
        *("total", "receive", "queue", "decode", "gather", "generate", "run", "encode"),
    ]


def test_level_904_logs_missing_fields(debugged: LiveServer) -> None:
    place = len(debugged.text())
    assert post(debugged, at(904)).body == post(debugged, at(0)).body
    (entry,) = logged(debugged, "missing fields ", place)
    assert entry["fields"] == {
        "user_features": [],
        "item_features": [],
        "context_features": [],
    }
    request = at(904)
    del request.user_features["age"]
    del request.user_features["clicks"]
    request.user_features["city"].Clear()
    del request.context_features["position"]
    place = len(debugged.text())
    assert post(debugged, request).status == 200
    (entry,) = logged(debugged, "missing fields ", place)
    assert (entry["request_id"], entry["items"], entry["missing"]) == ("at-904", 4, 1)
    assert entry["fields"] == {
        "user_features": ["age", "city", "clicks__category", "clicks__price"],
        "item_features": [],
        "context_features": ["position"],
    }


@pytest.mark.parametrize("level", [1, 2, 3, 904])
def test_unknown_keys_are_refused_by_name(debugged: LiveServer, level: int) -> None:
    request = at(level)
    request.user_features["agee"].int_feature = 1
    request.item_features["prize"].features.add().double_feature = 2
    request.context_features["posi\\tion"].features.add().int_feature = 3
    answer = post(debugged, request)
    assert answer.status == 400
    for name in (b"user_features: 'agee'", b"item_features: 'prize'", b"context"):
        assert name in answer.body
    with pytest.raises(DecodeError):
        PBResponse.FromString(answer.body)
    request.debug_level = 0
    assert post(debugged, request).status == 200


def test_a_long_list_of_unknown_keys_is_cut(debugged: LiveServer) -> None:
    request = at(1)
    for number in range(1000):
        request.user_features[f"{number:04d}" + "x" * 1000].int_feature = 1
    answer = post(debugged, request)
    assert answer.status == 400
    assert b"and 990 more" in answer.body
    assert len(answer.body) < 2000


def test_engines_that_send_all_they_know(lenient: LiveServer) -> None:
    request = at(3)
    request.user_features["agee"].int_feature = 1
    place = len(lenient.text())
    told = answered(lenient, request).generate_features
    assert told == answered(lenient, at(3)).generate_features
    assert answered(lenient, request).generate_features == told
    # Once, not for every request.
    assert lenient.text()[place:].count("unknown keys in user_features: 'agee'") == 1


@pytest.mark.parametrize("level", [0, 1, 2, 3, 904])
def test_shapes_are_refused_by_name(debugged: LiveServer, level: int) -> None:
    answer = post(debugged, at(level, positions=[1, 2, 3]))
    assert answer.status == 400
    assert b"'position'" in answer.body
    assert b"3 values for 4 items" in answer.body
    # One value is for all, surplus is what the vendor's own example sends.
    assert post(debugged, at(level, positions=[1])).status == 200
    assert post(debugged, at(level, positions=[1] * 5)).status == 200


def test_of_repeated_items_the_last_row_is_shown(debugged: LiveServer) -> None:
    twice = ["item_0001", "item_0002", "item_0001"]
    response = answered(debugged, at(2, twice))
    assert set(response.generate_features) == set(response.raw_features) == set(twice)
    assert "position:2" in response.generate_features["item_0001"]
    assert response.raw_features["item_0001"].count("position:2") == 1
    for array in response.map_outputs.values():
        assert len(array.float_val) == 3


@pytest.mark.parametrize("level", [1, 2, 3])
def test_item_features_of_the_request_are_shown(
    debugged: LiveServer, level: int
) -> None:
    request = at(level, ["item_0001", "item_0002"])
    for price in (1.0, 900.5):
        request.item_features["price"].features.add().double_feature = price
    response = answered(debugged, request)
    assert "900.5" in response.generate_features["item_0002"]
    if level != 3:
        assert "price:900.5" in response.raw_features["item_0002"].split(" | ")


@pytest.mark.parametrize("level", KNOWN[:4])
def test_no_items(debugged: LiveServer, level: int) -> None:
    response = answered(debugged, at(level, []))
    assert not response.raw_features
    assert not response.generate_features
    assert len(response.map_outputs) == (0 if level in (1, 3) else 2)


@pytest.mark.parametrize("level", [0, 1, 2, 3, 100, 903, 904])
def test_what_is_passed_through(debugged: LiveServer, level: int) -> None:
    answer = post(debugged, at(level))
    assert dict(PBResponse.FromString(answer.body).pass_through_data) == {
        "model.name": "排序",
        "served": f"v={answer.headers['x-model-version']}",
        "n": "3",
    }


# ------------------------------------------------------------------- allow_debug


@pytest.mark.parametrize(
    ("token", "switch", "allowed"),
    [
        (None, None, False),
        (None, True, True),
        (tiny.TOKEN, False, False),
    ],
)
def test_who_may_debug(
    tmp_path: Path,
    launch: Callable[..., LiveServer],
    token: str | None,
    switch: bool | None,
    allowed: bool,
) -> None:
    config = tiny.write(
        tmp_path,
        "who",
        token=token,
        model_config={"request_log_path": str(tmp_path / "log")},
        procserver={} if switch is None else {"allow_debug": switch},
    )
    server = launch(config, workers=1).start()
    plain = post(server, at(0))
    assert plain.status == 200
    # A connection is kept for whoever was refused.
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for level in KNOWN:
        answer = exchange(
            connection,
            "POST",
            f"/api/predict/{server.name}",
            at(level).SerializeToString(),
            AUTH,
        )
        refused = not allowed or level == 102
        assert answer.status == (400 if refused else 200), level
        if not allowed:
            assert f"debug level {level} is not answered here".encode() in answer.body
            assert b"allow_debug" in answer.body
    connection.close()
    for level in UNKNOWN:
        assert post(server, at(level)).body == plain.body
    server.stop()
    assert len(list((tmp_path / "log").rglob("*.pb"))) == allowed


def tensors_at(level: int) -> torch_predict_pb2.PredictRequest:
    request = torch_predict_pb2.PredictRequest(debug_level=level)
    for shape, values in (([2, 3], [1] * 6), ([2], [2, 3])):
        array = request.inputs.add(dtype=torch_predict_pb2.DT_FLOAT)
        array.array_shape.dim.extend(shape)
        array.float_val.extend(values)
    return request


def test_tensor_requests(tmp_path: Path, launch: Callable[..., LiveServer]) -> None:
    server = launch(tiny.write_bypass(tmp_path, "bare-debug"), workers=1).start()
    plain = post(server, tensors_at(0))
    assert plain.status == 200
    for level in (*KNOWN, *UNKNOWN):
        place = len(server.text())
        assert post(server, tensors_at(level)).body == plain.body
        entries = logged(server, "request times ", place)
        assert len(entries) == (level == 903)
        if entries:
            assert list(entries[0]["ms"]) == [
                *("total", "receive", "queue", "decode", "run", "encode"),
            ]
            assert entries[0]["debug_level"] == 903
    server.stop()
    assert len(list((tmp_path / "state" / "request_log").rglob("*.pb"))) == 1


def test_tensor_requests_where_no_level_is_answered(
    tmp_path: Path, launch: Callable[..., LiveServer]
) -> None:
    config = tiny.write_bypass(tmp_path, "bare-open", token=None)
    server = launch(config, workers=1).start()
    plain = post(server, tensors_at(0))
    assert plain.status == 200
    for level in KNOWN:
        answer = post(server, tensors_at(level))
        assert answer.status == 400
        assert b"allow_debug" in answer.body
    for level in UNKNOWN:
        assert post(server, tensors_at(level)).body == plain.body
    server.stop()
    assert list(tmp_path.rglob("*.pb")) == []
