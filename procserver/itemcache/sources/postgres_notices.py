"""NOTIFY messages as a reason to look at once."""

import time
from typing import Any

import psycopg

from procserver.itemcache.sources.postgres_link import Link


class Notices:
    """Waits for messages of a channel; what they say does not matter.

    Messages are lost while the connection is, so a new connection and a long
    silence are reasons to look too.
    """

    def __init__(self, link: Link, channel: str, every: float) -> None:
        self._link = link
        self._channel = channel
        self._every = every
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._due = -1.0

    def wait(self, seconds: float) -> bool:
        """Whether it is time to look, which it says until :meth:`looked`.

        :raises SourceError: if the server is gone
        """
        if self._connection is None:
            self._connection = self._link.listen(self._channel)
            self._due = -1.0
        if time.monotonic() >= self._due:
            # What has come so far is what is looked for.
            self._receive(0.0)
            return True
        rest = self._due - time.monotonic()
        if self._receive(max(min(seconds, rest), 0.0)):
            self._due = -1.0
        return time.monotonic() >= self._due

    def looked(self, began: float) -> None:
        """Everything up to ``began`` (monotonic) has been seen."""
        self._due = began + self._every

    def _receive(self, seconds: float) -> bool:
        assert self._connection is not None
        try:
            messages = list(self._connection.notifies(timeout=seconds, stop_after=1))
            messages += self._connection.notifies(timeout=0)
        except psycopg.Error as error:
            self.close()
            raise self._link.failure(f"LISTEN {self._channel}", error) from None
        return bool(messages)

    def close(self) -> None:
        """Gives the connection back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
