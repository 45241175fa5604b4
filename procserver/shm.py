"""POSIX shared memory segments: names, owners, and the four calls we make.

Every segment of ours is called ``/procserver.<service>.<ownerpid>.<part>`` and begins
with the same 24 bytes (little-endian)::

    offset  size  field
         0     8  magic: "PSRV" and four letters for what it holds
         8     4  layout version of what it holds
        12     4  owner pid
        16     8  owner start time (clock ticks, field 22 of /proc/PID/stat)

A segment is created with ``O_CREX`` and mode 0600 (an existing name is never
opened for writing, for that would resize what is not ours; but a delta is, by the
successor of its writer), given its memory by
``posix_fallocate`` (a sparse file on a full tmpfs is a SIGBUS later on), and
unlinked by name. ``multiprocessing.shared_memory`` is not used: its tracker
unlinks a segment when any reader exits.
"""

import hashlib
import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import posix_ipc

from cython_ext.shm import Mapping
from procserver.cgroup import Groups
from procserver.errors import SharedMemoryError
from procserver.faults import hit

SHM = Path("/dev/shm")
PREFIX = "procserver."
ITEM_CACHE = "the item cache"
FAMILY = b"PSRV"
PROLOGUE = struct.Struct("<8sIIQ")
LONGEST_SERVICE = 64
# What /dev/shm has in a container that was not given --shm-size.
DOCKER_BYTES = 64 << 20


@dataclass(frozen=True)
class Owner:
    """The process that owns segments: its pid alone could be another's by now."""

    pid: int
    started: int


def process_start(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None: no such process.

    One that has ended and only waits to be reaped is no process any more.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # NOTE: the second field is the program's name in brackets and may itself
    # hold brackets and spaces, so fields are counted from the last bracket.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def this_process() -> Owner:
    """This process as an owner of segments."""
    pid = os.getpid()
    return Owner(pid, process_start(pid) or 0)


def is_alive(owner: Owner) -> bool:
    """Whether that very process still runs (a reused pid is another one)."""
    return process_start(owner.pid) == owner.started


def clean_service(service: str) -> str:
    """The service's name as a part of segment names, at most 64 characters.

    A name that had to be altered gets eight digits of its hash, so that two
    services never share one.
    """
    clean = re.sub(r"[^A-Za-z0-9_-]", "_", service)
    if clean == service and 0 < len(clean) <= LONGEST_SERVICE:
        return clean
    digest = hashlib.sha256(service.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{clean[: LONGEST_SERVICE - 9]}-{digest}"


def segment_name(service: str, owner: Owner, part: int | str) -> str:
    """``/procserver.<service>.<ownerpid>.<part>``."""
    return f"/{PREFIX}{clean_service(service)}.{owner.pid}.{part}"


def list_segments(prefix: str) -> list[str]:
    """Names of the existing segments that start with ``prefix`` (with its "/")."""
    start = prefix.removeprefix("/")
    try:
        names = os.listdir(SHM)
    except OSError:
        return []
    return sorted(f"/{name}" for name in names if name.startswith(start))


def create(name: str) -> int:
    """Creates an empty segment; returns its descriptor, the caller's to close.

    :raises FileExistsError: if the name is taken, by whomever
    :raises SharedMemoryError: if the system refuses
    """
    try:
        memory = posix_ipc.SharedMemory(name, flags=posix_ipc.O_CREX, mode=0o600)
    except posix_ipc.ExistentialError:
        raise FileExistsError(f"shared memory {name} exists") from None
    except (OSError, posix_ipc.Error) as error:
        raise SharedMemoryError(
            f"cannot create shared memory {name}: {error}"
        ) from error
    return int(memory.fd)


def allocate(
    fd: int, start: int, stop: int, detail: str = "", *, purpose: str = ITEM_CACHE
) -> None:
    """Gives the segment zeroed memory for its bytes ``start`` to ``stop``.

    :raises SharedMemoryError: with needed and free bytes, if there is not enough;
        nothing has been written then
    """
    try:
        if purpose is ITEM_CACHE:
            hit("cache.alloc")
        os.posix_fallocate(fd, start, stop - start)
    except OSError as error:
        free = free_shared_memory()
        raise SharedMemoryError(
            f"no shared memory for {purpose}: {stop - start} bytes needed"
            f" ({stop} in this segment{detail}), {free} free in {SHM}"
            f" ({error.strerror}); enlarge it, for example with --shm-size"
        ) from error


def free_shared_memory() -> int:
    """Bytes that shared memory has left, as its file system counts them."""
    stats = os.statvfs(SHM)
    return stats.f_bavail * stats.f_frsize


def total_shared_memory() -> int:
    """Bytes that shared memory has, free or not."""
    stats = os.statvfs(SHM)
    return stats.f_blocks * stats.f_frsize


def is_small() -> bool:
    """Whether shared memory is what Docker gives: 64 MB, too little for tables."""
    return total_shared_memory() <= DOCKER_BYTES


def total_size(prefix: str) -> int:
    """Bytes of the segments whose names start with ``prefix`` (with its "/")."""
    total = 0
    for name in list_segments(prefix):
        with suppress(OSError):
            # Blocks, not size: a delta sets aside more room than it takes.
            total += (SHM / name.removeprefix("/")).stat().st_blocks * 512
    return total


def available_memory() -> int | None:
    """Bytes that may still be allocated here: the machine's, and the container's.

    None: the kernel does not say.
    """
    free = [
        value for value in (_machine_memory(), Groups().memory()) if value is not None
    ]
    return min(free, default=None)


def _machine_memory() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def attach(name: str, *, copy_on_write: bool = False) -> Mapping:
    """Maps an existing segment read-only.

    :param copy_on_write: writes are allowed and stay in this process
    :raises FileNotFoundError: if there is none of that name
    :raises SharedMemoryError: if it is empty or the system refuses
    """
    try:
        memory = posix_ipc.SharedMemory(name, read_only=True)
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(f"no shared memory {name}") from None
    except (OSError, posix_ipc.Error) as error:
        raise SharedMemoryError(f"cannot open shared memory {name}: {error}") from error
    try:
        size = os.fstat(memory.fd).st_size
        if not size:
            raise SharedMemoryError(f"shared memory {name} is empty")
        return Mapping(memory.fd, size, copy_on_write=copy_on_write)
    finally:
        memory.close_fd()


def reopen(name: str) -> int:
    """Opens a segment for writing once more; the caller knows that it is his.

    :return: its descriptor, the caller's to close
    :raises FileNotFoundError: if there is none of that name
    :raises SharedMemoryError: if the system refuses
    """
    try:
        return int(posix_ipc.SharedMemory(name).fd)
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(f"no shared memory {name}") from None
    except (OSError, posix_ipc.Error) as error:
        raise SharedMemoryError(f"cannot open shared memory {name}: {error}") from error


def unlink(name: str) -> bool:
    """Removes a name; maps of it stay valid. Returns whether it was there."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return False
    return True


def recorded_owner(name: str) -> Owner | None:
    """Who made a segment of ours; None: it is foreign, or gone.

    One that its maker left before it wrote the header (empty, or zeros) belongs
    to the pid in its name, with start time 0.
    """
    try:
        pid = int(name.split(".")[-2])
        path = SHM / name.removeprefix("/")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            head = file.read(PROLOGUE.size)
    except (OSError, ValueError, IndexError):
        return None
    if not any(head):
        return Owner(pid, 0)
    if len(head) < PROLOGUE.size or not head.startswith(FAMILY):
        return None
    _, _, pid, started = PROLOGUE.unpack(head)
    return Owner(pid, started)


def dead_segments(prefix: str) -> Iterator[str]:
    """Segments of ours whose owner is dead."""
    for name in list_segments(prefix):
        owner = recorded_owner(name)
        if owner is None:
            continue
        gone = (
            process_start(owner.pid) is None
            if owner.started == 0
            else not is_alive(owner)
        )
        if gone:
            yield name


def reclaim(prefix: str = f"/{PREFIX}") -> int:
    """Unlinks the segments of dead owners; returns how many.

    A segment counts as ours when its name, its uid and its first bytes say so; the
    owner is dead when no process has its pid and start time. Live owners' and
    foreign segments are never touched.
    """
    return sum(unlink(name) for name in dead_segments(prefix))
