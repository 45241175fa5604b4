"""Who loads the model and who attaches to it.

The first new worker of a model version is the *canary*: it alone verifies the
files, loads them, and publishes the weights in shared memory. The master forks
the others when it has reported, and they attach. The master owns the segment and
removes it; it never maps it.

One report crosses the pipe::

    {"event": "weights", "name": "/procserver....weights-1"}
    {"event": "weights", "name": null, "reason": "..."}    each needs its own copy
"""

from __future__ import annotations

import ctypes
import gc
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from procserver import shm
from procserver.errors import ModelError, NotShareable, SharedMemoryError
from procserver.lifecycle.reports import Message, Reporter

if TYPE_CHECKING:
    from procserver.model.loading import LoadedModel
    from procserver.model.package import ModelPackage
    from procserver.model.shared import Probe

log = logging.getLogger("procserver.lifecycle")

EVENT = "weights"


@dataclass
class Weights:
    """What the master knows of one model version's weights.

    ``segment`` is the name that the canary may create; ``canary`` its age
    (gunicorn's serial number) while nothing is decided. After its report
    ``published`` says whether the segment is there to attach to.
    """

    owner: shm.Owner
    segment: str
    share: bool = True
    canary: int | None = None
    settled: bool = False
    published: bool = False

    @classmethod
    def of_version(cls, service: str, version: int, *, share: bool) -> Weights:
        """Weights of the ``version``-th model that this master serves."""
        owner = shm.this_process()
        name = shm.segment_name(service, owner, f"weights-{version}")
        return cls(owner, name, share)

    def note(self, message: Message) -> None:
        """Takes the canary's report."""
        self.settled = True
        self.published = message["name"] is not None

    def remove(self) -> None:
        """Unlinks the segment, complete or not; workers keep their maps."""
        self.published = False
        shm.unlink(self.segment)

    def obtain(
        self,
        package: ModelPackage,
        device: str,
        probe: Probe,
        age: int,
        reporter: Reporter,
    ) -> LoadedModel:
        """In a worker: the model, attached to shared weights where there are any.

        :param age: of this worker, which tells whether it is the canary
        :raises ModelError: if the model cannot be loaded
        """
        if age == self.canary and not self.settled:
            return self._introduce(package, device, probe, reporter)
        return self._follow(package, device)

    def _introduce(
        self, package: ModelPackage, device: str, probe: Probe, reporter: Reporter
    ) -> LoadedModel:
        """The canary's part: verify, load, publish, report."""
        from procserver.model.integrity import verify
        from procserver.model.loading import load
        from procserver.model.shared import attach, publish

        verify(package)
        if not self.share:
            model = load(package, device=device)
            reporter.send(EVENT, name=None, reason="share_weights is off")
            return model
        model = load(package)
        try:
            shared = publish(model, self.segment, self.owner, probe=probe).model
        except (NotShareable, SharedMemoryError) as error:
            log.warning(
                "weights are not shared, each worker has a copy of its own: %s", error
            )
            reporter.send(EVENT, name=None, reason=str(error))
            return model if device == "cpu" else load(package, device=device)
        reporter.send(EVENT, name=self.segment)
        del model
        _give_memory_back()
        return (
            shared if device == "cpu" else attach(package, self.segment, device=device)
        )

    def _follow(self, package: ModelPackage, device: str) -> LoadedModel:
        """Every other worker's part."""
        from procserver.model.loading import load
        from procserver.model.shared import attach

        if self.published:
            try:
                return attach(package, self.segment, device=device)
            except (FileNotFoundError, SharedMemoryError, ModelError) as error:
                log.warning(
                    "shared weights cannot be used, this worker has a copy of its "
                    "own: %s",
                    error,
                )
        return load(package, device=device)


def _give_memory_back() -> None:
    """Returns the own copy's pages to the kernel, which malloc would keep."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
