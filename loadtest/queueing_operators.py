"""Operators for a model that takes as long as it is told (``queueing.py``)."""

import time

import torch

SIDE = 128
_library = torch.library.Library("queueing", "DEF")
_library.define("rest(Tensor milliseconds) -> Tensor")
_library.define("work(Tensor milliseconds) -> Tensor")


def rest(milliseconds: torch.Tensor) -> torch.Tensor:
    """Sleeps; returns how long it took, in milliseconds."""
    started = time.monotonic()
    time.sleep(float(milliseconds[0]) / 1e3)
    return torch.full_like(milliseconds, (time.monotonic() - started) * 1e3)


def work(milliseconds: torch.Tensor) -> torch.Tensor:
    """Computes for so much CPU time of its thread; returns the time it took."""
    started, busy = time.monotonic(), time.thread_time()
    matrix = torch.ones(SIDE, SIDE) / SIDE
    while time.thread_time() - busy < float(milliseconds[0]) / 1e3:
        matrix = matrix @ matrix
    return torch.full_like(milliseconds, (time.monotonic() - started) * 1e3)


_library.impl("rest", rest, "CPU")
_library.impl("work", work, "CPU")
