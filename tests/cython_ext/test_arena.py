"""``arena``: what it reserves, seen through the decoder that fills one."""

import pytest

from cython_ext.arena import Arena
from procserver.wire import torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest


def test_an_arena_starts_empty():
    assert Arena().nbytes == 0


@pytest.mark.parametrize("size", [1, 63, 64, 65, 65_535, 65_536, 65_537, 300_000])
def test_allocations_of_every_size_hold_their_data(size):
    # Small and large blocks in turn, so that large ones go behind the current.
    message = PBRequest(item_ids=["i" * 10] * 10)
    for i in range(9):
        text = chr(97 + i) * (size if i % 2 else 10)
        message.user_features[f"u{i}"].string_feature = text
    request = torchrec.decode(message.SerializeToString())
    for i in range(9):
        expected = chr(97 + i) * (size if i % 2 else 10)
        assert request.user[f"u{i}"].to_pylist() == [expected]
    assert request.item_ids.to_pylist() == ["i" * 10] * 10


def test_many_blocks():
    message = PBRequest()
    for i in range(3000):
        message.user_features[f"u{i}"].double_list.features.extend([i] * (i % 100))
    request = torchrec.decode(message.SerializeToString())
    for i in range(3000):
        assert request.user[f"u{i}"].to_pylist() == [[i] * (i % 100)]
