"""Private segments for tests of the cache kernels: records without a header."""

import os
from collections.abc import Sequence

import pyarrow as pa

from cython_ext.cache_pack import RowPacker
from cython_ext.cache_records import RecordLayout, Records
from cython_ext.column import Column
from cython_ext.shm import Mapping


def private_map(size: int, *, content: bytes = b"") -> Mapping:
    """Zeroed memory, or ``content``."""
    fd = os.memfd_create("records")
    try:
        os.posix_fallocate(fd, 0, max(size, len(content), 8))
        os.pwrite(fd, content, 0)
        return Mapping(fd, max(size, len(content), 8), writable=True)
    finally:
        os.close(fd)


def pack_rows(
    key: pa.Array, columns: Sequence[pa.Array], *, room: int = 0
) -> tuple[Records, RowPacker]:
    """One block of records at 64, its directory at 0, ``room`` bytes behind."""
    cells = [Column.from_arrow(column) for column in columns]
    layout = RecordLayout([cell.kind for cell in cells])
    packer = RowPacker(layout, Column.from_arrow(key), cells)
    stop, kept, heap = packer.measure(0, len(key) + 1)
    assert stop == len(key)
    end = 64 + kept * layout.stride
    mapping = private_map((end + heap + 7) // 8 * 8 + room)
    mapping.store(0, 64)
    assert packer.pack(mapping, 0, stop, 64, end) == (end, end + heap)
    return Records(mapping, layout, kept, 30, 0), packer
