"""How much memory a worker has for itself, and how much another one would need."""

from __future__ import annotations

import os
import re
from pathlib import Path

from procserver import shm
from procserver.errors import ServiceError
from procserver.lifecycle.master import Release, master
from procserver.model.integrity import total_bytes

# A test says how much memory there is to be had.
PRETEND = "PROCSERVER_FREE_MEMORY"
# What a new worker needs beyond the estimate: its start, the warm-up.
MARGIN = 1.2


def own_at_most(pid: int) -> int | None:
    """Bytes of a process that are in no file and no shared segment, swap included.

    Pages that it shares with the master since the fork count in full. Cheap: the
    kernel keeps the numbers. None: there is no such process.
    """
    return _kilobytes(Path(f"/proc/{pid}/status"), ("RssAnon", "VmSwap"))


def own(pid: int) -> int | None:
    """The same, each page divided by the processes that share it.

    NOTE: shared weights and the item cache count nowhere, also where one worker alone
    maps them. Costs milliseconds per gigabyte, and the process's page faults wait
    meanwhile.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    found = _kilobytes(rollup, ("Pss_Anon", "SwapPss"))
    return own_at_most(pid) if found is None else found


def _kilobytes(file: Path, names: tuple[str, ...]) -> int | None:
    """The sum of ``names``, of which the first must be there."""
    try:
        text = file.read_text()
    except OSError:
        return None
    total = 0
    for name in names:
        found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        if found is None and name == names[0]:
            return None
        total += int(found.group(1)) * 1024 if found else 0
    return total


def check_room_for(new: Release) -> None:
    """Whether a worker of another model version fits beside those that serve.

    :raises ServiceError: with needed and free bytes, if it does not
    """
    pretended = os.environ.get(PRETEND)
    free = int(pretended) if pretended else shm.available_memory()
    if free is None:
        return
    model = total_bytes(new.package)
    members = master().serving()
    worker = max((own(member.pid) or 0 for member in members), default=0)
    # Weights that are not shared are among what a worker has for itself.
    shared = all(member.release.weights.published for member in members)
    needed = int(MARGIN * (worker + model if shared else max(worker, model)))
    if needed > free:
        raise ServiceError(
            f"memory is short for one more worker: {needed} bytes needed, {free} free; "
            'procserver.reload_mode "in_place" needs less'
        )
