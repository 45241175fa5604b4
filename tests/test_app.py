"""Texts of error answers."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from procserver import errors
from procserver.app import error_body
from procserver.wire.pb import torch_predict_pb2, torchrec_predict_pb2

MESSAGES = (
    torch_predict_pb2.PredictResponse,
    torchrec_predict_pb2.PBResponse,
    torch_predict_pb2.ArrayProto,
    torchrec_predict_pb2.PBFeature,
)
CODES = sorted(
    {
        kind.code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RequestError)
    }
)


@given(st.sampled_from(CODES), st.text())
def test_no_error_text_parses_as_protobuf(code: str, message: str) -> None:
    body = error_body(code, message)
    assert body
    for kind in MESSAGES:
        with pytest.raises(DecodeError):
            kind.FromString(body)


@pytest.mark.parametrize("closing", ["\\", "x\\", "\u0700\0", "\\\\\\", "b\x00\\"])
def test_the_opening_group_cannot_be_closed(closing: str) -> None:
    for kind in MESSAGES:
        with pytest.raises(DecodeError):
            kind.FromString(error_body("bad_request", closing))


def test_names_in_messages_stay_readable() -> None:
    text = error_body("bad_feature", "user_features['年龄']: 2 values").decode()
    assert text == "[bad_feature] user_features['年龄']: 2 values"
