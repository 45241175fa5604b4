"""Messages from a child to the master, one JSON object a line over a pipe.

NOTE: gunicorn reaps every child itself, so an exit code never reaches us. What
a child has to say, it says here; a pipe that ends without a message says that
the child is gone.
"""

from __future__ import annotations

import json
import os
import select
import time
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]


@dataclass
class Reports:
    """The master's end of one child's pipe. Open in the master before a fork."""

    reader: int
    writer: int
    closed: bool = False
    _buffer: bytearray = field(default_factory=bytearray)

    @classmethod
    def open(cls) -> Reports:
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        return cls(reader, writer)

    def in_child(self) -> Reporter:
        """Call in the child: keeps the writing end only."""
        os.close(self.reader)
        os.set_blocking(self.writer, True)
        return Reporter(self.writer)

    def in_master(self) -> None:
        """Call in the master after the fork: keeps the reading end only."""
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def poll(self) -> list[Message]:
        """The messages that have come; sets ``closed`` at the pipe's end."""
        while not self.closed:
            try:
                chunk = os.read(self.reader, 65536)
            except BlockingIOError:
                break
            if chunk:
                self._buffer += chunk
            else:
                self.close()
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        return [json.loads(line) for line in lines]

    def wait(self, timeout: float) -> list[Message]:
        """Like :meth:`poll`, but blocks for up to ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not self.closed:
            messages = self.poll()
            remaining = deadline - time.monotonic()
            if messages or remaining <= 0:
                return messages
            if not self.closed:
                select.select([self.reader], [], [], remaining)
        return self.poll()

    def close(self) -> None:
        """Closes the reading end."""
        if not self.closed:
            self.closed = True
            os.close(self.reader)


@dataclass(frozen=True)
class Reporter:
    """The child's end."""

    writer: int

    def send(self, event: str, **details: Any) -> None:
        """Tells the master; a master that is gone is not an error."""
        line = json.dumps({"event": event, **details}).encode() + b"\n"
        try:
            os.write(self.writer, line)
        except BrokenPipeError:
            return
