"""What a start finds in shared memory: a cache to take over, and garbage."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import fields, is_dataclass
from typing import Any

from procserver import shm
from procserver.config import ServiceConfig, SourceConfig
from procserver.config.secret import Secret, Url
from procserver.itemcache import adoption
from procserver.itemcache.adoption import Adopted
from procserver.observe import metrics

log = logging.getLogger("procserver.lifecycle")

# Settings of a source that say when it is read and not what.
WHEN = (
    "period_minutes",
    "item_ttl_minutes",
    "statement_timeout",
    "listen",
    "overlap",
)


def inherit(service: ServiceConfig) -> Adopted | None:
    """Takes over the item cache of a dead master, then removes what dead owners left.

    In the master, before it creates segments: memory may be short until then.
    """
    adopted = None
    source = service.item_source
    if source is not None:
        adopted = adoption.take_over(service.name, digest_of(source))
        if shm.is_small():
            log.warning(
                "%s is small (%.0f MB, as in a container without --shm-size): item "
                "tables of any size need more, for example --shm-size=4g",
                shm.SHM,
                shm.total_shared_memory() / 2**20,
            )
    removed = adoption.clear(service.name)
    if removed:
        log.info("removed %d shared segments of dead owners", removed)
    return adopted


def digest_of(source: SourceConfig) -> str:
    """What an item table's content depends on: where it is read from, and how.

    Credentials may change without it.
    """
    text = json.dumps(_plain(source), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Url):
        return value.masked()
    if isinstance(value, Secret):
        return None
    if is_dataclass(value):
        names = [one.name for one in fields(value) if one.name not in WHEN]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


class FreshEnough:
    """A reason not to be ready: the item cache is older than it may be."""

    def __init__(self, most: float) -> None:
        self._most = most

    def __call__(self) -> str | None:
        """What clients are told; None: it is younger."""
        age = metrics.cache_age()
        if age is None or age <= self._most:
            return None
        return (
            f"the item cache is {age:.0f} s old, more than "
            f"procserver.max_cache_age_seconds ({self._most:g})"
        )
