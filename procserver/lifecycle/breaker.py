"""Requests that workers die over: noted, refused for a while, kept for people to see.

A client that retries a lost request at once sends a request that crashes the model to
one worker after the other. The master judges by what a worker was computing when it
died: its only request, or the one that did not end, is refused from then on for
``REFUSED_SECONDS``. Of several requests nobody knows which one it was, and the memory
that ran out was not one request's alone: such requests are refused when it happens to
them a second time. So at most two workers are lost, and a bystander's retry is
computed. A worker that was killed from outside says nothing about its requests.

The bodies are in ``<state_dir>/poison``, the newest ``MOST_KEPT`` of them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from procserver.lifecycle.process import Closable, Job
from procserver.lifecycle.watch import Computed, Desks
from procserver.observe.spool import file_name, write_whole

log = logging.getLogger("procserver.lifecycle")

REFUSED_SECONDS = 60.0
MOST_KEPT = 32
FOLDER = "poison"
# Guilt at which a request is refused.
_PROVEN = 2
_NANO = 1_000_000_000


@dataclass
class Breaker:
    """In the master: who is suspected, and who is refused."""

    desks: Desks
    # digest -> (guilt, until when it counts, CLOCK_MONOTONIC in ns)
    suspects: dict[int, tuple[int, int]] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)

    def note_death(self, computed: Sequence[Computed], *, crashed: bool) -> None:
        """A worker died of itself, or of its memory, while it computed these.

        :param crashed: nothing else than a request can have brought it about
        """
        # Clients may well send the same thing at the same time.
        digests = {request.digest for request in computed}
        for digest in digests:
            self._blame(digest, _PROVEN if crashed and len(digests) == 1 else 1)

    def note_stuck(self, suspects: Sequence[Computed]) -> None:
        """A worker had to be ended because of one of these."""
        self.note_death(suspects, crashed=True)

    def _blame(self, digest: int, guilt: int) -> None:
        now = time.monotonic_ns()
        self.suspects = {d: s for d, s in self.suspects.items() if s[1] > now}
        before, _ = self.suspects.get(digest, (0, 0))
        until = now + int(REFUSED_SECONDS * _NANO)
        self.suspects[digest] = (before + guilt, until)
        if before < _PROVEN <= before + guilt:
            log.error(
                "request %016x is refused for %.0f s: workers died over it",
                digest,
                REFUSED_SECONDS,
            )
        refused = {d: end for d, (g, end) in self.suspects.items() if g >= _PROVEN}
        self.desks.refuse(refused)

    def keep_body(
        self, folder: Path, pid: int, request: Computed, listeners: Sequence[Closable]
    ) -> None:
        """Saves the body out of a worker that still lives; never waits for a disk."""
        body = read_memory(pid, request.address, request.length)
        if body is None or not self.desks.is_still(request):
            log.warning("the body of request %016x is not saved", request.digest)
            return
        digest = request.digest
        job = Job(lambda: save(folder, "stuck", digest, body), listeners)
        self.jobs.append(job)

    def tidy(self) -> None:
        """Forgets children that have saved a body."""
        self.jobs = [job for job in self.jobs if not job.is_over()]


def read_memory(pid: int, address: int, length: int) -> bytes | None:
    """Bytes of a child's memory; None: they cannot be read.

    NOTE: works whatever the child is stuck in, also with the interpreter's lock held.
    """
    if not address:
        return None
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    parts = []
    try:
        while length:
            part = os.pread(fd, length, address)
            if not part:
                return None
            parts.append(part)
            address += len(part)
            length -= len(part)
    except (OSError, OverflowError):
        return None
    finally:
        os.close(fd)
    return b"".join(parts)


def save(folder: Path, why: str, digest: int, body: bytes) -> None:
    """Keeps a request's body, once for each digest; the oldest ones make room.

    A disk that refuses is only logged.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        kept = sorted(folder.glob("*.pb"), key=_age)
        if any(f"{digest:016x}" in path.name for path in kept):
            return
        for path in kept[: max(0, len(kept) - MOST_KEPT + 1)]:
            path.unlink(missing_ok=True)
        name = file_name(f"{why}-{digest:016x}")
        write_whole(folder, name, body)
    except OSError as error:
        log.warning("the body of request %016x is not saved: %s", digest, error)
    else:
        log.error("the body of request %016x is saved as %s", digest, folder / name)


def _age(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, path.name


class Keeper:
    """In a worker: saves bodies of requests that it refuses, without waiting."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: set[int] = set()

    def __call__(self, digest: int, body: bytes) -> None:
        if digest in self._seen or len(self._seen) >= MOST_KEPT:
            return
        self._seen.add(digest)
        threading.Thread(
            target=save, args=(self._folder, "crash", digest, body), daemon=True
        ).start()
