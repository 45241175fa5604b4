"""Whether the files of a package are as they were written, before any is loaded.

A manifest counts if there is one: ``manifest.json`` (``{"files": {path: sha256}}``)
or ``SHA256SUMS`` (as ``sha256sum`` writes it), beside the model, or for a part of an
export or a version, beside that. Every file that it lists must be there and
unaltered, and every file that the service reads must be listed. Without a manifest
the checksums inside the archives (script, tables) are compared. All files are
streamed: memory does not grow with the model.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from procserver.errors import ModelError
from procserver.model.documents import MAX_BYTES, read_object
from procserver.model.kinds import ACC_JSON, DENSE_META, FG_JSON
from procserver.model.package import ModelPackage

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"

_CHUNK = 1 << 20
_SUM_LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
# What zipfile and the decompressors raise for damaged archives.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
)


def verify(package: ModelPackage) -> None:
    """Compares the files of ``package`` with their checksums.

    :raises ModelError: naming the first file that is missing, altered, damaged or
        not listed
    """
    left = files_of(package)
    # A dense hot export and its base are written, and listed, apart.
    for folder in dict.fromkeys((package.directory, package.base)):
        mine = {file for file in left if file.is_relative_to(folder)}
        left -= mine
        places = [folder, folder.parent] if package.part is not None else [folder]
        _verify_files(sorted(mine), places)
    check_script(package.script)


def _verify_files(files: list[Path], places: list[Path]) -> None:
    """Files that one manifest, or none, speaks about; ``places`` may hold it."""
    listed: set[Path] = set()
    names = []
    for place in places:
        for name, sums in _manifests(place):
            names.append(name)
            listed |= _check_listed(place, name, sums)
    for file in files:
        if names and file not in listed:
            raise ModelError(f"{file.name} is not listed in {' or '.join(names)}")
        if not names and file.suffix in (".pt", ".pth", ".npz"):
            check_archive(file)


def files_of(package: ModelPackage) -> set[Path]:
    """Every file that the service reads of a package, assets of FG included."""
    files = {package.script}
    wanted = [package.base / ACC_JSON]
    if package.sparse is not None:
        wanted.append(package.sparse.dense_meta)
        files |= {
            *package.sparse.shards,
            *package.sparse.dynamic_shards,
            *package.sparse.folder.glob("*.json"),
        }
    elif (package.base / DENSE_META).is_file():
        wanted.append(package.base / DENSE_META)
    if package.fg_json is not None:
        wanted.append(package.base / FG_JSON)
        wanted += _assets(package.fg_json)
    return files | {file for file in wanted if file.is_file()}


def total_bytes(package: ModelPackage) -> int:
    """The size of those files; what is gone meanwhile does not count."""
    total = 0
    for file in files_of(package):
        with suppress(OSError):
            total += file.stat().st_size
    return total


def check_archive(file: Path) -> None:
    """Reads a zip archive (TorchScript, npz) through and compares its CRCs.

    :raises ModelError: if it is cut short, altered, or no such archive
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                _read_through(archive, entry, file)
    except OSError as error:
        raise ModelError(f"{file.name} cannot be read: {error.strerror}") from error
    except _DAMAGE as error:
        raise ModelError(_damaged(file)) from error


def check_script(file: Path) -> None:
    """Whether an archive is TorchScript and not something else that torch saves.

    :raises ModelError: if it is not
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except OSError as error:
        raise ModelError(f"{file.name} cannot be read: {error.strerror}") from error
    except _DAMAGE as error:
        raise ModelError(_damaged(file)) from error
    if not any(name.endswith("/constants.pkl") for name in names):
        raise ModelError(
            f"{file.name} is an archive, but not a TorchScript one: it must be saved "
            "with torch.jit.save"
        )


def _read_through(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: Path) -> None:
    try:
        with archive.open(entry) as stream:
            left = entry.file_size
            while chunk := stream.read(_CHUNK):
                left -= len(chunk)
            if left:
                raise EOFError
    except _DAMAGE as error:
        raise ModelError(
            f"{file.name} is damaged: {entry.filename!r:.200} in it does not match "
            "its checksum"
        ) from error


def _damaged(file: Path) -> str:
    with file.open("rb") as stream:
        head = stream.read(4)
    if not head:
        return f"{file.name} is empty"
    if head[:2] != b"PK":
        what = "an npz archive" if file.suffix == ".npz" else "a TorchScript archive"
        return f"{file.name} is not {what}"
    return f"{file.name} is cut short or damaged: its list of contents is unreadable"


def _manifests(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    if (folder / MANIFEST).is_file():
        yield MANIFEST, _read_manifest(folder / MANIFEST)
    if (folder / SUMS).is_file():
        yield SUMS, _read_sums(folder / SUMS)


def _read_manifest(file: Path) -> dict[str, str]:
    files = read_object(file).get("files")
    if not isinstance(files, dict) or not all(
        isinstance(digest, str) and _SHA256.fullmatch(digest)
        for digest in files.values()
    ):
        raise ModelError(f'{MANIFEST} is not {{"files": {{path: sha256}}}}')
    return {name: digest.lower() for name, digest in files.items()}


def _read_sums(file: Path) -> dict[str, str]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ModelError(f"{SUMS} is over {MAX_BYTES} bytes")
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{SUMS} cannot be read as text") from error
    sums = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _SUM_LINE.fullmatch(line.rstrip("\r"))
        if match is None:
            raise ModelError(f"{SUMS}, line {number}: not a sha256 sum and a path")
        escaped, digest, name = match.groups()
        if escaped:
            name = re.sub(r"\\([\\n])", lambda m: m[1].replace("n", "\n"), name)
        sums[name] = digest.lower()
    return sums


def _check_listed(folder: Path, manifest: str, sums: Mapping[str, str]) -> set[Path]:
    checked = set()
    for name, expected in sums.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            # SAFETY: a manifest speaks about the files beside it only.
            raise ModelError(f"{manifest}: {name!r:.200} is not a path below it")
        file = folder / path
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise ModelError(f"{manifest} lists {name}, which is not there") from error
        except (OSError, ValueError) as error:
            raise ModelError(f"{manifest} lists {name}, which is unreadable") from error
        if digest != expected:
            raise ModelError(f"{name} is altered: its sha256 is not the {manifest}'s")
        checked.add(file)
    return checked


def _assets(fg_json: Path) -> Iterator[Path]:
    """Files beside ``fg.json`` that some value in it names."""
    try:
        content = json.loads(fg_json.read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # FG itself says what is wrong with it.
    queue = [content]
    while queue:
        value = queue.pop()
        if isinstance(value, dict):
            queue += value.values()
        elif isinstance(value, list):
            queue += value
        elif isinstance(value, str) and 0 < len(value) < 256 and "\0" not in value:
            # FG looks for absolute names of another machine beside fg.json, too.
            name = Path(value)
            file = fg_json.parent / (name.name if name.is_absolute() else name)
            if ".." not in name.parts and file.is_file():
                yield file
