"""The service's private run directory, ``<state_dir>/run``: who its master is.

::

    master.lock   locked (fcntl) by the master while it runs; its pid and start time
    master.pid    the same two lines, for ``kill`` and ``procserver reload``

The lock is what counts: the kernel lets go of it when the process ends, however it
ends, and no child inherits it. The pid file is there while the master serves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from procserver.errors import ServiceError, StateInUse
from procserver.shm import Owner, is_alive, this_process

PID_FILE = "master.pid"
LOCK_FILE = "master.lock"
LOCK_BYTES = 64
# How often, and after how many seconds, the lock's file is read again for the one who
# has just got it.
TRIES = 50
PAUSE = 0.01


class Lock:
    """One master's lock on its state directory, until :meth:`release` or its end.

    NOTE: these locks belong to a process: its children have none of them, and
    closing any descriptor of the file in this process gives the lock up. So nobody
    opens the file in a master that holds it.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._fd = -1
        self.is_held = False

    def take(self) -> None:
        """Takes the lock.

        :raises StateInUse: if another process has it
        :raises ServiceError: if the system refuses
        """
        try:
            folder = _run_folder(self._state_dir)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(folder / LOCK_FILE, flags, 0o600)
        except OSError as error:
            raise ServiceError(f"{self._state_dir}: {error.strerror}") from error
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            is_taken = error.errno in (errno.EACCES, errno.EAGAIN)
            owner = _holder(fd) if is_taken else None
            os.close(fd)
            if not is_taken:
                raise ServiceError(f"{self._state_dir}: {error.strerror}") from error
            raise self._in_use(owner) from None
        self._fd = fd
        self.is_held = True
        # Always as long: a reader sees who was there before, or this.
        os.pwrite(fd, _text(this_process()).ljust(LOCK_BYTES, "\n").encode(), 0)

    def _in_use(self, owner: Owner | None) -> StateInUse:
        who = "another process" if owner is None else f"process {owner.pid}"
        return StateInUse(
            f"{who} serves from {self._state_dir} already: stop it, or give this "
            "service a name or a procserver.state_dir of its own",
            None if owner is None else owner.pid,
        )

    def release(self) -> None:
        """Gives the lock up; the file stays, for whoever waits for it by name."""
        if self.is_held:
            self.is_held = False
            os.close(self._fd)


def _holder(fd: int) -> Owner | None:
    """Who has the lock: whoever gets it writes that at once."""
    owner = None
    for _ in range(TRIES):
        owner = _parse(os.pread(fd, LOCK_BYTES, 0).decode(errors="replace"))
        if owner is not None and is_alive(owner):
            break
        time.sleep(PAUSE)
    return owner


def write_pid(state_dir: Path) -> None:
    """Says that this process is the master: its pid and start time, a line each."""
    folder = _run_folder(state_dir)
    me = this_process()
    # A reader sees the old file or the new one.
    draft = folder / f"{PID_FILE}.{me.pid}"
    draft.write_text(_text(me))
    draft.replace(folder / PID_FILE)


def remove_pid(state_dir: Path) -> None:
    """Takes that back, unless another master has taken over."""
    if _read(state_dir) == this_process():
        with suppress(OSError):
            (state_dir / "run" / PID_FILE).unlink()


def running_master(state_dir: Path) -> Owner | None:
    """The service's master, if it runs."""
    found = _read(state_dir)
    return found if found is not None and is_alive(found) else None


def _run_folder(state_dir: Path) -> Path:
    folder = state_dir / "run"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def _read(state_dir: Path) -> Owner | None:
    try:
        return _parse((state_dir / "run" / PID_FILE).read_text())
    except OSError:
        return None


def _text(owner: Owner) -> str:
    return f"{owner.pid}\n{owner.started}\n"


def _parse(text: str) -> Owner | None:
    try:
        pid, started = text.split()
        return Owner(int(pid), int(started))
    except ValueError:
        return None
