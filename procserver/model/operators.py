"""Operators that a script needs beyond torch's own: fbgemm's.

TorchEasyRec's modules call ``torch.ops.fbgemm``. Its shared libraries are loaded
without importing the Python package: that takes 20 ms and 15 MB instead of a second
and 50 MB (spec/export.md section 3), and only for a script that calls them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import logging
import re
import zipfile
from pathlib import Path
from typing import IO

from procserver.errors import ModelError

log = logging.getLogger("procserver.model")

EXTRA = 'pip install "procserver[torchrec]"'
FBGEMM = "fbgemm"

_PACKAGE = "fbgemm_gpu"
_DISTRIBUTIONS = ("fbgemm-gpu-cpu", "fbgemm-gpu")
# In this order: the later ones need symbols of the earlier ones.
_LIBRARIES = (
    "fbgemm_gpu_py.so",
    "fbgemm_gpu_tbe_common.so",
    "fbgemm_gpu_tbe_inference.so",
)
# How the text of a script names operators and classes that were registered.
_USED = re.compile(rb"\bops\.(\w+)\.|__torch__\.torch\.classes\.(\w+)\.")
_CHUNK = 1 << 20
_LONGEST_NAME = 256


def load_operators(name: str, archive: Path | IO[bytes]) -> None:
    """Makes the operators callable that a script needs.

    :param name: of the script, for messages
    :raises ModelError: if their library is not installed or does not fit torch
    """
    if FBGEMM not in operator_libraries(archive):
        return
    folder = _fbgemm_folder()
    if folder is None:
        raise ModelError(_missing(name))
    import torch  # Here, so that `procserver check` does not wait for it.

    try:
        _load_libraries(folder)
    except (OSError, RuntimeError) as error:
        log.debug("loading fbgemm: %s", error)
        raise ModelError(
            f"{name} uses fbgemm operators, and the installed fbgemm "
            f"{_fbgemm_version()} does not work with torch {torch.__version__}; the "
            f"version that does comes with: {EXTRA}"
        ) from error


def missing_extra(script: Path) -> str | None:
    """One sentence if ``script`` needs operators that are not installed."""
    if FBGEMM in operator_libraries(script) and _fbgemm_folder() is None:
        return _missing(script.name)
    return None


def operator_libraries(script: Path | IO[bytes]) -> set[str]:
    """Libraries whose operators or classes the code of an archive names.

    Only the code inside the archive is read, not the weights. An archive that
    cannot be read names none: whoever loads it says why.
    """
    found: set[str] = set()
    try:
        with zipfile.ZipFile(script) as archive:
            for entry in archive.infolist():
                if "/code/" in entry.filename and entry.filename.endswith(".py"):
                    found |= _names_in(archive, entry)
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile):
        log.debug("the operators of %s are unknown", script, exc_info=True)
    return found


def _names_in(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> set[str]:
    found = set()
    rest = b""
    with archive.open(entry) as stream:
        while chunk := stream.read(_CHUNK):
            text = rest + chunk
            for operator, kind in _USED.findall(text):
                found.add((operator or kind).decode())
            rest = text[-_LONGEST_NAME:]
    return found


def _missing(name: str) -> str:
    return (
        f"{name} uses fbgemm operators, which are not installed; "
        f"install them with: {EXTRA}"
    )


def _fbgemm_folder() -> Path | None:
    """Where the package lies; it is found, not imported."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _fbgemm_version() -> str:
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of an unknown version"


@functools.cache
def _load_libraries(folder: Path) -> None:
    import torch

    for name in _LIBRARIES:
        torch.ops.load_library(str(folder / name))  # type: ignore[no-untyped-call]
    log.info("fbgemm %s: operators loaded", _fbgemm_version())
