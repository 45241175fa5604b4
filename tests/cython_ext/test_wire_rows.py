"""``wire_rows``: plain columns, and rows that break their pattern, against upb."""

import pytest
from google.protobuf.message import DecodeError

from procserver.errors import Undecodable
from procserver.wire import torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest
from tests.reference.wire_cases import agree, rows
from tests.reference.wire_noise import length, tag

SCALARS = {
    "int_feature": [0, 1, -1, 2**31 - 1, -(2**31), 127, 128],
    "long_feature": [0, -1, 2**63 - 1, -(2**63), 2**35],
    "string_feature": ["", "a", "x" * 15, "y" * 16, "z" * 17, "w" * 126, "é" * 70],
    "float_feature": [0.0, -1.5],
    "double_feature": [0.0, -1.5e300],
}


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_plain_columns_and_what_breaks_their_pattern(name, n):
    message = PBRequest()
    features = message.item_features["x"].features
    for i in range(n):
        setattr(features.add(), name, SCALARS[name][i % len(SCALARS[name])])
    agree(message.SerializeToString())
    # One odd row, first, last or between: unset, blank, or with unknown fields.
    plain = [f.SerializeToString() for f in features]
    unknown = tag(99, 0) + b"\x01"
    for at in {0, n // 2, n}:
        for odd in (b"", length(3, b""), plain[0] + unknown, plain[0] + plain[-1],
                    unknown, unknown + plain[0]):  # fmt: skip
            agree(rows(*plain[:at], odd, *plain[at:]))
    body = rows(*plain)
    for end in range(4, len(body), max(1, len(body) // 100)):
        broken = length(4, b"\x0a\x01x" + length(2, body[6:end]))
        try:
            PBRequest.FromString(broken)
        except DecodeError:
            with pytest.raises(Undecodable):
                torchrec.decode(broken)
        else:
            agree(broken)
