"""A ranking export with every kind of tensor: untiled, INPUT_TILE 2 and 3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import exported
import numpy as np
import pytest
import torch
from export_features import ITEM_TYPES, RANKING, columns_of, item, user
from export_folders import FOREIGN, write_export
from export_networks import Din
from exported import assert_same, expected, item_ids, post, ranking_request, scores
from live import LiveServer

from procserver.fg import FeatureGenerator
from procserver.wire.pb.torchrec_predict_pb2 import PBResponse

TILES = {"din": 0, "din2": 2, "din3": 3}


@pytest.fixture(scope="module")
def din(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Three services with the same weights, exported in three ways."""
    folder = tmp_path_factory.mktemp("ranking")
    torch.manual_seed(21)
    first = Din(RANKING)
    exports, servers = {}, []
    for name, tile in TILES.items():
        model = Din(RANKING, tile=tile)
        model.load_state_dict(first.state_dict())
        acc = {"INPUT_TILE": str(tile)} if tile else {}
        exports[name] = write_export(folder / name / "export", model, RANKING, **acc)
        config = exported.service_json(folder / name, name, "export", items=True)
        # The environment's INPUT_TILE does not count beside what was recorded.
        servers.append(LiveServer(config, folder / f"{name}.log", workers=1))
    with exported.running(*servers) as running:
        yield SimpleNamespace(exports=exports, servers=running)


def test_the_generator_agrees_with_the_oracle(din: SimpleNamespace) -> None:
    generator = FeatureGenerator(din.exports["din"] / "fg.json")
    for number in range(4):
        fields, ids = user(number), item_ids(37, number)
        columns = columns_of(fields, [item(int(i[-4:])) for i in ids])
        ours = generator.transform(
            {
                name: exported.pa.array(values, exported.arrow_type(kind))
                for name, (kind, values) in columns.items()
            }
        )
        theirs = exported.tensors_of(RANKING, fields, ids)
        assert_same(ours, theirs)
        assert {n: a.dtype for n, a in ours.items()} == {
            n: a.dtype for n, a in theirs.items()
        }


@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("count", [1, 7, 300])
@pytest.mark.parametrize("number", [1, 3])
def test_scores_are_those_of_an_in_process_forward(
    din: SimpleNamespace, name: str, count: int, number: int
) -> None:
    fields, ids = user(number), item_ids(count, number)
    ours = scores(din.servers[name], ranking_request(fields, ids))
    tile = TILES[name] != 0
    theirs = expected(din.exports[name], RANKING, fields, ids, tile=tile)
    assert ours["probs"].shape == (count,)
    assert count == 1 or np.unique(ours["probs"]).size > 1
    assert_same(ours, theirs)


@pytest.mark.parametrize("count", [1, 300])
def test_a_tiled_export_scores_as_its_untiled_twin(
    din: SimpleNamespace, count: int
) -> None:
    request = ranking_request(user(2), item_ids(count))
    untiled = scores(din.servers["din"], request)
    for name in ("din2", "din3"):
        assert_same(scores(din.servers[name], request), untiled)


@pytest.mark.parametrize("name", TILES)
def test_item_features_of_the_request_instead_of_the_cache(
    din: SimpleNamespace, name: str
) -> None:
    fields, ids = user(2), item_ids(7)
    cached = scores(din.servers[name], ranking_request(fields, ids))
    brought = ranking_request(fields, ids, columns=ITEM_TYPES)
    assert_same(scores(din.servers[name], brought), cached)
    some = ranking_request(fields, ids, columns=["price", "tags"])
    assert_same(scores(din.servers[name], some), cached)
    del some.item_features["price"]
    for _ in ids:
        some.item_features["price"].features.add().double_feature = 1e5
    changed = scores(din.servers[name], some)
    assert (changed["logits"] != cached["logits"]).all()


@pytest.mark.parametrize("name", TILES)
def test_items_that_do_not_exist(din: SimpleNamespace, name: str) -> None:
    fields = user(2)
    ids = ["item_0003", "nobody", "item_0017", "", "item_0050"]
    answer = post(din.servers[name], ranking_request(fields, ids))
    ours = exported.outputs(answer)
    theirs = expected(din.exports[name], RANKING, fields, ids, tile=TILES[name] != 0)
    for output, values in theirs.items():
        values[[1, 3]] = exported.EMPTY_SCORE
        assert np.array_equal(ours[output], values)
    assert list(PBResponse.FromString(answer.body).item_ids) == ids
    nobody = scores(din.servers[name], ranking_request(fields, ["a", "b"]))
    assert nobody["probs"].tolist() == [exported.EMPTY_SCORE] * 2


@pytest.mark.parametrize("name", TILES)
def test_a_user_without_any_field(din: SimpleNamespace, name: str) -> None:
    """Every sequence is empty; the multi-value one would break the script."""
    ids = item_ids(7)
    ours = scores(din.servers[name], ranking_request({}, ids))
    tile = TILES[name] != 0
    assert_same(ours, expected(din.exports[name], RANKING, {}, ids, tile=tile))


def test_the_script_breaks_on_a_batch_of_empty_sequences(
    din: SimpleNamespace,
) -> None:
    tensors = exported.tensors_of(RANKING, user(1), item_ids(3))
    for name, array in tensors.items():
        if name.startswith("clicks__"):
            zeros = name.endswith(".lengths")
            tensors[name] = np.zeros_like(array) if zeros else array[:0]
    with pytest.raises(RuntimeError, match="Expected reduction dim"):
        exported.forward(din.exports["din"], tensors)


@pytest.mark.parametrize("name", TILES)
def test_an_empty_item_list(din: SimpleNamespace, name: str) -> None:
    ours = scores(din.servers[name], ranking_request(user(2), []))
    assert {key: value.shape for key, value in ours.items()} == {
        "logits": (0,),
        "probs": (0,),
    }


def test_nan_scores_pass_and_leave_their_neighbours_alone(
    din: SimpleNamespace,
) -> None:
    fields, ids = user(2), item_ids(5)
    for name in TILES:
        plain = scores(din.servers[name], ranking_request(fields, ids))
        request = ranking_request(fields, ids, columns=["vector"])
        vector = request.item_features["vector"].features[2].float_list
        vector.features[:] = [0.5, float("nan"), 0.5, 0.5]
        ours = scores(din.servers[name], request)
        others = [0, 1, 3, 4]
        for output, values in ours.items():
            assert np.isnan(values[2])
            assert np.array_equal(values[others], plain[output][others])


def test_the_folder_is_moved_and_its_absolute_paths_do_not_matter(
    din: SimpleNamespace,
) -> None:
    assert not Path(FOREIGN).exists()
    for export in din.exports.values():
        assert FOREIGN in (export / "pipeline.config").read_text()
        assert len(list(export.glob("city_vocab_*.txt"))) == 1
