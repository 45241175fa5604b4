"""The bytes of a shared segment of weights.

One segment holds everything that a worker needs of one model version. All
numbers are little-endian::

    offset  size  field
         0    24  prologue of ``procserver.shm``: magic "PSRVWGHT", layout
                  version, owner pid, owner start time
        24     8  bytes of the whole segment
        32     8  bytes of the directory, which begins at 128
        40     8  offset of the skeleton archive, a multiple of 64
        48     8  bytes of the skeleton archive
        56     8  offset of the arrays, a multiple of 4096
        64     4  CRC-32 of bytes 0 to 64, directory and skeleton
        68     4  state: 0 while the segment is being written, 1 complete
        72    56  zeros
       128        directory: JSON in UTF-8
        ..        skeleton: the TorchScript archive, its large tensors emptied
        ..        arrays

Offsets of arrays in the directory count from where the arrays begin. Each array
is a multiple of 64 from there (what vector instructions and cache lines like),
one of a page or more a multiple of 4096, so that no two large ones share a page.

The CRC covers what is parsed. The arrays have none: reading gigabytes for each
worker is what sharing saves, and whoever publishes compares them with the
original first. A segment is written once, by one process, and complete before
its name is told to anybody.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cython_ext.shm import Mapping
from procserver import shm
from procserver.errors import SharedMemoryError

MAGIC = b"PSRVWGHT"
LAYOUT_VERSION = 1
_FIELDS = struct.Struct("<QQQQQ")
_SEAL = struct.Struct("<II")
_SEAL_AT = shm.PROLOGUE.size + _FIELDS.size
DIRECTORY_AT = 128
LINE = 64
PAGE = 4096
_BEING_WRITTEN, _COMPLETE = 0, 1
_LARGEST_WRITE = 1 << 30
_PURPOSE = "the model's weights"

Directory = dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """A segment as a reader has mapped it, copy-on-write."""

    mapping: Mapping
    directory: Directory
    skeleton: bytes
    arrays_at: int


def place(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets for arrays of these sizes (bytes), and the bytes of all."""
    offsets, end = [], 0
    for size in sizes:
        start = _up(end, PAGE if size >= PAGE else LINE)
        offsets.append(start)
        end = start + size
    return offsets, end


def write(
    name: str,
    owner: shm.Owner,
    directory: Directory,
    skeleton: bytes,
    arrays: Sequence[tuple[int, np.ndarray]],
) -> int:
    """Makes a complete segment, or none at all; returns its size in bytes.

    :param arrays: (offset, its bytes as uint8) of each, as :func:`place` says; they
        are written from where they lie
    :raises SharedMemoryError: if there is no memory for it, or the name is taken
    """
    text = json.dumps(directory, separators=(",", ":")).encode()
    skeleton_at = _up(DIRECTORY_AT + len(text), LINE)
    arrays_at = _up(skeleton_at + len(skeleton), PAGE)
    total = max(
        [arrays_at, *(arrays_at + offset + data.nbytes for offset, data in arrays)]
    )
    head = shm.PROLOGUE.pack(MAGIC, LAYOUT_VERSION, owner.pid, owner.started)
    head += _FIELDS.pack(total, len(text), skeleton_at, len(skeleton), arrays_at)
    check = _check(head, text, skeleton)
    _require_memory(total)
    try:
        fd = shm.create(name)
    except FileExistsError as error:
        raise SharedMemoryError(str(error)) from error
    try:
        shm.allocate(fd, 0, total, purpose=_PURPOSE)
        _write_at(fd, 0, head + _SEAL.pack(check, _BEING_WRITTEN))
        _write_at(fd, DIRECTORY_AT, text)
        _write_at(fd, skeleton_at, skeleton)
        for offset, data in arrays:
            _write_at(fd, arrays_at + offset, data.data)
        _write_at(fd, _SEAL_AT, _SEAL.pack(check, _COMPLETE))
    except BaseException:
        shm.unlink(name)
        raise
    finally:
        os.close(fd)
    return total


def read(name: str) -> Contents:
    """Maps a segment and parses what is not an array.

    :raises FileNotFoundError: if there is none of that name
    :raises SharedMemoryError: if it is not whole: foreign, unfinished, damaged
    """
    mapping = shm.attach(name, copy_on_write=True)
    with memoryview(mapping) as data:
        if len(data) < DIRECTORY_AT or bytes(data[:8]) != MAGIC:
            raise SharedMemoryError(f"{name} is not a segment of weights")
        _, version, _, _ = shm.PROLOGUE.unpack_from(data)
        if version != LAYOUT_VERSION:
            raise SharedMemoryError(f"{name} has layout {version} of another release")
        total, length, skeleton_at, skeleton_bytes, arrays_at = _FIELDS.unpack_from(
            data, shm.PROLOGUE.size
        )
        check, state = _SEAL.unpack_from(data, _SEAL_AT)
        if state != _COMPLETE:
            raise SharedMemoryError(f"{name} was not finished")
        if total != len(data):
            raise SharedMemoryError(f"{name} has {len(data)} bytes instead of {total}")
        if not (
            DIRECTORY_AT + length <= skeleton_at
            and skeleton_at + skeleton_bytes <= arrays_at <= total
        ):
            raise SharedMemoryError(f"{name} is damaged: its parts overlap")
        text = bytes(data[DIRECTORY_AT : DIRECTORY_AT + length])
        skeleton = bytes(data[skeleton_at : skeleton_at + skeleton_bytes])
        if _check(bytes(data[:_SEAL_AT]), text, skeleton) != check:
            raise SharedMemoryError(f"{name} is damaged: its checksum is wrong")
    return Contents(mapping, json.loads(text), skeleton, arrays_at)


def _check(head: bytes, text: bytes, skeleton: bytes) -> int:
    return zlib.crc32(skeleton, zlib.crc32(text, zlib.crc32(head)))


def _require_memory(needed: int) -> None:
    """Refuses what would have the kernel kill somebody.

    NOTE: a full /dev/shm is an error of ``posix_fallocate``, but memory that a
    container may not have is an OOM kill, of this process or of a neighbour.
    """
    free = shm.available_memory()
    if free is not None and free < needed:
        raise SharedMemoryError(
            f"no memory to share {_PURPOSE}: {needed} bytes needed, {free} available"
        )


def _write_at(fd: int, offset: int, data: bytes | memoryview) -> None:
    # PERF: written, not copied into a map: no page tables, no page faults.
    with memoryview(data) as rest:
        done = 0
        while done < len(rest):
            done += os.pwrite(fd, rest[done : done + _LARGEST_WRITE], offset + done)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
