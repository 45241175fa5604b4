"""``wire_reader`` through the torchrec decoder, edge by edge, against upb."""

import contextlib
import itertools
import random

import pytest
from google.protobuf.message import DecodeError

from procserver.errors import BadRequest, Undecodable
from procserver.wire import torch, torchrec
from procserver.wire.pb.torchrec_predict_pb2 import PBRequest
from tests.reference import wire_noise
from tests.reference.guarded_page import GuardedPage
from tests.reference.wire_noise import length, tag, varint
from tests.reference.wire_random import torch_request, torchrec_request


def ours(body):
    try:
        return torchrec.decode(body)
    except Undecodable:
        return None


def upb(body):
    try:
        return PBRequest.FromString(body)
    except DecodeError:
        return None


def agree(body):
    mine, theirs = ours(body), upb(body)
    assert (mine is None) == (theirs is None), body.hex()
    if mine is not None:
        assert mine.debug_level == theirs.debug_level
        assert mine.item_ids.to_pylist() == list(theirs.item_ids)
    return mine is not None


def test_varints_of_every_length():
    for n in range(1, 13):
        for last in (0x00, 0x01, 0x02, 0x7F):
            for fill in (0x80, 0xFF):
                number = bytes([fill]) * (n - 1) + bytes([last])
                assert agree(b"\x08" + number) == (n <= 10)
                agree(b"\xa0\x06" + number)
                agree(length(2, b"\x12" + varint(n + 1) + b"\x10" + number))


def test_tags_of_every_length():
    for n in range(1, 8):
        # Field 1, written in n bytes.
        if n > 1:
            body = b"\x88" + b"\x80" * (n - 2) + b"\x00\x05"
            assert agree(body) == (n <= 5)
    for last in range(256):
        agree(b"\xf8\xff\xff\xff" + bytes([last]) + b"\x01")


def test_every_first_byte():
    for first, second in itertools.product(range(256), range(0, 256, 5)):
        agree(bytes([first, second]))
        agree(bytes([first, second, 0, 0, 0, 0, 0, 0, 0, 0]))


def test_over_long_lengths():
    for n in range(0, 12):
        agree(b"\x1a" + b"\x81" + b"\x80" * n + b"\x00a")


def test_every_short_utf8_sequence():
    for first, second in itertools.product(range(256), range(256)):
        text = bytes([first, second])
        try:
            text.decode()
        except UnicodeDecodeError:
            assert ours(length(3, text)) is None, text
        else:
            assert ours(length(3, text)) is not None, text


def test_longer_utf8_sequences():
    edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF]
    leads = [0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5]
    for lead, *rest in itertools.product(leads, edges, edges, edges):
        for text in (bytes([lead, *rest]), bytes([lead, *rest[:2]])):
            try:
                text.decode()
                valid = True
            except UnicodeDecodeError:
                valid = False
            assert (ours(length(3, text)) is not None) == valid, text
            # In the middle of a long text, at any distance from a word's end.
            padded = b"a" * (lead % 9) + text + b"b" * 9
            assert (ours(length(3, padded)) is not None) == valid, text


def test_text_halves_are_checked_one_by_one():
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert not agree(length(3, first) + length(3, second))
    rows = b"".join(length(1, length(3, half)) for half in (first, second))
    assert not agree(length(4, length(2, rows)))
    assert agree(length(4, length(2, length(1, length(3, first + second)))))


@pytest.mark.parametrize("level", range(6))
def test_depth_of_groups_at_every_level(level):
    def body(n):
        inner = tag(99, 3) * n + tag(99, 4) * n
        # PBRequest, entry, PBFeature, LongStringMap, entry
        for number in (1, 6, 2, 2)[4 - level :] if level < 5 else ():
            inner = length(number, inner)
        if level == 5:
            # PBRequest, entry, ContextFeatures, PBFeature, IntLists, IntList
            for number in (1, 26, 1, 2, 4):
                inner = length(number, inner)
        return inner

    accepted = [n for n in range(90, 105) if agree(body(n))]
    assert accepted == list(range(90, 101 - level))


def test_groups():
    inner = tag(7, 0) + b"\x05" + tag(8, 2) + b"\x02ab" + tag(9, 1) + bytes(8)
    assert agree(tag(99, 3) + inner + tag(99, 4) + b"\x08\x07")
    assert not agree(tag(99, 3) + inner + tag(98, 4))
    assert not agree(tag(99, 3) + inner)
    assert not agree(tag(99, 4))
    assert not agree(tag(99, 3) + b"\x00\x00" + tag(99, 4))
    # A known field number as a group is an unknown field.
    assert agree(tag(3, 3) + tag(3, 4))
    rng = random.Random(5)
    for _ in range(3000):
        tags = [rng.choice([tag(5, 3), tag(5, 4), tag(6, 3), tag(6, 4), b"\x08\x01"])
                for _ in range(rng.randrange(8))]  # fmt: skip
        agree(b"".join(tags))


def test_nothing_is_read_behind_the_end():
    # A single byte too many ends the process.
    page = GuardedPage()
    for seed in range(300):
        rng = random.Random(seed)
        for build, decode in (
            (torchrec_request, torchrec.decode),
            (torch_request, torch.decode),
        ):
            body = wire_noise.noisy(build(rng), rng)
            cut = [body[:n] for n in range(0, len(body), 1 + len(body) // 10)]
            for case in (body, *cut, wire_noise.mutated(body, rng)):
                with contextlib.suppress(BadRequest):
                    decode(page.holding(case))
