"""Texts of error answers."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from procserver import errors
from procserver.wire.pb import torch_predict_pb2, torchrec_predict_pb2
from procserver.wire.refusal import error_body, refusal

MESSAGES = (
    torch_predict_pb2.PredictRequest,
    torch_predict_pb2.PredictResponse,
    torchrec_predict_pb2.PBRequest,
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


HOSTILE = st.one_of(
    st.text(),
    st.text("[]\\\0\\\u0700\u071c\u05dc\\ \x1c\x7f"),
    st.binary().map(lambda data: data.decode("latin-1")),
    st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")),
)


@pytest.mark.parametrize("code", CODES)
@given(HOSTILE)
def test_no_class_of_error_can_be_made_to_parse(code: str, message: str) -> None:
    body = error_body(code, message)
    assert body.startswith(f"[{code}] ".encode())
    for kind in MESSAGES:
        with pytest.raises(DecodeError):
            kind.FromString(body)


@pytest.mark.parametrize("status", [400, 401, 404, 405, 408, 413, 429, 450, 500, 503])
def test_refusals_of_the_parser_are_whole_answers(status: int) -> None:
    head, _, body = refusal(status, "bad_http", "a\r\nb\\").partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0].startswith(f"HTTP/1.1 {status} ".encode())
    assert f"Content-Length: {len(body)}".encode() in lines
    assert b"Connection: close" in lines
    assert body == b"[bad_http] a//b/"
    for kind in MESSAGES:
        with pytest.raises(DecodeError):
            kind.FromString(body)
