"""``PBLogData``: a saved request with its features."""

from __future__ import annotations

from collections.abc import Mapping

from procserver.wire.pb.torchrec_predict_pb2 import PBLogData

_REQUEST = 1 << 3 | 2
_DEBUG_LEVEL = 1 << 3
# Below every debug level that is saved, above every dtype of any version.
_GREATEST_DTYPE = bytes([31])
_FIELDS = (_REQUEST, 2 << 3 | 2, 3 << 3 | 2)


def encode(
    body: bytes, raw_features: Mapping[str, str], generate_features: Mapping[str, str]
) -> bytes:
    """A ``PBLogData`` around the request as it was received.

    :param body: a valid ``PBRequest``; it is embedded byte for byte
    :param raw_features: what item-side features were made of, by item id
    :param generate_features: what was made of it, by item id
    """
    features = PBLogData(
        raw_features=raw_features, generate_features=generate_features
    ).SerializeToString()
    head = bytes([_REQUEST]) + _varint(len(body))
    return b"".join((head, body, features))


def request_body(content: bytes) -> bytes | None:
    """The request that a ``PBLogData`` holds; None: this is another message.

    A ``PBLogData`` has one request, first of all, and nothing but entries of features
    behind it; the request begins with its debug level (100, as a rule).

    NOTE: a ``PredictRequest`` of positional tensors has the same fields in the same
    place, but an ``ArrayProto`` begins with its dtype, a small number.
    """
    place = 0
    request: bytes | None = None
    while place < len(content):
        field = _take(content, place)
        if field is None:
            return None
        tag, start, place = field
        if tag not in _FIELDS or (tag == _REQUEST) != (request is None):
            return None
        if tag == _REQUEST:
            request = content[start:place]
    if not request or request[0] != _DEBUG_LEVEL or request[1:2] <= _GREATEST_DTYPE:
        return None
    return request


def without_debug_level(body: bytes) -> bytes:
    """The same ``PBRequest`` at debug level 0: the last value of a field counts."""
    return body + bytes([_DEBUG_LEVEL, 0])


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _take(content: bytes, place: int) -> tuple[int, int, int] | None:
    """(tag, start, end) of the length-delimited field at ``place``."""
    tag = content[place]
    length, shift, start = 0, 0, place + 1
    while start < len(content) and shift < 35:
        byte = content[start]
        length |= (byte & 0x7F) << shift
        start += 1
        shift += 7
        if byte < 0x80:
            end = start + length
            return (tag, start, end) if end <= len(content) else None
    return None
