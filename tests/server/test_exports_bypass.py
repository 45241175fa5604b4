"""Exports fed with tensors (``fg_mode: bypass``), right and wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import exported
import numpy as np
import pytest
import torch
from export_features import RANKING, columns_of, index_of, item, user
from export_folders import write_export
from export_networks import Din
from exported import assert_same, item_ids, map_request, post, scores
from live import Answer, LiveServer

from procserver.fg import FeatureGenerator
from procserver.wire.pb.torch_predict_pb2 import PredictRequest, PredictResponse

TILES = {"bypass": 0, "bypass2": 2, "bypass3": 3}
SOURCE = (b"forward", b"Traceback", b"eval_with_key", b"torch.", b".py", b"HERE", b"~~")

Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def bypass(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("bypass")
    torch.manual_seed(41)
    first = Din(RANKING)
    exports, servers = {}, []
    for name, tile in TILES.items():
        model = Din(RANKING, tile=tile)
        model.load_state_dict(first.state_dict())
        acc = {"INPUT_TILE": str(tile)} if tile else {}
        exports[name] = write_export(folder / name / "export", model, RANKING, **acc)
        config = exported.service_json(
            folder / name, name, "export", model_config={"fg_mode": "bypass"}
        )
        servers.append(LiveServer(config, folder / f"{name}.log", workers=1))
    with exported.running(*servers) as running:
        yield SimpleNamespace(exports=exports, servers=running)


def generated(export_name: str, bypass: SimpleNamespace, count: int) -> Tensors:
    """What a client with the offline generator sends: no oracle here."""
    generator = FeatureGenerator(bypass.exports[export_name] / "fg.json")
    rows = [item(index_of(i)) for i in item_ids(count)]
    columns = {
        name: exported.pa.array(values, exported.arrow_type(kind))
        for name, (kind, values) in columns_of(user(2), rows).items()
    }
    return generator.transform(columns)


@pytest.mark.parametrize("count", [1, 7, 300])
def test_tensors_of_the_offline_generator(bypass: SimpleNamespace, count: int) -> None:
    tensors = generated("bypass", bypass, count)
    theirs = exported.forward(bypass.exports["bypass"], tensors)
    assert_same(scores(bypass.servers["bypass"], map_request(tensors)), theirs)
    assert theirs["probs"].shape == (count,)


@pytest.mark.parametrize("name", ["bypass2", "bypass3"])
@pytest.mark.parametrize("count", [1, 7, 300])
def test_one_user_row_and_a_batch_size(
    bypass: SimpleNamespace, name: str, count: int
) -> None:
    tensors = exported.tensors_of(RANKING, user(2), item_ids(count), tile=True)
    assert tensors["user_id.lengths"].shape == (1,)
    ours = scores(bypass.servers[name], map_request(tensors))
    assert_same(ours, exported.forward(bypass.exports[name], tensors))
    # The same rows untiled.
    plain = exported.tensors_of(RANKING, user(2), item_ids(count))
    assert_same(ours, scores(bypass.servers["bypass"], map_request(plain)))
    # A batch size of one dimension is taken as well.
    tensors["batch_size"] = tensors["batch_size"].reshape(1)
    assert_same(scores(bypass.servers[name], map_request(tensors)), ours)


def test_tensors_that_no_feature_names_do_not_matter(
    bypass: SimpleNamespace,
) -> None:
    tensors = generated("bypass", bypass, 3)
    plain = scores(bypass.servers["bypass"], map_request(tensors))
    tensors["tags.weights"] = np.ones(tensors["tags.values"].size, np.float32)
    tensors["something"] = np.zeros((2, 2), np.float32)
    assert_same(scores(bypass.servers["bypass"], map_request(tensors)), plain)


@pytest.mark.parametrize(
    "name",
    ["price.values", "clicks__tags.key_lengths", "interests.weights", "home.values"],
)
def test_a_missing_tensor_is_named(bypass: SimpleNamespace, name: str) -> None:
    tensors = generated("bypass", bypass, 3)
    del tensors[name]
    assert_refused(bypass, tensors, name)


def test_a_missing_batch_size_is_named(bypass: SimpleNamespace) -> None:
    tensors = exported.tensors_of(RANKING, user(2), item_ids(3), tile=True)
    del tensors["batch_size"]
    answer = post(bypass.servers["bypass3"], map_request(tensors))
    assert answer.status == 400
    assert b"batch_size" in answer.body


WRONG: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "doubles for floats": ("vector.values", lambda a: a.astype(np.float64)),
    "doubles in a sequence": ("clicks__price.values", lambda a: a.astype(np.float64)),
    "floats for ids": ("user_id.values", lambda a: a.astype(np.float32)),
    "floats for lengths": ("tags.lengths", lambda a: a.astype(np.float32)),
    "numbers without a width": ("price.values", lambda a: a.reshape(-1)),
    "a wrong width": ("vector.values", lambda a: a[:, :3]),
    "a row too few": ("price.values", lambda a: a[:-1]),
    "a length too few": ("category.lengths", lambda a: a[:-1]),
    "a value too many": ("category.values", lambda a: np.append(a, a[:1])),
    "a weight too few": ("interests.weights", lambda a: a[:-1]),
    "a step too few": ("clicks__price.values", lambda a: a[:-1]),
    "other lengths": ("clicks__tags.key_lengths", lambda a: a + 1),
    "a negative length": ("tags.lengths", lambda a: a * -1),
    "nested ids": ("user_id.values", lambda a: a.reshape(-1, 1)),
    "an id beyond its table": ("user_id.values", lambda a: a + 1000),
    "a negative id": ("category.values", lambda a: a * 0 - 3),
    "a huge id": ("tags.values", lambda a: a + 2**62),
    "an id beyond its table in a sequence": (
        "clicks__item_id.values",
        lambda a: np.where(np.arange(a.size) == 1, 500, a),
    ),
    "an id beyond its table in a multi-value sequence": (
        "clicks__tags.values",
        lambda a: np.where(np.arange(a.size) == 2, 100, a),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors_are_refused_by_name(bypass: SimpleNamespace, case: str) -> None:
    tensors = generated("bypass", bypass, 3)
    name, spoil = WRONG[case]
    tensors[name] = spoil(tensors[name])
    assert_refused(bypass, tensors, name)


def test_nothing_at_all(bypass: SimpleNamespace) -> None:
    answer = post(bypass.servers["bypass"], PredictRequest())
    assert answer.status == 400
    assert_no_source(answer)


def test_nan_passes_and_leaves_its_neighbours_alone(
    bypass: SimpleNamespace,
) -> None:
    tensors = generated("bypass", bypass, 5)
    plain = scores(bypass.servers["bypass"], map_request(tensors))
    tensors["price.values"][3] = np.nan
    ours = scores(bypass.servers["bypass"], map_request(tensors))
    for name, values in ours.items():
        assert np.isnan(values[3])
        assert np.array_equal(np.delete(values, 3), np.delete(plain[name], 3))


def test_concurrent_neighbours_of_wrong_requests_are_unharmed(
    bypass: SimpleNamespace,
) -> None:
    server = bypass.servers["bypass"]
    tensors = generated("bypass", bypass, 7)
    good = map_request(tensors)
    theirs = exported.forward(bypass.exports["bypass"], tensors)
    wrong = []
    for name, spoil in WRONG.values():
        wrong.append(map_request({**tensors, name: spoil(tensors[name])}))
    mixed = [request for bad in wrong for request in (bad, good)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda request: post(server, request), mixed))
    for request, answer in zip(mixed, answers, strict=True):
        if request is good:
            assert_same(exported.outputs(answer, PredictResponse), theirs)
        else:
            assert answer.status == 400
            assert_no_source(answer)


def assert_refused(
    bypass: SimpleNamespace, tensors: Mapping[str, np.ndarray], name: str
) -> None:
    """400 that names the tensor; the next request is answered."""
    server = bypass.servers["bypass"]
    answer = post(server, map_request(tensors))
    assert answer.status == 400, answer.body
    assert name.encode() in answer.body, answer.body
    assert_no_source(answer)
    good = generated("bypass", bypass, 1)
    assert post(server, map_request(good)).status == 200


def assert_no_source(answer: Answer) -> None:
    assert not [word for word in SOURCE if word in answer.body], answer.body
    assert len(answer.body) < 1000
