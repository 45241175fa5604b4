"""Connections to a Redis server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from procserver.errors import SourceError
from procserver.itemcache.sources.messages import scrub

try:
    import redis
except ImportError as error:
    raise SourceError(
        f"no driver for Redis ({error}): pip install 'procserver[redis]'"
    ) from error

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0


class Link:
    """One server, by its URL; answers are bytes."""

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            # RESP 2: the same shapes of answers from every version.
            self.client: Any = redis.Redis.from_url(
                url,
                protocol=2,
                decode_responses=False,
                socket_connect_timeout=CONNECT_SECONDS,
                socket_timeout=ANSWER_SECONDS,
                health_check_interval=30,
            )
        except (ValueError, redis.RedisError) as error:
            raise SourceError(f"item source: url: {scrub(error, url)}") from None

    @contextmanager
    def asking(self, what: str) -> Iterator[Any]:
        """The client; its errors become ours."""
        try:
            yield self.client
        except (redis.RedisError, OSError) as error:
            raise SourceError(f"{what}: {scrub(error, self._url)}") from None

    def close(self) -> None:
        """Gives the connections back."""
        self.client.close()
