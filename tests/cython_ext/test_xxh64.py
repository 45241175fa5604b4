"""XXH64 against the published vectors and the plain description of it."""

import random

import pytest

from cython_ext.xxh64 import xxh64

P = [
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
]
M = (1 << 64) - 1


def rotate(x: int, bits: int) -> int:
    return ((x << bits) | (x >> (64 - bits))) & M


def oracle(data: bytes, seed: int = 0) -> int:
    """The description's steps, one by one."""
    word = lambda at, size: int.from_bytes(data[at : at + size], "little")  # noqa: E731
    step = lambda lane, w: rotate((lane + w * P[1]) & M, 31) * P[0] & M  # noqa: E731
    at = 0
    if len(data) >= 32:
        lanes = [seed + P[0] + P[1], seed + P[1], seed, seed - P[0]]
        while len(data) - at >= 32:
            lanes = [
                step(lane & M, word(at + 8 * i, 8)) for i, lane in enumerate(lanes)
            ]
            at += 32
        h = sum(rotate(x, b) for x, b in zip(lanes, (1, 7, 12, 18), strict=True)) & M
        for lane in lanes:
            h = ((h ^ step(0, lane)) * P[0] + P[3]) & M
    else:
        h = seed + P[4]
    h = (h + len(data)) & M
    while len(data) - at >= 8:
        h = (rotate(h ^ step(0, word(at, 8)), 27) * P[0] + P[3]) & M
        at += 8
    if len(data) - at >= 4:
        h = (rotate(h ^ (word(at, 4) * P[0] & M), 23) * P[1] + P[2]) & M
        at += 4
    for byte in data[at:]:
        h = rotate(h ^ (byte * P[4] & M), 11) * P[0] & M
    h = (h ^ (h >> 33)) * P[1] & M
    h = (h ^ (h >> 29)) * P[2] & M
    return h ^ (h >> 32)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
    ],
)
def test_published_vectors(data: bytes, expected: int) -> None:
    assert xxh64(data) == expected


def test_every_length_and_seed_equals_the_description() -> None:
    rng = random.Random(7)
    for length in range(200):
        data = rng.randbytes(length)
        seed = rng.getrandbits(64)
        assert xxh64(data) == oracle(data)
        assert xxh64(data, seed) == oracle(data, seed)
        assert xxh64(memoryview(data)[length // 2 :]) == oracle(data[length // 2 :])
