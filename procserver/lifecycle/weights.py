"""Who loads the model and who attaches to it.

The first new worker of a model version is the *canary*: it alone verifies the
files, loads them, and publishes the weights in shared memory. The master forks
the others when it has reported, and they attach. The master owns the segment and
removes it; it never maps it.

One report crosses the pipe, ``bytes`` being the size of the segment::

    {"event": "weights", "name": "/procserver....weights-1", "bytes": ...}
    {"event": "weights", "name": null, "reason": "..."}    each needs its own copy
"""

from __future__ import annotations

import ctypes
import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from procserver import shm
from procserver.errors import FgConfigError, ModelError, NotShareable, SharedMemoryError
from procserver.faults import hit
from procserver.lifecycle.reports import Message
from procserver.observe import metrics

if TYPE_CHECKING:
    import numpy as np

    from procserver.model.loading import LoadedModel
    from procserver.model.package import ModelPackage
    from procserver.model.shared import Probe

log = logging.getLogger("procserver.lifecycle")

EVENT = "weights"
PROBE_ROWS = 8
# A model of up to so many bytes is nothing that an operator need care for.
SMALL = 1 << 20


@dataclass
class Weights:
    """What the master knows of one model version's weights.

    ``segment`` is the name that the canary may create. Once its report has made
    it ``settled``, ``published`` says whether the segment is there to attach to.
    """

    owner: shm.Owner
    segment: str
    share: bool = True
    settled: bool = False
    published: bool = False
    bytes: int = 0

    @classmethod
    def of_version(cls, service: str, version: int, *, share: bool) -> Weights:
        """Weights of the ``version``-th model that this master serves."""
        owner = shm.this_process()
        name = shm.segment_name(service, owner, f"weights-{version}")
        return cls(owner, name, share)

    def note(self, message: Message) -> None:
        """In the master: takes the canary's report."""
        self.settled = True
        self.published = message["name"] is not None
        self.bytes = message["bytes"] if self.published else 0
        metrics.SHARED_WEIGHTS_BYTES.set(self.bytes)

    def remove(self) -> None:
        """In the master: unlinks the segment, complete or not.

        Workers that have attached keep their maps; the memory goes with the last.
        """
        self.published = False
        shm.unlink(self.segment)

    def obtain(
        self,
        package: ModelPackage,
        device: str,
        *,
        is_canary: bool,
        report: Callable[..., None],
        farm_hash: bool = False,
        strict: bool = False,
    ) -> LoadedModel:
        """In a worker: the model, attached to shared weights where there are any.

        :param is_canary: this worker is to load, publish and report
        :param report: sends an event with its details to the master
        :param farm_hash: how the service's features are hashed
        :param strict: weights that could be shared must be
        :raises ModelError: if the model cannot be loaded
        :raises SharedMemoryError: if it is ``strict`` and memory does not suffice
        """
        # NOTE: torch, which only workers may use; the master imports it later.
        from procserver.model.integrity import verify
        from procserver.model.loading import load

        hit("model.load")
        if not is_canary:
            return self._follow(package, device)
        verify(package)
        if self.share:
            probe = _probe(package, farm_hash)
            return self._introduce(package, device, probe, report, strict)
        model = load(package, device=device)
        report(EVENT, name=None, reason="share_weights is off")
        return model

    def _introduce(
        self,
        package: ModelPackage,
        device: str,
        probe: Probe | None,
        report: Callable[..., None],
        strict: bool,
    ) -> LoadedModel:
        """The canary's part: load, publish, report."""
        from procserver.model.loading import load
        from procserver.model.shared import attach, publish

        model = load(package)
        try:
            published = publish(model, self.segment, self.owner, probe=probe)
        except (NotShareable, SharedMemoryError) as error:
            if strict and isinstance(error, SharedMemoryError):
                raise
            log.log(
                logging.WARNING
                if package.script.stat().st_size > SMALL
                else logging.INFO,
                "weights are not shared, each worker has a copy of its own: %s",
                error,
            )
            report(EVENT, name=None, reason=str(error))
            return model if device == "cpu" else load(package, device=device)
        report(EVENT, name=self.segment, bytes=published.bytes)
        del model
        _give_memory_back()
        if device == "cpu":
            return published.model
        return attach(package, self.segment, device=device)

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


def _probe(package: ModelPackage, farm_hash: bool) -> Probe | None:
    """A forward pass on made-up features; None: nobody knows what the model takes."""
    from procserver.fg import FeatureGenerator
    from procserver.model.runner import ModelRunner

    if package.fg_json is None:
        return None
    tile = package.input_tile != 0
    try:
        fg = FeatureGenerator(package.fg_json, farm_hash=farm_hash)
    except FgConfigError:
        # Whoever needs features says what is wrong with it.
        return None

    def run(model: LoadedModel) -> Mapping[str, np.ndarray]:
        return ModelRunner(model).run(fg.generate({}, {}, {}, PROBE_ROWS, tile=tile))

    return run


def _give_memory_back() -> None:
    """Returns the own copy's pages to the kernel, which malloc would keep."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
