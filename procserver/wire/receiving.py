"""Request bodies: received once, the largest tensor on an aligned address.

A body of known length goes from the socket straight to its place in a buffer
that the next request uses again. Where in the buffer it begins is chosen so
that the values of its largest tensor lie on a cache line: decoders then hand
out a view of them, which costs nothing and gives the model aligned memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from cython_ext.wire_align import Buffer, TensorScan
from procserver.errors import BadRequest, TooLarge

LINE = 64
# Bodies up to this size are not worth a place of their own.
SMALL = 32 << 10
# Read beyond a tensor's end, to see what follows.
LOOK_AHEAD = 4 << 10
KEPT_BUFFERS = 4
KEPT_BYTES = 64 << 20


class BodySource(Protocol):
    """One request's body on its connection."""

    @property
    def length(self) -> int | None:
        """``Content-Length``; None for a body in chunks."""

    def read_into(self, view: memoryview) -> int:
        """Waits for bytes and puts them into ``view``; 0 at the peer's end.

        :raises OutOfTime: if none came in time
        """

    def read_chunk(self, limit: int) -> bytes:
        """The next piece of a body in chunks; empty at its end.

        :raises TooLarge: for a chunk that says it is over ``limit``
        :raises BadRequest: for broken chunks
        :raises OutOfTime: if nothing came in time
        """


class BufferPool:
    """Buffers that wait for the next large body. For all threads of a worker."""

    def __init__(self, keep: int = KEPT_BUFFERS, keep_bytes: int = KEPT_BYTES) -> None:
        self._keep = keep
        self._keep_bytes = keep_bytes
        self._free: list[Buffer] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Buffer:
        """A buffer of at least ``size`` bytes that nobody else uses."""
        with self._lock:
            fitting = [buffer for buffer in self._free if len(buffer) >= size]
            if fitting:
                chosen = min(fitting, key=len)
                self._free.remove(chosen)
                return chosen
        # PERF: a little more, so that bodies which vary in size find room again.
        return Buffer(-(-(size + size // 8) // 4096) * 4096)

    def give_back(self, buffer: Buffer) -> None:
        """Keeps it for another request, unless somebody still looks at it.

        SAFETY: tensors that outlive their request hold an export; such a buffer
        is theirs and goes with them.
        """
        if buffer.exports or len(buffer) > self._keep_bytes:
            return
        with self._lock:
            self._free.append(buffer)
            self._free.sort(key=len)
            while (
                len(self._free) > self._keep
                or sum(map(len, self._free)) > self._keep_bytes
            ):
                del self._free[0]


@contextmanager
def receive(source: BodySource, limit: int, pool: BufferPool) -> Iterator[memoryview]:
    """The whole body, for as long as the block lasts.

    Arrays that view the body may outlive the block.

    :raises TooLarge: before anything is read, if the length is over the limit;
        while reading, if chunks add up to more
    :raises BadRequest: for a body that ends early and for broken chunks
    :raises OutOfTime: if it does not come in time
    """
    length = source.length
    if length is not None and length > limit:
        raise TooLarge(f"the body has {length} bytes, at most {limit} are read")
    if length is None:
        yield memoryview(_read_chunks(source, limit))
    elif length <= SMALL:
        body = memoryview(bytearray(length))
        _fill(source, body, 0)
        yield body
    else:
        buffer = pool.take(length + LINE)
        body = _receive_aligned(source, memoryview(buffer), length)
        try:
            yield body
        finally:
            try:
                body.release()
            except BufferError:
                pass
            else:
                pool.give_back(buffer)


def _receive_aligned(source: BodySource, memory: memoryview, length: int) -> memoryview:
    """Receives a body into ``memory``; returns the part that holds it."""
    scan = TensorScan(length)
    start = got = 0
    wanted = min(length, LOOK_AHEAD)
    with memory:
        while not scan.done and got < length:
            while got < wanted:
                view = memory[start + got : start + wanted]
                got += _read_some(source, view, got, length)
            wanted = scan.feed(memory[start : start + length], got)
            wanted = min(length, max(wanted, got) + LOOK_AHEAD)
            # What has come is moved where that is less than the tensor which
            # would be copied otherwise; its own bytes follow in place.
            if start != scan.shift and got < scan.length:
                moved = scan.shift
                memory[moved : moved + got] = memory[start : start + got]
                start = moved
        body = memory[start : start + length]
    _fill(source, body, got)
    return body


def _fill(source: BodySource, body: memoryview, got: int) -> None:
    while got < len(body):
        got += _read_some(source, body[got:], got, len(body))


def _read_some(source: BodySource, view: memoryview, got: int, length: int) -> int:
    count = source.read_into(view)
    if not count:
        raise BadRequest(f"the body ended after {got} of {length} bytes")
    return count


def _read_chunks(source: BodySource, limit: int) -> bytearray:
    body = bytearray()
    while chunk := source.read_chunk(limit):
        if len(body) + len(chunk) > limit:
            raise TooLarge(f"the body is over {limit} bytes")
        body += chunk
    return body
