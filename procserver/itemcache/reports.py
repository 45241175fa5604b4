"""What a refresher has to tell about its work."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from procserver.errors import ProcserverError

# Kinds of work: they name metrics and stand in the log.
FULL = "full"
COMPACTION = "compaction"
# A generation without items, for a service that starts while its source is down.
EMPTY = "empty"
CHANGES = "changes"
GAP = "gap"


@dataclass(frozen=True)
class BuildBegan:
    """A build has begun; one report follows that tells how it ended."""

    kind: str = FULL


@dataclass(frozen=True)
class BuildReport:
    """What a build did; ``skipped`` counts rows left out, by reason.

    ``kind``: from the source, from what is served (``COMPACTION``), or ``EMPTY``.
    ``replayed``: changes that came while it was made and were published with it, in
    a delta of ``delta_rows`` and ``delta_bytes``. ``rows``: items, with those changes.
    ``pregenerated``: features generated ahead, which took ``companion_bytes`` and
    ``companion_seconds``; ``companion_problem`` tells why there are none.
    """

    generation: int
    rows: int
    bytes: int
    seconds: float
    skipped: dict[str, int]
    pregenerated: int = 0
    companion_bytes: int = 0
    companion_seconds: float = 0.0
    companion_problem: str = ""
    kind: str = FULL
    replayed: int = 0
    delta_rows: int = 0
    delta_bytes: int = 0


@dataclass(frozen=True)
class AttachReport:
    """A refresher took over what another one had published.

    ``continues``: it goes on from a saved cursor, else it builds anew.
    """

    generation: int
    rows: int
    bytes: int
    delta_rows: int
    continues: bool
    delta_bytes: int = 0


@dataclass(frozen=True)
class CompanionReport:
    """What became of the companion that a ``make`` command asked for.

    ``problem`` tells why there is none; without inputs there is none either.
    """

    label: str
    generation: int
    pregenerated: int = 0
    companion_bytes: int = 0
    companion_seconds: float = 0.0
    companion_problem: str = ""


@dataclass(frozen=True)
class ChangesReport:
    """What was applied since the last such report, and what there is now.

    ``expired``: items that ended by their age. ``newest``: time of the newest change,
    seconds since 1970, if the source tells. ``current``: it was asked just now.
    ``rows``: items, those of the delta included (None: nobody has counted).
    """

    generation: int
    upserted: int = 0
    deleted: int = 0
    stale: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    delta_rows: int = 0
    delta_bytes: int = 0
    newest: float | None = None
    expired: int = 0
    current: bool = True
    rows: int | None = None


@dataclass(frozen=True)
class FailureReport:
    """Something did not work: ``kind`` is what; it is tried again in ``pause`` s."""

    kind: str
    error: ProcserverError
    pause: float = 0.0


Report = (
    BuildBegan
    | BuildReport
    | AttachReport
    | CompanionReport
    | ChangesReport
    | FailureReport
)
