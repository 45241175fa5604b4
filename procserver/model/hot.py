"""Dense hot exports: a trainer's newest dense part over a base export.

The folder ``dense_hot_export`` has a ``current.json`` and ``versions/<v>/``; a
version is a script with its ``dense_meta.json``. Features, sparse tables and
assets are the base export's (spec/export.md section 1f).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from procserver.errors import ModelError
from procserver.model.kinds import DENSE_META, READY, SCRIPT
from procserver.model.versions import CURRENT, FOLDER, read_pointer

HOT_FOLDER = "dense_hot_export"
_ATTEMPTS = 20


@dataclass(frozen=True)
class HotVersion:
    """One published dense part."""

    name: str
    folder: Path


def hot_root(base: Path, given: Path | None) -> Path | None:
    """The folder with ``current.json``: as configured, else below the base export.

    :raises ModelError: if the configured folder is not there
    """
    if given is None:
        found = base / HOT_FOLDER
        return found if found.is_dir() else None
    if not given.is_dir():
        raise ModelError(f"procserver.hot_export: there is no folder {given}")
    below = given / HOT_FOLDER
    return below if below.is_dir() else given


def current_hot_version(root: Path) -> HotVersion | None:
    """The published version; None while nothing has been published.

    :raises ModelError: if ``current.json`` names a version that is not ready
    """
    for _ in range(_ATTEMPTS - 1):
        if not (root / CURRENT).is_file():
            return None
        name = read_pointer(root)
        try:
            return _open(root, name)
        except (ModelError, OSError):
            # The trainer may have published, and cleaned up, in between.
            if (root / CURRENT).is_file() and read_pointer(root) == name:
                raise
    return _open(root, read_pointer(root))


def _open(root: Path, name: str) -> HotVersion:
    folder = root / FOLDER / name
    for file in (READY, SCRIPT, DENSE_META):
        if not (folder / file).is_file():
            raise ModelError(
                f"{HOT_FOLDER}: {CURRENT} names version {name}, which has no {file}"
                if folder.is_dir()
                else f"{HOT_FOLDER}: {CURRENT} names version {name}, which is not there"
            )
    return HotVersion(name, folder)
