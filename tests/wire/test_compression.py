"""Compressed bodies: every format, damaged, cut, continued, bombs."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procserver.errors import BadRequest, RequestError, TooLarge
from procserver.wire.compression import decompress
from procserver.wire.pb import torch_predict_pb2, torchrec_predict_pb2
from tests.reference.wire_compressed import COMPRESS

LIMIT = 4 << 20
BODIES = Path(__file__).parent.parent / "data" / "captures" / "bodies"
PLAIN = (BODIES / "java_001_torch.bin").read_bytes()


def lz4_block(data: bytes) -> bytes:
    return bytes(cramjam.lz4.compress_block(data, store_size=False))


FORMATS = sorted(COMPRESS)
FRAMED = [name for name in FORMATS if name != "snappy"]


def message(size: int) -> bytes:
    request = torch_predict_pb2.PredictRequest()
    array = request.inputs.add(dtype=1)
    array.float_val.extend([i / 7 for i in range(size)])
    array.array_shape.dim.append(size)
    return request.SerializeToString()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [0, 1, 10, 1000, 100_000])
def test_every_format_is_recognised(name: str, size: int) -> None:
    plain = message(size)
    for kind in (bytes, bytearray, memoryview):
        body = kind(COMPRESS[name](plain))
        assert bytes(decompress(body, LIMIT)) == plain
        assert bytes(decompress(body, LIMIT, name)) == plain
        assert bytes(decompress(kind(plain), LIMIT)) == plain


def test_plain_bodies_are_not_copied() -> None:
    body = memoryview(message(100_000))
    assert decompress(body, LIMIT) is body


@pytest.mark.parametrize("path", sorted(BODIES.glob("*")), ids=lambda p: p.name)
def test_recorded_bodies(path: Path) -> None:
    body = path.read_bytes()
    wrapped = {
        "java_013_torch_snappy.bin",
        *(f"java_0{n}_torch.bin" for n in ("07", "08", "09", "10", "12")),
        "java_016_torch_enc_snappy.bin",
        "java_014_torch_enc_gzip.bin",
        "java_015_torch_enc_zlib.bin",
        "python_003_torch.bin",
    }
    if path.name == "java_011_torch.bin":
        assert decompress(body, LIMIT) == body
        assert bytes(decompress(body, LIMIT, "lz4")) == PLAIN
        return
    out = bytes(decompress(body, LIMIT))
    if out != body:
        assert path.name in wrapped
        assert out == PLAIN
    elif "_torch." in path.name and "java" in path.name:
        assert torch_predict_pb2.PredictRequest.FromString(body).inputs


def test_a_block_of_lz4_has_to_be_announced() -> None:
    plain = message(3000)
    body = lz4_block(plain)
    assert bytes(decompress(body, LIMIT, "lz4")) == plain
    zeros = bytes(3 << 20)
    assert bytes(decompress(lz4_block(zeros), LIMIT, "lz4")) == zeros
    with pytest.raises(BadRequest):
        decompress(lz4_block(bytes(5 << 20)), LIMIT, "lz4")
    with pytest.raises(BadRequest):
        decompress(body[:-3], LIMIT, "lz4")


@pytest.mark.parametrize("name", FORMATS)
def test_bodies_in_another_format_than_configured(name: str) -> None:
    for other in FORMATS:
        if other != name:
            with pytest.raises(BadRequest, match=name):
                decompress(COMPRESS[other](message(100)), LIMIT, name)
    with pytest.raises(BadRequest, match=name):
        decompress(message(100), LIMIT, name)
    with pytest.raises(BadRequest):
        decompress(b"", LIMIT, name)


@pytest.mark.parametrize("name", FRAMED)
@pytest.mark.parametrize("configured", [False, True])
def test_cut_and_continued_bodies(name: str, configured: bool) -> None:
    body = COMPRESS[name](message(1000))
    told = name if configured else None
    for end in (len(body) - 1, len(body) - 5, len(body) // 2, 8):
        with pytest.raises(BadRequest, match=name):
            decompress(body[:end], LIMIT, told)
    for more in (b"x", b"\0" * 20, b"garbage"):
        with pytest.raises(BadRequest, match=name):
            decompress(body + more, LIMIT, told)


def test_snappy_that_is_damaged_is_a_plain_body_or_refused() -> None:
    body = COMPRESS["snappy"](message(1000))
    for damaged in (body[:-1], body + b"x"):
        assert decompress(damaged, LIMIT) == damaged
        with pytest.raises(BadRequest, match="snappy"):
            decompress(damaged, LIMIT, "snappy")


def test_members_of_gzip_are_joined() -> None:
    first, second = message(1000), message(10)
    body = gzip.compress(first) + gzip.compress(second)
    assert decompress(body, LIMIT) == first + second
    assert decompress(gzip.compress(b"") * 16, LIMIT) == b""
    with pytest.raises(BadRequest, match="16 members"):
        decompress(gzip.compress(b"") * 17, LIMIT)
    half = gzip.compress(bytes(LIMIT // 2 + 1))
    with pytest.raises(TooLarge):
        decompress(half * 2, LIMIT)


@pytest.mark.parametrize("name", FORMATS)
def test_the_limit_is_on_the_message(name: str) -> None:
    assert len(decompress(COMPRESS[name](bytes(LIMIT)), LIMIT)) == LIMIT
    for size in (LIMIT + 1, 8 * LIMIT):
        body = COMPRESS[name](bytes(size))
        assert len(body) < LIMIT
        for told in (None, name):
            with pytest.raises(TooLarge, match=str(LIMIT)):
                decompress(body, LIMIT, told)


@pytest.mark.parametrize("name", FORMATS)
def test_a_bomb_takes_no_more_than_the_limit(name: str) -> None:
    body = COMPRESS[name](bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decompress(body, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_declared_lengths_take_no_memory() -> None:
    huge = b"\xff\xff\xff\xff\x0f"
    tracemalloc.start()
    try:
        for body in (huge, huge + b"\0x", b"\x80\x80\x80\x08" + b"\0x"):
            with pytest.raises(RequestError):
                decompress(body, 1 << 30, "snappy")
        # Window of 2^41 bytes; content of 2^62 bytes.
        for head in (b"\x00\xf8", b"\xe0" + (2**62).to_bytes(8, "little")):
            with pytest.raises(TooLarge):
                decompress(b"\x28\xb5\x2f\xfd" + head + b"\x01\0\0", 1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_zstd_of_unknown_length() -> None:
    plain = message(100_000)
    stream = cramjam.zstd.Compressor()
    stream.compress(plain)
    body = bytes(stream.finish())
    assert bytes(decompress(body, LIMIT)) == plain
    stream = cramjam.zstd.Compressor()
    stream.compress(bytes(2 * LIMIT))
    with pytest.raises(TooLarge):
        decompress(bytes(stream.finish()), LIMIT)


def test_snappy_whose_length_looks_like_zlib() -> None:
    """120 bytes, the first 40 of them literal: 78 9c, which zlib begins with."""
    for n in range(2000):
        plain = bytes([0x0A, 118]) + bytes((n * 7 + i) % 251 for i in range(38))
        plain += plain[-38:] * 2 + b"\x12\x00"
        plain = (plain + b"\0" * 120)[:120]
        body = COMPRESS["snappy"](plain)
        assert bytes(decompress(body, LIMIT)) == plain
        if body[:2] == b"\x78\x9c":
            return
    # No such block came up; make one by hand: literal of 40, the rest copied.
    text = bytes(range(40))
    body = b"\x78\x9c" + text + b"\xfe\x28\x00" + bytes([((16 - 1) << 2) | 2, 40, 0])
    assert bytes(decompress(body, LIMIT)) == (text * 3)[:120]


SMALL = st.recursive(
    st.binary(max_size=8), lambda inner: st.tuples(inner, inner).map(b"".join)
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Messages of both protocols, of all sizes that a snappy block could have."""
    if draw(st.booleans()):
        request = torchrec_predict_pb2.PBRequest()
        request.debug_level = draw(st.sampled_from([0, 0, 1, 100]))
        for name in draw(st.lists(st.text(max_size=5), max_size=3)):
            request.user_features[name].int_feature = draw(st.integers(-5, 99))
        request.item_ids.extend(draw(st.lists(st.text(max_size=9), max_size=9)))
        return request.SerializeToString()
    tensors = torch_predict_pb2.PredictRequest()
    for values in draw(st.lists(st.lists(st.floats(width=32), max_size=9), max_size=3)):
        array = tensors.inputs.add(dtype=1)
        array.array_shape.dim.append(len(values))
        array.float_val.extend(values)
    return tensors.SerializeToString()


@given(requests())
@settings(max_examples=1000, deadline=None)
def test_no_plain_request_is_taken_for_a_compressed_one(body: bytes) -> None:
    assert decompress(body, LIMIT) is body
    for name in FORMATS:
        assert bytes(decompress(COMPRESS[name](body), LIMIT)) == body or (
            # Nothing to tell an empty block from a plain body.
            body == b"" and name == "snappy"
        )


@given(
    st.sampled_from([None, *FORMATS]),
    st.sampled_from([b"", b"\x1f\x8b\x08", b"\x78\x9c", b"\x28\xb5\x2f\xfd"])
    | st.sampled_from([COMPRESS[name](PLAIN) for name in FORMATS])
    | st.just(b"\x04\x22\x4d\x18"),
    st.binary(max_size=200),
    st.integers(0, 60),
)
@settings(max_examples=1000, deadline=None)
def test_any_bytes_are_answered(
    name: str | None, start: bytes, rest: bytes, cut: int
) -> None:
    body = start[: len(start) - cut] + rest
    try:
        out = decompress(body, 1 << 16, name)
    except (BadRequest, TooLarge):
        pass
    else:
        assert out is body or len(out) <= 1 << 16
