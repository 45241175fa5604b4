"""The control segment: which generation of each item table is current."""

import os
from contextlib import suppress

from cython_ext.shm import Mapping
from procserver import shm
from procserver.errors import SourceError
from procserver.itemcache import layout
from procserver.shm import Owner


def base_name(name: str) -> str:
    """The generation that a companion or delta belongs to, by their names."""
    # NOTE: a service's name may hold a dash too, but no dot.
    start, dot, part = name.rpartition(".")
    return start + dot + part.partition("-")[0]


def is_generation(name: str) -> bool:
    """Whether a name is that of a generation, companion or delta."""
    return base_name(name).rpartition(".")[2].isdigit()


def is_cache_part(part: str) -> bool:
    """Whether the last part of a segment's name is of the item cache's."""
    return part == layout.CURSOR or part.partition("-")[0].isdigit()


def is_sealed(name: str) -> bool:
    """Whether a generation or companion was completed."""
    return bool(_flags(name) & layout.SEALED)


def is_usable(name: str) -> bool:
    """Whether it was completed, or is a delta, which never is."""
    return bool(_flags(name) & (layout.SEALED | layout.DELTA))


def _flags(name: str) -> int:
    try:
        with (shm.SHM / name.removeprefix("/")).open("rb") as file:
            header = layout.Header.unpack(file.read(layout.HEAD_BYTES))
    except (OSError, SourceError):
        return 0
    return header.flags


class ControlSegment:
    """One page that names the current generations; drawn in ``layout``.

    The owner (the master) creates it and unlinks it at the end; its refresher,
    the only writer, inherits it over fork; workers open it read-only by name.
    What a worker inherits it makes read-only (:meth:`protect`). Numbers only ever
    grow, so a reader never goes back to an older generation.
    """

    def __init__(self, name: str, mapping: Mapping) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.name = name
        # Of the source's configuration: what is built from it says so.
        self.source = ""
        self._mapping = mapping
        self.owner = layout.unpack_control(memoryview(mapping)[:64].tobytes())

    @classmethod
    def create(cls, service: str, owner: Owner | None = None) -> "ControlSegment":
        """Creates the control segment of a service, owned by this process.

        What a dead process of the same pid left under the name is removed first.

        :raises SourceError: if a live process or somebody else holds the name
        """
        owner = owner or shm.this_process()
        name = shm.segment_name(service, owner, layout.CONTROL)
        shm.reclaim(name.removesuffix(layout.CONTROL))
        try:
            fd = shm.create(name)
        except FileExistsError as error:
            raise SourceError(f"shared memory {name} belongs to another") from error
        try:
            shm.allocate(fd, 0, layout.CONTROL_BYTES)
            mapping = Mapping(fd, layout.CONTROL_BYTES, writable=True)
            head = layout.pack_control(owner)
            memoryview(mapping)[: len(head)] = head
        except BaseException:
            shm.unlink(name)
            raise
        finally:
            os.close(fd)
        return cls(name, mapping)

    @classmethod
    def open(cls, name: str) -> "ControlSegment":
        """Maps an existing control segment read-only.

        :raises SourceError: if there is none, or it is not one of ours
        """
        try:
            mapping = shm.attach(name)
        except FileNotFoundError as error:
            raise SourceError(f"no item cache: {error}") from error
        if len(mapping) != layout.CONTROL_BYTES:
            raise SourceError(f"shared memory {name} is no control segment")
        return cls(name, mapping)

    def protect(self) -> None:
        """Makes the map read-only in this process, which has inherited it."""
        self._mapping.protect()

    def generation_name(self, number: int) -> str:
        """Name of the segment of a generation."""
        return f"{self.name.removesuffix(layout.CONTROL)}{number}"

    def companion_name(self, number: int, digest: str) -> str:
        """Name of the companion that ``digest`` made of a generation."""
        return f"{self.generation_name(number)}-{digest[: layout.DIGEST_DIGITS]}"

    def delta_name(self, number: int, digest: str = "") -> str:
        """Name of the delta of a generation, or of its companion's."""
        name = (
            self.companion_name(number, digest)
            if digest
            else (self.generation_name(number))
        )
        return f"{name}-{layout.DELTA_PART}"

    def state(self, table: int = 0) -> tuple[int, int]:
        """(generation, delta count) of a table, read in one; (0, 0): none yet."""
        return layout.unpack_state(self._mapping.load(layout.state_offset(table)))

    def beat(self) -> None:
        """Notes in its time stamp that the owner lives."""
        with suppress(OSError):
            os.utime(shm.SHM / self.name.removeprefix("/"))

    def allocated(self) -> int:
        """The last generation number handed out."""
        return self._mapping.load(layout.CONTROL_ALLOCATED)

    def go_on(self, allocated: int, states: dict[int, tuple[int, int]]) -> None:
        """Publishes what another control segment did. For the owner, before others
        know its name.
        """
        self._mapping.store(layout.CONTROL_ALLOCATED, allocated)
        for table, (generation, deltas) in states.items():
            state = layout.pack_state(generation, deltas)
            self._mapping.store(layout.state_offset(table), state)

    def next_number(self) -> int:
        """Hands out a generation number. Writer only."""
        return self._mapping.add(layout.CONTROL_ALLOCATED, 1) + 1

    def publish(self, generation: int, table: int = 0, deltas: int = 0) -> None:
        """Makes a sealed generation the current one of its table. Writer only.

        :param deltas: records of its delta that are there for readers
        """
        state = layout.pack_state(generation, deltas)
        self._mapping.store(layout.state_offset(table), state)

    def sweep(self) -> int:
        """Unlinks what no state names: builds that died, late unlinks.

        Writer only, and not while a build runs. Companions and deltas go with their
        generation, or if they were not completed. Foreign segments under our names
        stay. Returns how many went.
        """
        current = {self.state(table)[0] for table in range(layout.TABLES)}
        keep = {self.generation_name(number) for number in current} | {self.name}
        return sum(
            self._unlink_own(name)
            for name in shm.list_segments(self.generation_name(0)[:-1])
            if name not in keep
            and is_generation(name)
            and (base_name(name) not in keep or not is_usable(name))
        )

    def unlink_generation(self, number: int) -> None:
        """Removes a generation that is not current any more, and what belongs to it.

        Readers keep what they have mapped.
        """
        name = self.generation_name(number)
        shm.unlink(name)
        for companion in shm.list_segments(f"{name}-"):
            self._unlink_own(companion)

    def unlink_companion(self, number: int, digest: str) -> None:
        """Removes what ``digest`` made of a generation and of its delta."""
        shm.unlink(self.companion_name(number, digest))
        shm.unlink(self.delta_name(number, digest))

    def unlink_delta(self, number: int) -> None:
        """Removes the delta of a generation, and those of its companions."""
        start = f"{self.generation_name(number)}-"
        for name in shm.list_segments(start):
            if name.endswith(f"-{layout.DELTA_PART}"):
                self._unlink_own(name)

    def _unlink_own(self, name: str) -> bool:
        owners = (self.owner, Owner(self.owner.pid, 0))
        return shm.recorded_owner(name) in owners and shm.unlink(name)

    def unlink(self) -> None:
        """Removes the control segment and every generation of its owner.

        For the owner at its end; workers keep what they have mapped.
        """
        for table in range(layout.TABLES):
            if self._mapping.load(layout.state_offset(table)):
                self._mapping.store(layout.state_offset(table), 0)
        self.sweep()
        for part in (layout.CURSOR, layout.CURSOR_DRAFT):
            shm.unlink(self.name.removesuffix(layout.CONTROL) + part)
        shm.unlink(self.name)
