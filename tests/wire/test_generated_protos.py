"""Which protobuf runtimes can import the generated modules."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from procserver.wire.pb import (
    easyrec_predict_pb2,
    tensorflow_predict_pb2,
    torch_predict_pb2,
    torchrec_predict_pb2,
)


@pytest.mark.parametrize(
    "module",
    [
        easyrec_predict_pb2,
        tensorflow_predict_pb2,
        torch_predict_pb2,
        torchrec_predict_pb2,
    ],
)
def test_the_oldest_supported_runtime_is_6_31_0(module: object) -> None:
    spec = find_spec(module.__name__)  # type: ignore[attr-defined]
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text()
    found = re.search(r"Domain\.PUBLIC,\s*(\d+),\s*(\d+),\s*(\d+),", text)
    assert found is not None
    assert tuple(map(int, found.groups())) <= (6, 31, 0)
