"""Taking over what a dead owner left: the item cache outlives its service.

A master that was killed leaves its segments behind; one that shall keep them when it
ends renames them to ``/procserver-kept.<service>.<ownerpid>.<part>``, where nobody
looks for garbage. The next master of the service takes over the newest complete set
of the same source:

1. every segment that belongs to it is checked, headers and schemas, while it still
   belongs to the dead;
2. each header gets the new owner, each segment the new owner's name (a second link,
   then the first is removed: an existing name is never overwritten);
3. the old control segment goes, a new one is created, and numbers go on from there.

An owner says every minute that it lives, by the time stamp of its control segment.
Whoever dies half way leaves segments of a dead owner and no control segment that
names them: garbage, which the next start removes. Nothing is allocated before 3, and
all of it takes milliseconds: the checksum of all bytes is compared by the new
refresher, before any worker reads them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from procserver import shm
from procserver.errors import ServiceError, SourceError
from procserver.itemcache import layout
from procserver.itemcache.control import ControlSegment, is_cache_part
from procserver.itemcache.reader import Companion, Delta, Generation
from procserver.shm import SHM, Owner

log = logging.getLogger(__name__)

KEPT = "procserver-kept."
# Seconds for which the caches of other services' dead owners are left alone.
GRACE = 3600.0


@dataclass(frozen=True)
class Adopted:
    """What was taken over: states by table, and what was published last.

    ``items``, ``bytes`` and ``companion_bytes`` are those of table 0; ``built_at`` in
    seconds since 1970.
    """

    states: dict[int, tuple[int, int]]
    allocated: int
    items: int
    bytes: int
    companion_bytes: int
    built_at: float

    @property
    def generation(self) -> int:
        """The number that is published."""
        return self.states[0][0]

    def hand_over(self, control: ControlSegment) -> None:
        """Publishes it under the new control segment."""
        control.go_on(self.allocated, self.states)


@dataclass(frozen=True)
class _Estate:
    """One dead owner's control segment, and what it names."""

    control: ControlSegment
    states: dict[int, tuple[int, int]]
    generations: dict[int, Generation]
    segments: tuple[str, ...]


def take_over(service: str, source: str, owner: Owner | None = None) -> Adopted | None:
    """The newest sound set of segments that a dead owner left; None: there is none.

    Call before :func:`procserver.shm.reclaim` and before a new control segment is
    created. What is not taken stays for ``reclaim``.

    :param source: digest of the source's configuration; another one's data are not
        taken
    """
    found = [estate for name in _left(service) if (estate := _open(name, source))]
    for estate in sorted(found, key=_built_at, reverse=True):
        try:
            return _take(service, estate, owner or shm.this_process())
        except (OSError, ServiceError) as error:
            log.warning("%s is not taken over: %s", estate.control.name, error)
    return None


def keep(control: ControlSegment) -> int:
    """Puts a service's segments aside for its next start; returns how many.

    What was put aside before goes. For the owner at its end, after its refresher.
    """
    start = control.name.removesuffix(layout.CONTROL)
    kept = f"/{KEPT}{start.removeprefix(f'/{shm.PREFIX}')}"
    for name in shm.list_segments(kept.rpartition(".")[0].rpartition(".")[0] + "."):
        shm.unlink(name)
    control.sweep()
    count = 0
    # The control segment last: without it the others are garbage.
    for name in sorted(_named(control), key=lambda n: n == control.name):
        count += _move(name, kept + name.removeprefix(start))
    return count


def clear(service: str) -> int:
    """Removes what dead owners left; returns how many segments.

    All of this service. Of other services not the item caches, which their own next
    start may want, until their owner has been dead for an hour.
    """
    clean = shm.clean_service(service)
    removed = shm.reclaim(f"/{shm.PREFIX}{clean}.") + forget(service)
    for name in shm.dead_segments(f"/{shm.PREFIX}"):
        if not _may_be_wanted(name):
            removed += shm.unlink(name)
    return removed


def _may_be_wanted(name: str) -> bool:
    """Whether a segment belongs to an item cache whose owner died lately."""
    start, _, part = name.rpartition(".")
    if part != layout.CONTROL and not is_cache_part(part):
        return False
    try:
        seen = (SHM / f"{start}.{layout.CONTROL}".removeprefix("/")).stat().st_mtime
    except OSError:
        return False
    return time.time() - seen < GRACE


def forget(service: str) -> int:
    """Removes what dead owners of a service put aside; returns how many segments."""
    return shm.reclaim(f"/{KEPT}{shm.clean_service(service)}.")


def _left(service: str) -> Iterator[str]:
    """Control segments of dead owners of a service."""
    clean = shm.clean_service(service)
    for prefix in (shm.PREFIX, KEPT):
        for name in shm.dead_segments(f"/{prefix}{clean}."):
            if name.endswith(f".{layout.CONTROL}"):
                yield name


def _built_at(estate: _Estate) -> float:
    return estate.generations[0].built_at


def _open(name: str, source: str) -> _Estate | None:
    """What a dead owner left, headers and schemas checked; None: not usable."""
    try:
        control = ControlSegment.open(name)
        states, generations = {}, {}
        for table in range(layout.TABLES):
            state = control.state(table)
            if not state[0]:
                continue
            generation = Generation(shm.attach(control.generation_name(state[0])))
            if generation.header.owner != control.owner:
                raise SourceError(f"generation {state[0]} belongs to another")
            if generation.source != source:
                raise SourceError("it was loaded from another source")
            if state[1]:
                _check_delta(control, generation, state[1])
            states[table], generations[table] = state, generation
        if 0 not in states:
            return None
        return _Estate(control, states, generations, tuple(_named(control)))
    except (OSError, ServiceError) as error:
        log.info("%s is not taken over: %s", name, error)
        return None


def _check_delta(control: ControlSegment, generation: Generation, count: int) -> None:
    """:raises SourceError: if a delta of ``count`` records is not there"""
    delta = Delta(shm.attach(control.delta_name(generation.number)))
    if (
        delta.header.owner != control.owner
        or delta.number != generation.number
        or delta.row_count < count
    ):
        raise SourceError(f"generation {generation.number}: a foreign delta")


def _named(control: ControlSegment) -> Iterator[str]:
    """The control segment, and what belongs to the states that it publishes."""
    yield control.name
    yield from shm.list_segments(
        f"{control.name.removesuffix(layout.CONTROL)}{layout.CURSOR}"
    )
    for table in range(layout.TABLES):
        number, _ = control.state(table)
        if number:
            yield control.generation_name(number)
            yield from shm.list_segments(f"{control.generation_name(number)}-")


def _take(service: str, estate: _Estate, owner: Owner) -> Adopted:
    start = estate.control.name.removesuffix(layout.CONTROL)
    new_start = shm.segment_name(service, owner, "")
    companions = 0
    for name in estate.segments:
        if name == estate.control.name:
            continue
        try:
            companions += _companion_bytes(name)
        except (OSError, ServiceError) as error:
            # Features are generated for each request then, until the next build.
            log.info("%s is not taken over: %s", name, error)
            continue
        _give(name, owner)
        _move(name, new_start + name.removeprefix(start))
    allocated = estate.control.allocated()
    shm.unlink(estate.control.name)
    first = estate.generations[0]
    return Adopted(
        states=estate.states,
        allocated=allocated,
        items=first.item_count,
        bytes=first.nbytes,
        companion_bytes=companions,
        built_at=first.built_at,
    )


def _companion_bytes(name: str) -> int:
    """Size of a companion; 0 for other segments.

    :raises SourceError: if it, or what was generated of its delta, is not sound
    """
    _, _, digest = name.rpartition(".")[2].partition("-")
    if not digest or digest == layout.DELTA_PART:
        return 0
    if digest.endswith(f"-{layout.DELTA_PART}"):
        Delta(shm.attach(name), layout.DELTA | layout.COMPANION)
        return 0
    return Companion(shm.attach(name)).nbytes


def _give(name: str, owner: Owner) -> None:
    """Writes a new owner into a segment's header.

    :raises SourceError: if it is no segment of the item cache
    """
    fd = os.open(SHM / name.removeprefix("/"), os.O_RDWR | os.O_NOFOLLOW)
    try:
        if name.endswith(f".{layout.CURSOR}"):
            # NOTE: its checksum is of what follows the prologue.
            head = shm.PROLOGUE.unpack(os.pread(fd, shm.PROLOGUE.size, 0))
            os.pwrite(fd, shm.PROLOGUE.pack(*head[:2], owner.pid, owner.started), 0)
            return
        header = layout.Header.unpack(os.pread(fd, layout.HEAD_BYTES, 0))
        header = replace(header, owner_pid=owner.pid, owner_started=owner.started)
        os.pwrite(fd, header.pack(), 0)
    finally:
        os.close(fd)


def _move(name: str, new: str) -> bool:
    """Renames a segment; a name that is taken is not overwritten.

    :raises FileExistsError: if it is taken
    """
    old, target = SHM / name.removeprefix("/"), SHM / new.removeprefix("/")
    if old == target:
        return False
    os.link(old, target, follow_symlinks=False)
    old.unlink()
    return True
