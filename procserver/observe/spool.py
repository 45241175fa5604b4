"""Files written behind the requests' back: a bounded queue and a few threads.

A request is never kept waiting and never fails for a file: what does not fit into
the queue is dropped, what the disk refuses is given up, and both are counted.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from procserver.faults import hit
from procserver.observe.metrics import LOG_ENTRIES

log = logging.getLogger("procserver.observe")

MOST_ENTRIES = 256
MOST_BYTES = 64 * 2**20
LONGEST_NAME = 100
# Seconds between two lines in the log about a disk that refuses.
QUIET = 60.0

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def file_name(request_id: str) -> str:
    """``<request_id>_<random>.pb``; the id may hold anything whatsoever.

    Characters other than letters, digits, ``.``, ``_`` and ``-`` become ``_``, a
    leading dot too (such files are hidden, and ours that are not complete).
    """
    clean = _UNSAFE.sub("_", request_id[:LONGEST_NAME])
    if clean.startswith("."):
        clean = "_" + clean[1:]
    return f"{clean or 'request'}_{secrets.token_hex(8)}.pb"


@dataclass(frozen=True)
class _Entry:
    folder: Path
    name: str
    size: int
    content: Callable[[], bytes]


class Spool:
    """Writes files with ``threads`` threads, which start with the first file.

    Entries wait in one queue of at most ``most_entries``, whose requests have at
    most ``most_bytes``.
    """

    def __init__(
        self,
        threads: int,
        *,
        most_entries: int = MOST_ENTRIES,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.threads = threads
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._waiting: deque[_Entry] = deque()
        self._bytes = 0
        self._busy = 0
        self._closed = False
        self._changed = threading.Condition()
        self._started: list[threading.Thread] = []
        self._complain_at = 0.0

    def offer(
        self, folder: Path, request_id: str, size: int, content: Callable[[], bytes]
    ) -> bool:
        """Queues a file named after ``request_id``; returns at once.

        :param size: bytes that the entry keeps in memory until it is written
        :param content: called by a writing thread; makes the file's bytes
        :returns: False if it was dropped, which is counted
        """
        entry = _Entry(folder, file_name(request_id), size, content)
        with self._changed:
            fits = (
                not self._closed
                and len(self._waiting) < self._most_entries
                and self._bytes + size <= self._most_bytes
            )
            if fits:
                self._waiting.append(entry)
                self._bytes += size
                self._start_thread()
                self._changed.notify()
        if not fits:
            LOG_ENTRIES.add(1, "dropped")
        return fits

    def close(self, timeout: float) -> bool:
        """Takes nothing more and waits for what is queued; False: not all done."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._waiting or self._busy:
                left = deadline - time.monotonic()
                if left <= 0:
                    LOG_ENTRIES.add(len(self._waiting), "dropped")
                    self._waiting.clear()
                    return False
                self._changed.wait(left)
        return True

    def _start_thread(self) -> None:
        if len(self._started) < self.threads:
            # Daemons: a disk that hangs must not keep the worker from ending.
            thread = threading.Thread(target=self._work, name="spool", daemon=True)
            self._started.append(thread)
            thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                entry = self._waiting.popleft()
                self._busy += 1
            try:
                self._write(entry)
            finally:
                size = entry.size
                # What the content keeps alive goes before the next wait.
                del entry
                with self._changed:
                    self._busy -= 1
                    self._bytes -= size
                    self._changed.notify_all()

    def _write(self, entry: _Entry) -> None:
        try:
            write_whole(entry.folder, entry.name, entry.content())
        except Exception as error:
            LOG_ENTRIES.add(1, "failed")
            if time.monotonic() >= self._complain_at:
                self._complain_at = time.monotonic() + QUIET
                log.warning("%s: a request was not saved: %s", entry.folder, error)
        else:
            LOG_ENTRIES.add(1, "written")


def write_whole(folder: Path, name: str, content: bytes) -> None:
    """Makes the file appear complete or not at all. No fsync.

    :raises OSError: whatever the disk has to say; nothing is left then
    """
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    draft = folder / f".{name}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(draft, flags, 0o640)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            hit("log.write")
            left = memoryview(content)
            while left:
                left = left[file.write(left) or 0 :]
        draft.rename(folder / name)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
