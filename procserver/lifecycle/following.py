"""``procserver reload``: which service, what to tell it, what came of it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time

from procserver import shm
from procserver.config import load
from procserver.errors import ConfigError, SharedMemoryError
from procserver.lifecycle.rundir import running_master
from procserver.lifecycle.settings import config_path
from procserver.observe import metrics
from procserver.observe.block import PART, Block
from procserver.shm import Owner

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_NOT_RUNNING = 2
POLL_S = 0.1


def main(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
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
    if not options.wait:
        os.kill(owner.pid, signal.SIGHUP)
        return EXIT_DONE
    try:
        block = _metrics(owner.pid)
    except SharedMemoryError as error:
        print(f"the reload cannot be followed: {error}", file=sys.stderr)
        return EXIT_FAILED
    if block is None:
        print(f"process {owner.pid} is no service of this user", file=sys.stderr)
        return EXIT_NOT_RUNNING
    return _follow(owner, block, options.timeout)


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


def _follow(owner: Owner, block: Block, timeout: float | None) -> int:
    """Signals and waits for the first reload that begins from now on.

    NOTE: what begins after this look at the count has read the files after it too,
    whoever asked for it; HUPs are merged.
    """
    begun, _ = metrics.reload_counts(block)
    os.kill(owner.pid, signal.SIGHUP)
    end = None if timeout is None else time.monotonic() + timeout
    while metrics.reload_counts(block)[1] <= begun:
        if not shm.is_alive(owner):
            print("the service has ended", file=sys.stderr)
            return EXIT_NOT_RUNNING
        if end is not None and time.monotonic() > end:
            print(f"no outcome in {timeout:g} s", file=sys.stderr)
            return EXIT_FAILED
        time.sleep(POLL_S)
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
