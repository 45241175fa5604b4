"""What was published of a delta is what its next writer finds, or it is refused."""

import random

import numpy as np
import pytest
from test_itemcache_companion import Items, batch

from cython_ext.shm import Mapping
from procserver import shm
from procserver.errors import SourceError
from procserver.itemcache import live, refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.delta import LEAST_IDS, DeltaWriter
from procserver.itemcache.reader import CacheReader
from procserver.itemcache.signing import PIECE, Signature
from procserver.itemcache.sources import Upsert


def test_a_step_fits_into_any_delta() -> None:
    assert LEAST_IDS >= live.SLICE_ROWS


def writer(control: ControlSegment) -> DeltaWriter:
    return DeltaWriter(control, CacheReader(control.name).current())


def test_every_published_byte_is_signed(control: ControlSegment) -> None:
    refresh.build(Items(batch(range(100))), control)
    chance = random.Random(3)
    for _ in range(5):
        with writer(control) as delta:
            for _ in range(4):
                ids = [chance.randrange(5000) for _ in range(chance.randrange(900))]
                delta.apply([Upsert(batch(ids))])
            # A writer that dies leaves more than it has published.
            delta.apply([Upsert(batch(range(7)))], publish=False)
            delta._segment.sign()
            count = delta.rows - 7
            segment, heap = delta._segment.delta, delta._segment.heap_used
    stride = segment.records.layout.stride
    number, published = control.state()
    assert published == count
    assert count * stride > 2 * PIECE
    path = shm.SHM / control.delta_name(number).removeprefix("/")
    end = segment.records.heap_end(count - 1) - segment.plan.heap
    assert heap > end
    places = [segment.plan.records + chance.randrange(count * stride) for _ in "x" * 9]
    places += [segment.plan.heap + chance.randrange(end) for _ in "x" * 9]
    places += [segment.plan.records, segment.plan.records + count * stride - 1]
    places += [segment.plan.heap, segment.plan.heap + end - 1]
    for place in places:
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 4]))
            file.flush()
            with pytest.raises(SourceError, match=r"its delta is damaged|heap|record"):
                writer(control)
            file.seek(place)
            file.write(byte)
    writer(control).close()


def test_what_is_published_is_signed_whenever_a_writer_dies() -> None:
    name = f"/procserver.signed.{np.random.default_rng().integers(1 << 30)}.1"
    fd = shm.create(name)
    try:
        shm.allocate(fd, 0, 1 << 16)
        mapping = Mapping(fd, 1 << 16, writable=True)
        Signature(mapping, 1024, 8192).sign(3, (1100, 8200))
        for count in range(4, 40):
            # It signs more, and is killed before that is published.
            dying = Signature(mapping, 1024, 8192)
            assert dying.is_right(3, (1100, 8200))
            dying.sign(count, (1100 + count, 8200))
    finally:
        shm.unlink(name)
