"""Live requests kept for later warm-ups (``model_config.warmup_data_path``).

Bodies as they were received, decompressed, in files ``warmup_000.pb`` and so on, as
many as ``warmup_pb_files_count`` in the whole service. Workers agree on names
without talking to each other: who creates ``.warmup_000.tmp`` owns that number until
the file is renamed. They hold features of people: only the service's user reads them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from procserver.config import ServiceConfig
from procserver.observe.metrics import CAPTURES

log = logging.getLogger("procserver.observe")

MAX_BODY_BYTES = 4 * 2**20
QUEUED = 4
# A file that is being written for so long has lost its writer.
STALE_SECONDS = 60.0
# For so long the second half of the files waits for numbers of rows not yet seen.
VARIETY_SECONDS = 60.0
# A pause after a request that added nothing: equal ones tend to come in a row.
PAUSE_SECONDS = 0.1
_NAME = re.compile(r"warmup_(\d{3,})\.pb")


def fallback_folder(service: ServiceConfig) -> Path:
    """Where captures go if they cannot go where the configuration says."""
    return service.state_dir / "warmup"


def start_capture(service: ServiceConfig) -> Capture | None:
    """The capture that the configuration asks for.

    None: none is asked for, enough files are there from earlier starts, or no folder
    can be written (a warning says so).
    """
    wanted = service.model.warmup_data_path
    count = service.model.warmup_pb_files_count
    if wanted is None or count == 0:
        return None
    copied = any(
        wanted.is_relative_to(copy.folder(service.state_dir)) for copy in service.copies
    )
    spare = fallback_folder(service)
    # What is written to a copy of a remote folder is lost with the next copy.
    places = [spare] if copied else [wanted, spare]
    # Both folders are replayed, so both count.
    if sum(_count(place) for place in (wanted, spare)) >= count:
        return None
    reason = ""
    for folder in places:
        reason = _why_not(folder)
        if not reason:
            others = _count(wanted) if folder == spare else _count(spare)
            return Capture(folder, count - others)
        if folder is not places[-1]:
            log.warning(
                "warmup_data_path: %s: %s; captures go to %s", folder, reason, spare
            )
    log.warning("no requests are captured for warm-up: %s: %s", places[-1], reason)
    return None


def _count(folder: Path) -> int:
    try:
        return sum(name.endswith(".pb") for name in os.listdir(folder))
    except OSError:
        return 0


def _why_not(folder: Path) -> str:
    """Why no file can be written there; empty: one can."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".probe"):
            return ""
    except OSError as error:
        return error.strerror or "cannot be written"


@dataclass(frozen=True)
class _Offer:
    body: bytes
    rows: int


class Capture:
    """Writes some of a worker's requests to a folder, from a thread of its own.

    Several processes may capture to one folder: together they never write more than
    ``count`` files. Call from any thread.
    """

    def __init__(self, folder: Path, count: int) -> None:
        # Files of other names count too: of another processor, or from elsewhere.
        foreign = sum(
            name.endswith(".pb") and not _NAME.fullmatch(name)
            for name in os.listdir(folder)
        )
        self._folder = folder
        self._count = count - foreign
        self._first = 0
        self._queue: queue.Queue[_Offer] = queue.Queue(QUEUED)
        self._seen: set[bytes] = set()
        self._rows: set[int] = set()
        self._done: set[str] = set()
        self._picky_until = time.monotonic() + VARIETY_SECONDS
        self._pause_until = 0.0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.is_open = True

    def offer(self, body: bytes | bytearray | memoryview, rows: int) -> None:
        """Perhaps keeps a request that was answered well; never waits.

        :param body: as it went to the pipeline; copied if it is kept
        :param rows: how many items it scored; 0: unknown
        """
        if not self.is_open or not 0 < len(body) <= MAX_BODY_BYTES:
            return
        if time.monotonic() < self._pause_until:
            return
        if self._queue.full():
            CAPTURES.add(1, "dropped")
            return
        try:
            # NOTE: the receive buffer is used again by the next request.
            # Requests that do not tell rows differ by their length.
            self._queue.put_nowait(_Offer(bytes(body), rows or len(body)))
        except queue.Full:
            CAPTURES.add(1, "dropped")
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name="capture", daemon=True
                )
                self._thread.start()

    def _work(self) -> None:
        try:
            while self.is_open:
                offer = self._queue.get()
                if self.keep(offer.body, offer.rows):
                    CAPTURES.add(1, "written")
                else:
                    self._pause_until = time.monotonic() + PAUSE_SECONDS
        except OSError as error:
            CAPTURES.add(1, "failed")
            log.warning(
                "no more requests are captured for warm-up: %s: %s",
                self._folder,
                error.strerror,
            )
        finally:
            self.is_open = False
            self._seen.clear()
            # What waits is let go with the queue.
            with contextlib.suppress(queue.Empty):
                while True:
                    self._queue.get_nowait()

    def keep(self, body: bytes, rows: int) -> bool:
        """Writes a body to the next free file; closes the capture when all are full.

        :returns: whether it was written; not if an equal one is there
        :raises OSError: if the folder cannot be written
        """
        digest = _digest(body)
        if digest in self._seen or not self._adds_variety(rows):
            return False
        name = self._claim(digest)
        if name is None:
            return False
        self._write(name, body)
        self._learn(name, digest)
        self._rows.add(rows)
        self._close_if_full()
        return True

    def _adds_variety(self, rows: int) -> bool:
        return (
            2 * len(self._done) < self._count
            or rows not in self._rows
            or time.monotonic() >= self._picky_until
        )

    def _claim(self, digest: bytes) -> str | None:
        """The name of a file that is now ours to write.

        None: an equal body is there, or every file is written or being written.
        """
        for name in self._names():
            if name in self._done:
                continue
            if self._is_there(name):
                if digest in self._seen:
                    return None
                continue
            if self._take(name):
                # It may have been renamed between the look and the claim.
                if not self._is_there(name):
                    return name
                os.unlink(self._temporary(name))
                if digest in self._seen:
                    return None
        self._close_if_full()
        return None

    def _names(self) -> Iterator[str]:
        """The names from the first that is not known to be taken."""
        while _name(self._first) in self._done:
            self._first += 1
        return (_name(i) for i in range(self._first, self._count))

    def _is_there(self, name: str) -> bool:
        """Whether a file is written; if so, what is in it is not written again."""
        try:
            content = (self._folder / name).read_bytes()
        except FileNotFoundError:
            return False
        self._learn(name, _digest(content))
        return True

    def _take(self, name: str) -> bool:
        path = self._temporary(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        for _ in range(2):
            try:
                os.close(os.open(path, flags, 0o600))
            except FileExistsError:
                if not _is_stale(path):
                    return False
                path.unlink(missing_ok=True)
            else:
                return True
        return False

    def _write(self, name: str, body: bytes) -> None:
        path = self._temporary(name)
        try:
            path.write_bytes(body)
            path.rename(self._folder / name)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _temporary(self, name: str) -> Path:
        return self._folder / f".{name.removesuffix('.pb')}.tmp"

    def _learn(self, name: str, digest: bytes) -> None:
        self._done.add(name)
        self._seen.add(digest)

    def _close_if_full(self) -> None:
        if next(self._names(), None) is None:
            self.is_open = False
            log.info(
                "all %d requests for warm-up are in %s", len(self._done), self._folder
            )


def _name(number: int) -> str:
    return f"warmup_{number:03}.pb"


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=16).digest()


def _is_stale(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return True
