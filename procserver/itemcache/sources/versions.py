"""Item tables that are published as versions, on any file system.

::

    items/current.json              {"version": "20261122093000"}, replaced last
    items/versions/20261122093000/  a version: files, and READY when it is complete
    items/versions/20261121093000/

The folders of versions may also be directly in the root. ``current.json`` names
the version to read. Without it the highest number that has a ``READY`` counts, and
folders that lack one are uploads under way: an object store renames nothing, so a
version is as good as its marker.
"""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any

from procserver.errors import SourceError

CURRENT = "current.json"
FOLDER = "versions"
READY = "READY"
MOST_BYTES = 1 << 16

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NUMBER = re.compile(r"[0-9]{1,127}")


def newest_version(filesystem: Any, root: str) -> str | None:
    """The folder to read; None: ``root`` is a folder like any other.

    :raises SourceError: if there is no complete version, or ``current.json`` is
        damaged or names a version that is not complete
    :raises OSError: if the file system cannot be read
    """
    # A listing that was kept would never show a new version.
    filesystem.invalidate_cache(root)
    if not filesystem.isdir(root):
        return None
    folders = _folders(filesystem, root)
    ready = {
        name
        for name, folder in folders.items()
        if filesystem.exists(posixpath.join(folder, READY))
    }
    pointer = posixpath.join(root, CURRENT)
    if filesystem.exists(pointer):
        name = _pointed(filesystem.cat_file(pointer, end=MOST_BYTES))
        if name not in folders:
            raise SourceError(f"{CURRENT} names version {name}, which is not there")
        if ready and name not in ready:
            raise SourceError(f"{CURRENT} names version {name}, which has no {READY}")
        return folders[name]
    numbers = sorted((name for name in ready if _NUMBER.fullmatch(name)), key=int)
    if numbers:
        return folders[numbers[-1]]
    if filesystem.isdir(posixpath.join(root, FOLDER)):
        raise SourceError(f"no version has a {READY} yet, and there is no {CURRENT}")
    return None


def _folders(filesystem: Any, root: str) -> dict[str, str]:
    """Folders by name; those directly in the root count before others."""
    found: dict[str, str] = {}
    for place in (root, posixpath.join(root, FOLDER)):
        if not filesystem.isdir(place):
            continue
        for entry in filesystem.ls(place, detail=True):
            path = str(entry["name"]).rstrip("/")
            name = posixpath.basename(path)
            is_version = _NAME.fullmatch(name) and ".tmp" not in name and name != FOLDER
            if entry["type"] == "directory" and is_version:
                found.setdefault(name, path)
    return found


def _pointed(content: bytes) -> str:
    try:
        version = json.loads(content)["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f'{CURRENT} is no JSON object with a "version"') from error
    name = str(version) if type(version) is int else version
    # SAFETY: a name with a slash could lead out of the root.
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".tmp" in name:
        raise SourceError(f"{CURRENT}: {name!r:.140} is not the name of a version")
    return name
