"""Recorded request bodies on disk, read with suspicion.

======  ==================================================================
suffix  content
======  ==================================================================
.pb     one request body, as captured by :mod:`procserver.observe.capture`
.bin    one request body, as EAS takes it; or the same in base64
.txt    a request body in base64 on each line (protobuf cannot be a line)
======  ==================================================================
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

SUFFIXES = (".pb", ".bin", ".txt")
# Names looked at, whatever they are: a listing costs time too.
MOST_NAMES = 100_000
_BASE64 = re.compile(rb"[A-Za-z0-9+/\s]*={0,2}\s*")


@dataclass(frozen=True)
class Limits:
    """Files looked at in one place, and bytes of a body."""

    files: int
    body_bytes: int


@dataclass(frozen=True)
class Unusable:
    """Why some files are passed over."""

    reason: str
    files: int = 1

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Recording:
    """One file with one request or more."""

    path: Path
    body_bytes: int

    @property
    def name(self) -> str:
        """Its name for the log."""
        return shown(self.path.name)

    def bodies(self) -> Iterator[tuple[bytes, str | None]]:
        """Request bodies, or in their place what is wrong with them."""
        try:
            with _open(self.path) as file:
                if self.path.suffix == ".txt":
                    yield from self._lines(file)
                else:
                    yield self._whole(file)
        except OSError as error:
            yield b"", error.strerror or "cannot be read"

    def _whole(self, file: io.BufferedReader) -> tuple[bytes, str | None]:
        content = file.read(2 * self.body_bytes + 1)
        return self._fitting(from_base64(content) or content)

    def _lines(self, file: io.BufferedReader) -> Iterator[tuple[bytes, str | None]]:
        longest = 2 * self.body_bytes
        number = 0
        while line := file.readline(longest):
            number += 1
            if line.isspace():
                continue
            if len(line) == longest:
                yield b"", f"line {number} is over {longest} bytes"
                return
            body = from_base64(line)
            if body is None:
                yield b"", f"line {number} is not base64"
            else:
                yield self._fitting(body)

    def _fitting(self, body: bytes) -> tuple[bytes, str | None]:
        if len(body) > self.body_bytes:
            return b"", f"a body of over {self.body_bytes} bytes"
        return body, None


def recordings(place: Path, limits: Limits) -> Iterator[Recording | Unusable]:
    """The request files of a folder, in the order of their names; or one file."""
    if not place.is_dir():
        yield _examined(place, None, limits)
        return
    try:
        with os.scandir(place) as entries:
            # Files that a capture is still writing begin with a dot.
            names = [
                entry.name
                for entry in islice(entries, MOST_NAMES)
                if not entry.name.startswith(".")
            ]
    except OSError as error:
        yield Unusable(f"folder cannot be read: {error.strerror}")
        return
    names.sort()
    root = place.resolve()
    for name in names[: limits.files]:
        yield _examined(place / name, root, limits)
    if names[limits.files :]:
        beyond = len(names) - limits.files
        yield Unusable(f"{beyond} files beyond the first {limits.files}", beyond)


def _examined(path: Path, root: Path | None, limits: Limits) -> Recording | Unusable:
    name = shown(path.name)
    try:
        # A link inside of the folder is how Kubernetes mounts files.
        real = path.resolve(strict=True)
        if root is not None and not real.is_relative_to(root):
            return Unusable(f"{name}: links to outside of the folder")
        status = real.stat()
    except (OSError, RuntimeError):
        return Unusable(f"{name}: nothing there")
    if not stat.S_ISREG(status.st_mode):
        return Unusable(f"{name}: not a file")
    if path.suffix not in SUFFIXES:
        return Unusable(f"{name}: neither {', '.join(SUFFIXES[:-1])} nor .txt")
    if status.st_size == 0:
        return Unusable(f"{name}: empty")
    if path.suffix != ".txt" and status.st_size > 2 * limits.body_bytes:
        return Unusable(f"{name}: {status.st_size} bytes")
    return Recording(real, limits.body_bytes)


def _open(path: Path) -> io.BufferedReader:
    # SAFETY: the name may have become a pipe or a link since it was examined.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags), "rb")


def from_base64(content: bytes) -> bytes | None:
    """The bytes that base64 text stands for; None: it is something else.

    NOTE: a request in protobuf holds bytes that are not in the alphabet: the tags
    of its features are control characters.
    """
    if not _BASE64.fullmatch(content):
        return None
    try:
        return base64.b64decode(b"".join(content.split()), validate=True) or None
    except binascii.Error:
        return None


def shown(name: str) -> str:
    """A file's name in a log line, cut and without control characters."""
    return name[:100].encode("unicode_escape").decode()
