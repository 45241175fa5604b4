"""The metrics segment: one row of 64-bit words for every process.

::

    offset  size  field
         0    24  prologue of procserver.shm, magic "PSRVMETR"
        24     8  digest of the declarations (what each word of a row means)
        32     4  number of rows
        36     4  bytes of one row, a multiple of 64
        40     8  CLOCK_MONOTONIC at creation, ns
        48    16  zeros
        64     -  rows: master, refresher, worker slots 0, 1, ...

    row
         0     8  pid of the process that writes here; 0: never used
         8     8  its start time (clock ticks), so that a reused pid is noticed
        16     8  how many processes have had this row
        24    40  zeros
        64     -  the words and texts of ``instruments``, zeros at first

All numbers are little-endian. Words are only ever added to or stored whole, so
neither writers nor readers take a lock. Counters of a row are never reset: the next
worker of a slot goes on counting where the last one ended. More processes than rows
share the last row, where counters stay right and gauges show who wrote last.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from dataclasses import dataclass

from cython_ext.shm import Mapping
from procserver import shm
from procserver.errors import SharedMemoryError
from procserver.shm import Owner

MAGIC = b"PSRVMETR"
LAYOUT_VERSION = 1
PART = "metrics"
HEAD = struct.Struct("<QIIQ")
HEAD_BYTES = 64
ROW_HEAD_BYTES = 64
LINE = 64

_ROW_PID = 0
_ROW_STARTED = 8
_ROW_JOINS = 16


def aligned(size: int) -> int:
    """``size`` rounded up to whole cache lines."""
    return -(-size // LINE) * LINE


def digest_of(declarations: str) -> int:
    """What the header keeps of the declarations: equal text, equal offsets."""
    return int.from_bytes(hashlib.sha256(declarations.encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Block:
    """A mapped metrics segment; ``name`` is None for private memory."""

    mapping: Mapping
    name: str | None
    rows: int
    row_bytes: int
    started_ns: int

    @classmethod
    def create(
        cls,
        service: str,
        rows: int,
        row_bytes: int,
        digest: int,
        owner: Owner | None = None,
    ) -> Block:
        """Creates the metrics segment of a service, owned by this process.

        :raises SharedMemoryError: if the name is taken or there is no memory
        """
        owner = owner or shm.this_process()
        name = shm.segment_name(service, owner, PART)
        # What a dead process of the same pid left under the name.
        shm.reclaim(name)
        try:
            fd = shm.create(name)
        except FileExistsError as error:
            raise SharedMemoryError(
                f"shared memory {name} belongs to another"
            ) from error
        try:
            size = HEAD_BYTES + rows * row_bytes
            shm.allocate(fd, 0, size, purpose="metrics")
            return cls._made(fd, name, rows, row_bytes, digest, owner)
        except BaseException:
            shm.unlink(name)
            raise
        finally:
            os.close(fd)

    @classmethod
    def private(cls, row_bytes: int, digest: int) -> Block:
        """One row of memory that nobody else can open (forked children share it)."""
        fd = os.memfd_create("procserver-metrics", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, HEAD_BYTES + row_bytes)
            return cls._made(fd, None, 1, row_bytes, digest, shm.this_process())
        finally:
            os.close(fd)

    @classmethod
    def _made(
        cls,
        fd: int,
        name: str | None,
        rows: int,
        row_bytes: int,
        digest: int,
        owner: Owner,
    ) -> Block:
        mapping = Mapping(fd, HEAD_BYTES + rows * row_bytes, writable=True)
        started = time.monotonic_ns()
        head = shm.PROLOGUE.pack(MAGIC, LAYOUT_VERSION, owner.pid, owner.started)
        head += HEAD.pack(digest, rows, row_bytes, started)
        memoryview(mapping)[: len(head)] = head
        return cls(mapping, name, rows, row_bytes, started)

    @classmethod
    def attach(cls, name: str, digest: int) -> Block:
        """Maps a metrics segment read-only, to render it.

        :raises FileNotFoundError: if there is none of that name
        :raises SharedMemoryError: if it is of another version
        """
        mapping = shm.attach(name)
        view = memoryview(mapping)
        if len(view) < HEAD_BYTES:
            raise SharedMemoryError(f"shared memory {name} holds no metrics")
        magic, version, _, _ = shm.PROLOGUE.unpack_from(view)
        found, rows, row_bytes, started = HEAD.unpack_from(view, shm.PROLOGUE.size)
        if (magic, version, found) != (MAGIC, LAYOUT_VERSION, digest):
            raise SharedMemoryError(
                f"shared memory {name} holds no metrics of this version"
            )
        if row_bytes % LINE or len(view) != HEAD_BYTES + rows * row_bytes:
            raise SharedMemoryError(f"shared memory {name} has a wrong size")
        return cls(mapping, name, rows, row_bytes, started)

    def base(self, row: int) -> int:
        """Offset of a row; rows beyond the last one are the last one."""
        return HEAD_BYTES + min(row, self.rows - 1) * self.row_bytes

    def take(self, row: int) -> bool:
        """Notes that this process writes to ``row``.

        Returns whether the row is this process's alone, that is, not the last.
        """
        owner = shm.this_process()
        base = self.base(row)
        self.mapping.store(base + _ROW_STARTED, owner.started)
        self.mapping.store(base + _ROW_PID, owner.pid)
        self.mapping.add(base + _ROW_JOINS, 1)
        return row < self.rows - 1

    def used(self, row: int) -> bool:
        """Whether any process has written to the row."""
        return self.mapping.load(self.base(row) + _ROW_PID) != 0

    def alive(self, row: int) -> bool:
        """Whether the process that wrote to the row last still runs."""
        base = self.base(row)
        pid = self.mapping.load(base + _ROW_PID)
        started = self.mapping.load(base + _ROW_STARTED)
        return pid != 0 and shm.is_alive(Owner(pid, started))

    def unlink(self) -> None:
        """Removes the name; maps of the segment stay valid."""
        if self.name is not None:
            shm.unlink(self.name)
