"""Compressed bodies, and what the formats' own libraries make of them."""

import gzip
import zlib

import cramjam

from procserver.errors import BadRequest, TooLarge
from procserver.wire.compression import LZ4_FRAME, decompress


def read_lz4(data: bytes) -> bytes:
    """A frame, or a bare block of no told length."""
    if data.startswith(LZ4_FRAME):
        return bytes(cramjam.lz4.decompress(data))
    out = bytearray(255 * len(data) + 64)
    written = cramjam.lz4.decompress_block_into(data, out, output_len=len(out))
    return bytes(out[:written])


COMPRESS = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "zstd": lambda data: bytes(cramjam.zstd.compress(data)),
    "lz4": lambda data: bytes(cramjam.lz4.compress(data)),
    "snappy": lambda data: bytes(cramjam.snappy.compress_raw(data)),
}
REFERENCE = {
    "gzip": gzip.decompress,
    "zlib": zlib.decompress,
    "zstd": lambda data: bytes(cramjam.zstd.decompress(data)),
    "lz4": read_lz4,
    "snappy": lambda data: bytes(cramjam.snappy.decompress_raw(data)),
}


def unpacked(body: bytes | memoryview, limit: int, name: str | None) -> bytes | None:
    """What our reader makes of a body; None if it refuses.

    With a name the body must be of that format, else it is recognised.
    """
    try:
        return bytes(decompress(body, limit, name))
    except (BadRequest, TooLarge):
        return None


def agrees(body: bytes, content: bytes | None, name: str | None) -> bool:
    """Whether a library of a format reads the same from an accepted body.

    Refusing is always right here: we are stricter about what follows a stream, and
    about sizes, on purpose.
    """
    if content is None or (name is None and content == body):
        return True
    for reader in [REFERENCE[name]] if name else REFERENCE.values():
        try:
            if reader(body) == content:
                return True
        except (OSError, EOFError, zlib.error, cramjam.DecompressionError):
            continue
    return False
