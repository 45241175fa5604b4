"""What the master knows: releases, workers, and who serves which."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from procserver.config import ServiceConfig
from procserver.lifecycle.admission import SharedCounts
from procserver.lifecycle.candidate import Contract
from procserver.lifecycle.deaths import OomKills
from procserver.lifecycle.refresher import Refresher
from procserver.lifecycle.reports import Reports
from procserver.lifecycle.rundir import Lock
from procserver.lifecycle.settings import Settings
from procserver.lifecycle.weights import Weights
from procserver.model.package import ModelPackage


@dataclass(eq=False)
class Release:
    """One reading of the service JSON and one model version: what workers serve.

    ``canary`` is the age of the worker that introduces the weights; ``contract``
    what that worker found clients may count on.
    """

    number: int
    settings: Settings
    package: ModelPackage
    weights: Weights
    canary: int | None = None
    contract: Contract | None = None

    @classmethod
    def of(cls, number: int, settings: Settings, package: ModelPackage) -> Release:
        """The ``number``-th release that this master has tried."""
        service = settings.service
        weights = Weights.of_version(
            service.name, number, share=service.host.share_weights
        )
        return cls(number, settings, package, weights)


@dataclass(eq=False)
class Member:
    """One worker as the master sees it.

    ``age`` is gunicorn's serial number of workers. A ``slot`` is no other worker's
    (rows of shared memory go by it); the ``place`` stands for cores and GPU, which
    a worker takes over from the one that it replaces. ``going``: told to end at that
    time; ``said_so``: it ends of itself; ``failure``: why it could not start.
    """

    age: int
    release: Release
    slot: int
    place: int
    reports: Reports
    gentle: bool = False
    pid: int = 0
    ready: bool = False
    said_so: bool = False
    going: float | None = None
    failure: str | None = None
    forked: float = field(default_factory=time.monotonic)


@dataclass
class Master:
    """State of the arbiter process; workers see the copy made at their fork.

    ``release`` is what workers are forked for; in a worker it is its own. ``pause``
    and ``fork_at``: workers that die before they are ready are replaced with
    growing pauses.
    """

    release: Release
    lock: Lock
    refresher: Refresher | None = None
    control_name: str | None = None
    has_been_ready: bool = False
    halting: bool = False
    releases: list[Release] = field(default_factory=list)
    members: dict[int, Member] = field(default_factory=dict)
    # What the next worker is to be; gunicorn forks it and asks ``pre_fork``.
    next: Member | None = None
    pause: float = 0.0
    fork_at: float = 0.0
    oom_kills: OomKills = field(default_factory=OomKills)
    counts: SharedCounts = field(default_factory=SharedCounts)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.releases.append(self.release)

    @property
    def settings(self) -> Settings:
        return self.release.settings

    @property
    def service(self) -> ServiceConfig:
        return self.release.settings.service

    @property
    def package(self) -> ModelPackage:
        """The model version that a worker serves, whatever is published since."""
        return self.release.package

    @property
    def weights(self) -> Weights:
        return self.release.weights

    def serving(self) -> list[Member]:
        """Workers that are not on their way out, oldest first."""
        return [m for _, m in sorted(self.members.items()) if m.going is None]

    def ready(self) -> int:
        """How many workers take requests and go on doing so."""
        return sum(m.ready for m in self.serving())


_master: Master | None = None


def master() -> Master:
    """The state that ``boot.on_starting`` made."""
    if _master is None:
        raise RuntimeError("the service has not been started")
    return _master


def set_master(state: Master | None) -> None:
    """Makes ``state`` the process's."""
    global _master
    _master = state


def started() -> bool:
    """Whether there is a master's state yet."""
    return _master is not None
