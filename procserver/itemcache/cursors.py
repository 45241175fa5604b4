"""Where a refresher was in its source's changes, for the one that comes after it.

A segment ``/procserver.<service>.<ownerpid>.cursor`` lives as long as the control
segment::

    offset  size  field
         0    24  prologue of procserver.shm, magic "PSRVCURS"
        24     8  XXH64 of what follows
        32     -  UTF-8 JSON {generation number: cursor, "loaded": microseconds since
                  1970 when everything was loaded last}

It is written to a second name that is then renamed, so there is always a whole one.
A cursor is saved after its changes were applied: what a killed refresher applied
last may be applied again, which does no harm.
"""

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress

from cython_ext.xxh64 import xxh64
from procserver import shm
from procserver.itemcache import layout
from procserver.itemcache.control import ControlSegment

log = logging.getLogger(__name__)

MAGIC = b"PSRVCURS"
VERSION = 1
LOADED = "loaded"


class NoCursor:
    """In place of a cursor: there is none to go on from."""


NONE = NoCursor()


class Cursors:
    """The saved cursors of one control segment."""

    def __init__(self, control: ControlSegment) -> None:
        prefix = control.name.removesuffix(layout.CONTROL)
        self._path = shm.SHM / f"{prefix}{layout.CURSOR}".removeprefix("/")
        self._draft = shm.SHM / f"{prefix}{layout.CURSOR_DRAFT}".removeprefix("/")
        owner = control.owner
        self._head = shm.PROLOGUE.pack(MAGIC, VERSION, owner.pid, owner.started)
        self.loaded_at: int | None = None

    def save(self, cursors: Mapping[int, object]) -> None:
        """Keeps the cursors by generation number and ``loaded_at``, instead of those
        before.

        A cursor that JSON does not give back as it was is not kept: the next
        refresher builds anew. Neither is one for which there is no memory.
        """
        kept: dict[int | str, object] = {
            n: cursor for n, cursor in cursors.items() if _is_plain(cursor)
        }
        kept[LOADED] = self.loaded_at
        body = json.dumps(kept, ensure_ascii=False).encode("utf-8", "surrogatepass")
        data = self._head + xxh64(body).to_bytes(8, "little") + body
        try:
            with suppress(FileNotFoundError):
                self._draft.unlink()
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            fd = os.open(self._draft, flags, 0o600)
            try:
                written = os.write(fd, data)
            finally:
                os.close(fd)
            if written == len(data):
                self._draft.replace(self._path)
        except OSError as error:
            # The one before is older: more is applied again, nothing is lost.
            log.warning("the cursor of the item source is not saved: %s", error)

    def load(self, generation: int) -> object:
        """The cursor of a generation; ``NONE``: it was not saved. Takes over
        ``loaded_at``.
        """
        start = shm.PROLOGUE.size
        try:
            data = self._path.read_bytes()
        except OSError:
            return NONE
        body = data[start + 8 :]
        checksum = int.from_bytes(data[start : start + 8], "little")
        if data[:start] != self._head or checksum != xxh64(body):
            return NONE
        known = json.loads(body)
        self.loaded_at = known.get(LOADED)
        return known.get(str(generation), NONE)


def _is_plain(cursor: object) -> bool:
    try:
        return bool(json.loads(json.dumps(cursor, allow_nan=False)) == cursor)
    except (TypeError, ValueError):
        return False
