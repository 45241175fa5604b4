"""Saved requests on disk: request logs, slow requests, warm-up captures, answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from procserver.wire.logdata import request_body, without_debug_level

SUFFIXES = (".pb", ".bin")
ANSWER = ".answer"


@dataclass(frozen=True)
class Saved:
    """One request: ``name`` is its path below what was named on the command line."""

    name: str
    body: bytes


def saved_requests(
    places: Iterable[Path], *, keep_debug_level: bool = False
) -> Iterator[Saved]:
    """The requests of files and folders, folders in the order of names.

    Entries of a request log (``PBLogData``) are sent at debug level 0, lest they be
    logged again; every other file is a request's body and stays as it is.

    :raises OSError: if a file cannot be read
    """
    for place in places:
        for path in _files(place):
            content = path.read_bytes()
            body = request_body(content)
            if body is None:
                body = content
            elif not keep_debug_level:
                body = without_debug_level(body)
            name = path.relative_to(place) if place.is_dir() else Path(path.name)
            yield Saved(str(name), body)


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    # Files that are still being written begin with a dot.
    return sorted(
        path
        for path in place.rglob("*")
        if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def answer_file(folder: Path, name: str) -> Path:
    """Where the answer to a saved request is kept."""
    return folder / f"{name}{ANSWER}"
