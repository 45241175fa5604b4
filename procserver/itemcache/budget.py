"""Memory for a build, counted before it is taken."""

from dataclasses import dataclass

from procserver import shm
from procserver.errors import Refused
from procserver.itemcache import layout
from procserver.itemcache.reader import Generation

# What the refresher itself may take while it builds, whatever the table's size.
WORKING_BYTES = 200 << 20
PURPOSE = "the item cache"


@dataclass(frozen=True)
class Room:
    """Bytes that may still be taken; None: nobody says.

    ``shared``: of /dev/shm; ``memory``: of the machine and of the container, where
    shared memory counts as well.
    """

    shared: int
    memory: int | None

    @classmethod
    def now(cls) -> "Room":
        """As it is at this moment."""
        return cls(shm.free_shared_memory(), shm.available_memory())

    def holds(self, missing: int, working: int) -> bool:
        """Whether there is room for so much shared memory and so much other."""
        has_memory = self.memory is None or missing + working <= self.memory
        return missing <= self.shared and has_memory


def check(
    rows: int, size: int, taken: int, most: int | None, room: Room | None = None
) -> None:
    """Whether a generation of ``rows`` may grow to ``size`` bytes.

    :param size: with what is generated ahead from it
    :param taken: bytes of it that are there already
    :param most: ``procserver.max_cache_bytes``
    :param room: None: as it is now
    :raises Refused: with needed and free bytes
    """
    about = f"about {size} bytes needed for {rows} rows"
    if most is not None and size > most:
        raise Refused(
            f"no memory for {PURPOSE}: {about}, procserver.max_cache_bytes allows"
            f" {most}"
        )
    missing = size - taken
    working = min(WORKING_BYTES, missing)
    if room is None:
        room = Room.now()
        if not room.holds(missing, working) and shm.reclaim():
            # What dead services left for their next start had been spared so far.
            room = Room.now()
    if missing > room.shared:
        raise Refused(
            f"no shared memory for {PURPOSE}: {about}, {room.shared} free in"
            f" {shm.SHM}; enlarge it, for example with --shm-size"
        )
    if not room.holds(missing, working):
        raise Refused(
            f"no memory for {PURPOSE}: {about} and {working} to build it,"
            f" {room.memory} free on this machine or in this container"
        )


def expected_bytes(before: Generation, companions: int, rows: int) -> int:
    """Bytes of a generation of ``rows``, by the one before and its companions."""
    if not before.row_count:
        return 0
    return (before.nbytes + companions) * rows // before.row_count


def sampled_bytes(size: int, rows: int, expected: int) -> int:
    """Bytes of a generation of ``expected`` rows, by its first ``rows``."""
    return size * expected // rows + layout.index_bytes(expected)
