"""Checksums of what grows: a delta's records and heap, as far as they are published.

Each of the two parts is read in pieces of 64 KiB. The sums of whole pieces are chained,
so that each is read once; what is left is summed up again at each publication. Two
places in the header hold (count, sum) in turn: what is published is always in one of
them, whenever the writer dies.
"""

from cython_ext.shm import Mapping
from cython_ext.xxh64 import xxh64
from procserver.itemcache import layout

PIECE = 1 << 16


class Running:
    """The sum of a part that grows from ``start``."""

    def __init__(self, mapping: Mapping, start: int) -> None:
        self._mapping = mapping
        self._at = start
        self._sum = 0

    def upto(self, end: int) -> int:
        """The sum of everything before ``end``, which never goes back."""
        with memoryview(self._mapping) as view:
            while end - self._at >= PIECE:
                with view[self._at : self._at + PIECE] as piece:
                    self._sum = _joined(self._sum, xxh64(piece))
                self._at += PIECE
            with view[self._at : end] as rest:
                return _joined(self._sum, xxh64(rest))


class Signature:
    """That of one delta, over its records and its heap."""

    def __init__(self, mapping: Mapping, records: int, heap: int) -> None:
        self._mapping = mapping
        self._parts = Running(mapping, records), Running(mapping, heap)
        # Where the next one goes, and the one after that.
        self._places = list(layout.DELTA_SIGNATURES)

    def sign(self, count: int, ends: tuple[int, int]) -> None:
        """Before ``count`` records, with these ends of both parts, are published."""
        at = self._places[0]
        self._mapping.store(at + 8, self._made(ends))
        self._mapping.store(at, count)
        self._places.reverse()

    def is_right(self, count: int, ends: tuple[int, int]) -> bool:
        """Whether the first ``count`` records, all that are published, are what was
        signed. To be called first.
        """
        made = self._made(ends)
        load = self._mapping.load
        right = [at for at in self._places if (load(at), load(at + 8)) == (count, made)]
        if right == self._places[:1]:
            self._places.reverse()
        return bool(right)

    def _made(self, ends: tuple[int, int]) -> int:
        first, second = self._parts
        return _joined(first.upto(ends[0]), second.upto(ends[1]))


def _joined(one: int, other: int) -> int:
    return xxh64(one.to_bytes(8, "little") + other.to_bytes(8, "little"))
