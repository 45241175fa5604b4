"""The service's private run directory, ``<state_dir>/run``: who its master is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from procserver.shm import Owner, is_alive, this_process

PID_FILE = "master.pid"


def write_pid(state_dir: Path) -> None:
    """Says that this process is the master: its pid and start time, a line each."""
    folder = state_dir / "run"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    me = this_process()
    # A reader sees the old file or the new one.
    draft = folder / f"{PID_FILE}.{me.pid}"
    draft.write_text(f"{me.pid}\n{me.started}\n")
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


def _read(state_dir: Path) -> Owner | None:
    try:
        pid, started = (state_dir / "run" / PID_FILE).read_text().split()
        return Owner(int(pid), int(started))
    except (OSError, ValueError):
        return None
