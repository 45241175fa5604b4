"""The master's crew: workers forked, heard, told to go, counted when they end."""

from __future__ import annotations

import select
import signal
import time
from typing import Any

from gunicorn.errors import HaltServer

from procserver.lifecycle.candidate import Contract
from procserver.lifecycle.master import Member, Release, master
from procserver.lifecycle.process import be_normal
from procserver.lifecycle.reports import Reports
from procserver.lifecycle.weights import EVENT as WEIGHTS
from procserver.observe import metrics

EXIT_CANARY_DIED = 3
POLL_MS = 50
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
# After a worker's own deadline, before the master ends it.
GRACE_S = 3.0


def spawn(
    server: Any, release: Release, *, place: int | None = None, gentle: bool = False
) -> Member:
    """Forks a worker of ``release``.

    :param place: of the worker that it replaces; None: the first free one
    :param gentle: it is in nobody's way until it is ready
    """
    state = master()
    serving = state.serving()
    if place is None:
        taken = {member.place for member in serving}
        place = next(p for p in range(len(taken) + 1) if p not in taken)
    slots = {member.slot for member in state.members.values()}
    slot = next(s for s in range(len(slots) + 1) if s not in slots)
    # NOTE: gunicorn counts the age up when it forks.
    age = server.worker_age + 1
    member = Member(age, release, slot, place, Reports.open(), gentle)
    state.next = member
    member.pid = server.spawn_worker()
    member.reports.in_master()
    return member


def pre_fork(server: Any, worker: Any) -> None:
    """Gunicorn hook: in the master, before each fork of a worker."""
    state = master()
    assert state.next is not None
    member, state.next = state.next, None
    worker.member = member
    worker.workers = server.num_workers
    worker.before = state.release.contract
    if not member.release.weights.settled:
        member.release.canary = member.age
    state.counts.open_slot(member.slot, member.release.number)
    state.members[member.age] = member
    metrics.WORKER_STARTS.add()


def child_exit(server: Any, worker: Any) -> None:
    """Gunicorn hook: in the master, after a worker was reaped.

    :raises HaltServer: for the very first worker, if it died before it reported:
        there is nothing that another worker could do better
    """
    state, age = master(), worker.age
    note_reports()
    member = state.members.pop(age)
    member.reports.close()
    state.counts.clear_slot(member.slot)
    metrics.WORKER_DEATHS.add(
        1, state.oom_kills.cause(was_ready=member.ready, said_so=member.said_so)
    )
    first = not state.has_been_ready and age == state.release.canary
    if first and not state.weights.settled and not state.halting:
        raise HaltServer(
            "the first worker died while it loaded the model", EXIT_CANARY_DIED
        )
    if not member.ready and member.going is None and member.release is state.release:
        state.pause = min(max(2 * state.pause, FIRST_PAUSE), LONGEST_PAUSE)
        state.fork_at = time.monotonic() + state.pause
        server.log.error(
            "a worker died before it was ready; the next one comes in %.0f s",
            state.pause,
        )


def keep_up(server: Any, *, but: Release | None = None) -> None:
    """As many workers as there should be, workers of ``but`` left aside."""
    state = master()
    serving = [m for m in state.serving() if m.release is not but]
    while len(serving) > server.num_workers:
        dismiss(server, serving.pop(0))
    for _ in range(server.num_workers - len(serving)):
        if time.monotonic() < state.fork_at:
            return
        spawn(server, state.release)


def dismiss(server: Any, member: Member) -> None:
    """Tells a worker to answer what it has and to end; a booting one just ends."""
    member.going = time.monotonic()
    server.kill_worker(member.pid, signal.SIGTERM if member.ready else signal.SIGKILL)


def hurry(server: Any) -> None:
    """Ends workers whose time is over: at their start, or on their way out."""
    now = time.monotonic()
    for member in list(master().members.values()):
        boot = member.release.settings.service.host.boot_seconds
        if member.going is not None:
            late = now > member.going + server.cfg.graceful_timeout + GRACE_S
        else:
            late = not member.ready and now > member.forked + boot + GRACE_S
        if late:
            server.log.error("worker %d is late and is killed", member.pid)
            server.kill_worker(member.pid, signal.SIGKILL)
        elif member.gentle and not member.ready and now > member.forked + boot / 3:
            # On a machine without an idle moment it would never get ready.
            member.gentle = False
            be_normal(member.pid)


def note_reports() -> None:
    """Takes in what workers have to say."""
    state = master()
    for member in state.members.values():
        for message in member.reports.poll():
            event = message["event"]
            if event == "ready":
                member.ready = True
                state.pause = state.fork_at = 0.0
                if member.age == member.release.canary:
                    member.release.contract = Contract.read(message["contract"])
            elif event == "leaving":
                member.said_so = True
            elif event == "failed":
                member.failure = message["reason"]
            elif event == WEIGHTS:
                member.release.weights.note(message)
    metrics.WORKERS_READY.set(state.ready())


def wait(server: Any, readers: list[int], seconds: float) -> None:
    """Waits for a report or a signal, then has the arbiter's next turn come at once."""
    end = time.monotonic() + seconds
    poll = select.poll()
    for member in master().members.values():
        if not member.reports.closed:
            poll.register(member.reports.reader, select.POLLIN)
    for reader in readers:
        poll.register(reader, select.POLLIN)
    while server.SIG_QUEUE.empty() and time.monotonic() < end:
        if poll.poll(POLL_MS):
            break
    server.wakeup()
