"""What was published of a delta is what its next writer finds, or it is refused."""

import random
from collections.abc import Mapping

import numpy as np
import pytest
from test_itemcache_companion import DIGEST, Doubled, Items, batch

from cython_ext.column import Column, Kind
from cython_ext.shm import Mapping as Map
from procserver import shm
from procserver.errors import SourceError
from procserver.itemcache import layout, live, refresh
from procserver.itemcache.control import ControlSegment
from procserver.itemcache.delta import LEAST_IDS, DeltaWriter
from procserver.itemcache.reader import CacheReader, Delta, Generation
from procserver.itemcache.signing import PIECE, Signature
from procserver.itemcache.sources import Upsert


class Counting(Doubled):
    """Counts the rows of which it generates."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def continued(self, kinds: Mapping[str, Kind]) -> "Counting":
        self.kinds = dict(kinds)
        return self

    def generate(
        self, columns: Mapping[str, Column], rows: int
    ) -> dict[str, Column] | None:
        self.rows += rows
        return super().generate(columns, rows)


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
    # The last record's heap address, which then lies outside of the segment.
    places.append(segment.plan.records + (count - 1) * stride + 6)
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


def test_what_was_generated_of_changes_is_signed_too(control: ControlSegment) -> None:
    """What a successor does not find as it was signed, it generates again."""
    refresh.build(Items(batch(range(100))), control, companion=Doubled())
    reader = CacheReader(control.name, digest=DIGEST)
    name = control.delta_name(1, DIGEST).removeprefix("/")
    made = Counting()
    chance = random.Random(4)
    with DeltaWriter(control, reader.current(), makers=[made]) as delta:
        for _ in range(3):
            delta.apply([Upsert(batch(chance.sample(range(5000), 900)))])
        # A writer that dies leaves more than it has published.
        delta.apply([Upsert(batch(range(7)))], publish=False)
    assert made.rows == 2707
    published = 2700
    segment = Delta(shm.attach(f"/{name}"), layout.DELTA | layout.COMPANION)
    plan, stride = segment.plan, segment.records.layout.stride
    last = plan.records + published * stride - 1
    places = [chance.randrange(plan.records, last) for _ in "x" * 9]
    for place in [*places, plan.records, last - stride + 1, last]:
        with (shm.SHM / name).open("r+b") as file:
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 4]))
        made = Counting()
        with DeltaWriter(control, reader.current(), makers=[made]) as delta:
            assert delta.companion_problem == ""
            assert made.rows == published
            # That one is signed, though nothing was published since.
            _check_doubles(reader.current(), published)
    made = Counting()
    DeltaWriter(control, reader.current(), makers=[made]).close()
    assert made.rows == 0


def _check_doubles(view: Generation, published: int) -> None:
    rows = np.arange(100, 100 + published)
    assert view.count == published
    assert view.companion is not None
    assert view.companion.covers(rows)
    numbers = view.gather(rows, ["n"])["n"].to_pylist()
    doubles = view.companion.gather(rows, ["double"])["double"].to_pylist()
    assert doubles == [2 * number for number in numbers]


def test_what_is_published_is_signed_whenever_a_writer_dies() -> None:
    name = f"/procserver.signed.{np.random.default_rng().integers(1 << 30)}.1"
    fd = shm.create(name)
    try:
        shm.allocate(fd, 0, 1 << 16)
        mapping = Map(fd, 1 << 16, writable=True)
        Signature(mapping, 1024, 8192).sign(3, (1100, 8200))
        for count in range(4, 40):
            # It signs more, and is killed before that is published.
            dying = Signature(mapping, 1024, 8192)
            assert dying.is_right(3, (1100, 8200))
            dying.sign(count, (1100 + count, 8200))
    finally:
        shm.unlink(name)
