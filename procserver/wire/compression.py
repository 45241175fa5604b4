"""Compressed request bodies, by configuration or by their first bytes.

No client says how its body is compressed (spec/protocol.md section 1.6):

==========  ===========================================  ====================
format      begins with                                  clients
==========  ===========================================  ====================
gzip        1f 8b                                        Java, Go
zlib        78, and a sum of both bytes                  Java, Go
zstd        28 b5 2f fd                                  Java
lz4 frame   04 22 4d 18                                  Java
lz4 block   nothing                                      Java, if configured
snappy      its decompressed length; no frame around it  Python, Java
==========  ===========================================  ====================

None of the magic numbers begins a request message, and no request message is a
valid snappy block. Whatever a body claims, no more than the limit is written,
and memory is taken only for lengths that the compressed bytes can make true.
"""

import zlib
from collections.abc import Callable

import cramjam

from procserver.errors import BadRequest, TooLarge

Bytes = bytes | bytearray | memoryview

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
LZ4_FRAME = b"\x04\x22\x4d\x18"
# A zstd frame may ask its reader for a window of this size whatever it holds.
ZSTD_WINDOW = 8 << 20
# Each member costs a copy of what follows it.
GZIP_MEMBERS = 16
_FIRST_GUESS = 8
_GUESS_GROWTH = 16


def decompress(body: Bytes, limit: int, configured: str | None = None) -> Bytes:
    """The message in a request body; a plain body is returned as it is.

    :param limit: most bytes that a message may have
    :param configured: ``rpc.decompressor``: every body has this format; None: the
        format is recognised, and a body in none of them is plain
    :raises TooLarge: if the message would be over the limit
    :raises BadRequest: for a damaged, cut or continued body
    """
    if configured is not None:
        return _READERS[configured](body, limit)
    head = bytes(body[:4])
    if head[:2] == GZIP:
        return _gunzip(body, limit)
    if head == ZSTD:
        return _unzstd(body, limit)
    if head == LZ4_FRAME:
        return _unlz4_frame(body, limit)
    if head[:1] == b"\x78" and len(head) > 1 and int.from_bytes(head[:2]) % 31 == 0:
        try:
            return _inflate(body, limit)
        except BadRequest:
            # A snappy block of 120 bytes may begin like this too.
            unsnapped = _if_snappy(body, limit)
            if unsnapped is None:
                raise
            return unsnapped
    unsnapped = _if_snappy(body, limit)
    return body if unsnapped is None else unsnapped


def _if_snappy(body: Bytes, limit: int) -> Bytes | None:
    """What a snappy block holds; None if the body is none.

    :raises TooLarge: for one that holds more than ``limit`` bytes
    """
    if not _may_be_snappy(body):
        return None
    try:
        return _unsnap(body, limit)
    except BadRequest:
        return None


def _may_be_snappy(body: Bytes) -> bool:
    """Whether the length that a snappy block begins with is possible.

    The first byte of a plain request, a field's tag, is a length below 128: only
    tiny bodies are looked at further.
    """
    try:
        length = cramjam.snappy.decompress_raw_len(body[:10])
    except cramjam.DecompressionError:
        return False
    size = len(body)
    # An element of three bytes copies up to 64; literals grow by a sixth at most.
    return 0 < length <= 22 * size and size <= 32 + length + length // 6


def _unsnap(body: Bytes, limit: int) -> Bytes:
    try:
        length = cramjam.snappy.decompress_raw_len(body)
        if length > 22 * len(body):
            raise _broken("snappy", "its length cannot be true")
        _bound("snappy", length, limit)
        out = bytearray(length)
        written = cramjam.snappy.decompress_raw_into(body, out)
    except cramjam.DecompressionError as error:
        raise _broken("snappy") from error
    if written != length:
        raise _broken("snappy")
    return out


def _gunzip(body: Bytes, limit: int) -> Bytes:
    """Members one after the other are joined, as gzip itself does."""
    parts = []
    room = limit
    rest: Bytes = body
    for _ in range(GZIP_MEMBERS):
        part, rest = _zlib_stream("gzip", rest, room, limit, 31)
        parts.append(part)
        room -= len(part)
        if not rest:
            return parts[0] if len(parts) == 1 else b"".join(parts)
    raise _broken("gzip", f"it has more than {GZIP_MEMBERS} members")


def _inflate(body: Bytes, limit: int) -> Bytes:
    part, rest = _zlib_stream("zlib", body, limit, limit, 15)
    if rest:
        raise _broken("zlib", f"{len(rest)} bytes follow its end")
    return part


def _zlib_stream(
    name: str, body: Bytes, room: int, limit: int, window: int
) -> tuple[bytes, bytes]:
    """One stream's content, and what follows it."""
    stream = zlib.decompressobj(window)
    try:
        part = stream.decompress(body, room + 1)
    except zlib.error as error:
        raise _broken(name) from error
    if len(part) > room:
        raise _over(name, limit)
    if not stream.eof:
        raise _broken(name, "it ends too early")
    return part, stream.unused_data


def _unzstd(body: Bytes, limit: int) -> Bytes:
    declared, window = _zstd_header(bytes(body[:18]))
    if window > max(limit, ZSTD_WINDOW):
        raise _over("zstd", limit)
    if declared is not None:
        _bound("zstd", declared, limit)
    return _grow("zstd", cramjam.zstd.decompress_into, body, limit, guess=declared)


def _zstd_header(head: bytes) -> tuple[int | None, int]:
    """Content size (None: not said) and window of a frame (RFC 8878 3.1.1.1)."""
    if len(head) < 6 or not head.startswith(ZSTD):
        raise _broken("zstd")
    flags = head[4]
    single = flags & 0x20
    at = 5
    window = 0
    if not single:
        base = 1 << (10 + (head[at] >> 3))
        window = base + (base >> 3) * (head[at] & 7)
        at += 1
    at += (0, 1, 2, 4)[flags & 3]
    width = (1 if single else 0, 2, 4, 8)[flags >> 6]
    if not width:
        return None, window
    if len(head) < at + width:
        raise _broken("zstd")
    size = int.from_bytes(head[at : at + width], "little") + (256 * (width == 2))
    return size, max(window, size if single else 0)


def _unlz4_frame(body: Bytes, limit: int) -> Bytes:
    return _grow("lz4", cramjam.lz4.decompress_into, body, limit)


def _unlz4(body: Bytes, limit: int) -> Bytes:
    """A frame if it begins as one; else a bare block, which tells no length."""
    if body[:4] == LZ4_FRAME:
        return _unlz4_frame(body, limit)

    def block(source: Bytes, out: bytearray) -> int:
        done: int = cramjam.lz4.decompress_block_into(source, out, output_len=len(out))
        return done

    return _grow("lz4", block, body, limit, most=255 * len(body) + 64)


def _grow(
    name: str,
    read: Callable[[Bytes, bytearray], int],
    body: Bytes,
    limit: int,
    *,
    most: int | None = None,
    guess: int | None = None,
) -> Bytes:
    """Decompresses into buffers of growing size until one suffices.

    :param most: what the format can make of a body of this length
    """
    cap = limit if most is None else min(limit, most)
    size = min(cap, guess or max(4096, _FIRST_GUESS * len(body)))
    while True:
        out = bytearray(size)
        try:
            written = read(body, out)
        except cramjam.DecompressionError as error:
            # NOTE: the block decoder does not tell a full buffer from bad data.
            full = most is not None or "write whole buffer" in str(error)
            if not full:
                raise _broken(name) from error
            if size == cap:
                raise (_over(name, limit) if most is None else _broken(name)) from error
            size = min(cap, size * _GUESS_GROWTH)
        else:
            return memoryview(out)[:written]


def _bound(name: str, length: int, limit: int) -> None:
    if length > limit:
        raise _over(name, limit)


def _over(name: str, limit: int) -> TooLarge:
    return TooLarge(f"the {name} body holds more than {limit} bytes")


def _broken(name: str, why: str = "it is damaged") -> BadRequest:
    return BadRequest(f"the body is no {name} data: {why}")


_READERS: dict[str, Callable[[Bytes, int], Bytes]] = {
    "gzip": _gunzip,
    "zlib": _inflate,
    "snappy": _unsnap,
    "zstd": _unzstd,
    "lz4": _unlz4,
}
