"""Times of changes: one unit, microseconds since 1970, for all sources."""

import time

import numpy as np
from numpy.typing import NDArray

# Numbers of seconds that are times from 1973 to 5138. The ranges of the other units
# follow without a gap.
_FIRST, _LAST = 1e8, 1e11
_UNITS = (1e6, 1e3, 1.0, 1e-3)


def microseconds_in(number: float) -> float | None:
    """Microseconds of one unit of ``number``, a time since 1970, by its size.

    None: it is no such time in seconds, milli-, micro- or nanoseconds, but a version
    number, say.
    """
    size = abs(number)
    for place, factor in enumerate(_UNITS):
        if _FIRST * 1000**place <= size < _LAST * 1000**place:
            return factor
    return None


def now() -> int:
    """This machine's clock in microseconds since 1970."""
    return time.time_ns() // 1000


def scaled(numbers: NDArray[np.int64], factor: float) -> NDArray[np.int64]:
    """Exact for whole factors; nanoseconds are cut."""
    if factor < 1:
        return numbers // np.int64(round(1 / factor))
    limit = np.iinfo(np.int64).max // int(factor)
    return np.clip(numbers, -limit, limit) * np.int64(int(factor))
