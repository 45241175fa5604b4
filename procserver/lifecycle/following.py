"""``procserver reload`` and ``refresh``: what the master is told, what came of it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from procserver import shm
from procserver.config import load
from procserver.errors import ConfigError, SharedMemoryError
from procserver.lifecycle.refreshing import FORCE, REFRESH
from procserver.lifecycle.rundir import running_master
from procserver.lifecycle.settings import config_path
from procserver.observe import metrics
from procserver.observe.block import PART, Block
from procserver.shm import Owner

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_NOT_RUNNING = 2
POLL_S = 0.1


@dataclass(frozen=True)
class Errand:
    """Something that a master does when it is told.

    ``signum`` tells it; ``counts`` reads how many it has begun and ended; ``conclude``
    prints the outcome of the last one and returns the exit status.
    """

    what: str
    signum: int
    counts: Callable[[Block], tuple[int, int]]
    conclude: Callable[[Block], int]


def main(options: argparse.Namespace) -> int:
    """Runs ``procserver reload``; returns its exit status."""
    errand = Errand("reload", signal.SIGHUP, metrics.reload_counts, _reloaded)
    return _run(options, errand, is_safe=True)


def refresh(options: argparse.Namespace) -> int:
    """Runs ``procserver refresh``; returns its exit status."""
    signum = FORCE if options.force else REFRESH
    errand = Errand("refresh", signum, metrics.refresh_counts, _refreshed)
    return _run(options, errand, is_safe=False)


def _run(options: argparse.Namespace, errand: Errand, *, is_safe: bool) -> int:
    """:param is_safe: the signal does no harm to a process that is no master of ours"""
    try:
        owner = _find(options)
    except ConfigError as error:
        # The service would refuse it too.
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return EXIT_FAILED
    if owner is None:
        print("no such service runs", file=sys.stderr)
        return EXIT_NOT_RUNNING
    if is_safe and not options.wait:
        os.kill(owner.pid, errand.signum)
        return EXIT_DONE
    try:
        block = _metrics(owner.pid)
    except SharedMemoryError as error:
        print(f"the {errand.what} cannot be followed: {error}", file=sys.stderr)
        return EXIT_FAILED
    if block is None:
        print(f"process {owner.pid} is no service of this user", file=sys.stderr)
        return EXIT_NOT_RUNNING
    if errand.what == "refresh" and not metrics.has_item_source(block):
        print("the service has no item source", file=sys.stderr)
        return EXIT_FAILED
    if not options.wait:
        os.kill(owner.pid, errand.signum)
        return EXIT_DONE
    return _follow(owner, block, errand, options.timeout)


def _find(options: argparse.Namespace) -> Owner | None:
    if options.pid is None:
        return running_master(load(options.config or config_path()).service.state_dir)
    started = shm.process_start(options.pid)
    return None if started is None else Owner(options.pid, started)


def _metrics(pid: int) -> Block | None:
    """The metrics of the service that a master runs.

    :raises SharedMemoryError: if they are another version's
    """
    for name in shm.list_segments(f"/{shm.PREFIX}"):
        if name.endswith(f".{pid}.{PART}"):
            return metrics.REGISTRY.attach(name)
    return None


def _follow(owner: Owner, block: Block, errand: Errand, timeout: float | None) -> int:
    """Signals and waits for the first one that begins from now on.

    NOTE: what begins after this look at the count has read the files after it too,
    whoever asked for it; signals are merged.
    """
    begun, _ = errand.counts(block)
    os.kill(owner.pid, errand.signum)
    end = None if timeout is None else time.monotonic() + timeout
    while errand.counts(block)[1] <= begun:
        if not shm.is_alive(owner):
            print("the service has ended", file=sys.stderr)
            return EXIT_NOT_RUNNING
        if end is not None and time.monotonic() > end:
            print(f"no outcome in {timeout:g} s", file=sys.stderr)
            return EXIT_FAILED
        time.sleep(POLL_S)
    return errand.conclude(block)


def _reloaded(block: Block) -> int:
    last = metrics.last_reload(block)
    assert last is not None
    if last["outcome"] == "done":
        print(f"reload {last['number']}: done, version {last['version']}")
        return EXIT_DONE
    outcome = str(last["outcome"]).replace("_", " ")
    print(
        f"reload {last['number']}: {outcome}, version {last['version']} stays: "
        f"{last['reason']}",
        file=sys.stderr,
    )
    return EXIT_FAILED


def _refreshed(block: Block) -> int:
    last = metrics.last_refresh(block)
    assert last is not None
    what = f"build {last['number']}: {last['outcome']}, generation {last['generation']}"
    if last["outcome"] == "published":
        print(what)
        return EXIT_DONE
    failure = last["last_failure"]
    reason = failure["reason"] if isinstance(failure, dict) else "see the log"
    print(f"{what} stays: {reason}", file=sys.stderr)
    return EXIT_FAILED
