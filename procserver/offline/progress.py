"""How far a run over files is: a bar on a terminal, otherwise a line now and then."""

import time
from typing import TextIO

WIDTH = 30
REDRAW = 0.1
LINE_EVERY = 10.0


class Progress:
    """Rows done of all rows, written to ``stream``."""

    def __init__(self, total: int, stream: TextIO) -> None:
        self._total = total
        self._stream = stream
        self._bar = stream.isatty()
        self._start = self._written = time.monotonic()
        self._done = 0

    def advance(self, rows: int) -> None:
        """``rows`` more are done."""
        self._done += rows
        now = time.monotonic()
        if now - self._written >= (REDRAW if self._bar else LINE_EVERY):
            self._written = now
            self._write(now)

    def finish(self) -> None:
        """Writes the last state."""
        self._write(time.monotonic())
        if self._bar:
            self._stream.write("\n")
            self._stream.flush()

    def _write(self, now: float) -> None:
        share = self._done / self._total if self._total else 1.0
        seconds = max(now - self._start, 1e-9)
        text = (
            f"{self._done:,} of {self._total:,} rows, {share:.0%}, "
            f"{self._done / seconds:,.0f} rows/s"
        )
        if self._bar:
            filled = "#" * int(share * WIDTH)
            self._stream.write(f"\r[{filled:<{WIDTH}}] {text}\x1b[K")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
