"""Which version of a versions root is served: a pure function of the disk.

A versions root holds one folder per version, directly or below ``versions/``. If
it has a ``current.json``, that names the version; otherwise the folder with the
highest number counts. Folders that are hidden, temporary or incomplete are never
served. Once one version carries a ``READY`` file, every version needs one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from procserver.errors import ModelError
from procserver.model.documents import read_object
from procserver.model.kinds import READY, lacks

CURRENT = "current.json"
FOLDER = "versions"
LATEST = "latest"

# A version's name stands in a header, in URLs and in metrics.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NUMBER = re.compile(r"[0-9]{1,127}")
_ATTEMPTS = 20


@dataclass(frozen=True)
class Version:
    """One version: its name, its folder, and newer ones that were passed over."""

    name: str
    folder: Path
    remarks: tuple[str, ...] = ()


def is_versions_root(path: Path) -> bool:
    """Whether ``path`` holds versions, complete or not."""
    if (path / CURRENT).is_file():
        return True
    return any(_NUMBER.fullmatch(folder.name) for folder in _folders(path))


def resolve(root: Path, policy: str = LATEST) -> Version:
    """The version to serve.

    :param policy: ``latest``, or the name of a version
    :raises ModelError: if there is no such version, or it is incomplete
    """
    for _ in range(_ATTEMPTS - 1):
        pointer = _pointer_text(root)
        try:
            return _resolve(root, policy)
        except (ModelError, OSError):
            # A publisher may have replaced current.json, and removed the version
            # that it named, between two of our looks.
            if policy != LATEST or _pointer_text(root) == pointer:
                raise
    return _resolve(root, policy)


def present(root: Path) -> dict[str, Path]:
    """Every folder that may be a version by its name, lowest number first.

    Names that are not numbers come after those that are.
    """
    found: dict[str, Path] = {}
    for folder in _folders(root):
        found.setdefault(folder.name, folder)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def read_pointer(root: Path) -> str:
    """The version that ``current.json`` names.

    :raises ModelError: if the file is damaged, or its version is not a plain name
    """
    version = read_object(root / CURRENT).get("version")
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if not isinstance(version, str):
        raise ModelError(f'{CURRENT} names no "version"')
    if not is_name(version):
        # SAFETY: a name with a slash could lead out of the versions root.
        raise ModelError(f"{CURRENT}: {version!r:.140} is not the name of a version")
    return version


def is_name(text: str) -> bool:
    """Whether ``text`` may be a version: one folder, not hidden, not temporary."""
    return _NAME.fullmatch(text) is not None and ".tmp" not in text


def _resolve(root: Path, policy: str) -> Version:
    folders = present(root)
    needs_ready = any((folder / READY).exists() for folder in folders.values())
    if policy != LATEST:
        return _named(folders, policy, "procserver.model_version", needs_ready)
    if (root / CURRENT).is_file():
        return _named(folders, read_pointer(root), CURRENT, needs_ready)
    remarks: list[str] = []
    for name in reversed([name for name in folders if _NUMBER.fullmatch(name)]):
        reason = _incomplete(folders[name], needs_ready)
        if reason is None:
            return Version(name, folders[name], tuple(remarks))
        remarks.append(f"version {name} is incomplete and passed over: {reason}")
    raise ModelError("; ".join([f"{root} holds no complete version", *remarks[:3]]))


def _named(
    folders: dict[str, Path], name: str, source: str, needs_ready: bool
) -> Version:
    folder = folders.get(name)
    if folder is None:
        there = ", ".join(list(folders)[-8:]) or "none"
        raise ModelError(f"{source}: there is no version {name!r:.140}, only {there}")
    reason = _incomplete(folder, needs_ready)
    if reason is not None:
        raise ModelError(f"{source}: version {name} is incomplete: {reason}")
    return Version(name, folder)


def _incomplete(folder: Path, needs_ready: bool) -> str | None:
    if needs_ready and not (folder / READY).exists():
        return f"no {READY} file, which other versions have"
    return lacks(folder)


def _folders(root: Path) -> Iterator[Path]:
    """Folders with the name of a version, those directly in ``root`` first."""
    for place in (root, root / FOLDER):
        if place.is_dir():
            yield from (
                folder
                for folder in place.iterdir()
                if is_name(folder.name) and folder.is_dir() and folder.name != FOLDER
            )


def _order(name: str) -> tuple[bool, int, str]:
    number = _NUMBER.fullmatch(name)
    return (not number, int(name) if number else 0, name)


def _pointer_text(root: Path) -> bytes | None:
    try:
        return (root / CURRENT).read_bytes()
    except OSError:
        return None
