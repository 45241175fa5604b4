"""Copies a remote folder to the state folder at start, never half of it.

::

    <state>/mounts/<mount>/
    ├── current -> 3f2a…/          replaced by one rename
    ├── 3f2a…/                     a complete copy, named by the remote's listing
    └── .3f2a….<pid>.tmp/          a copy in progress

A copy whose name the remote's listing still gives is used again without a
transfer. fsspec's drivers take credentials from where their own command-line
tools do (environment variables, profiles) and from fsspec's configuration.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from procserver.config.secret import Url, mask_url
from procserver.config.storage import Mount
from procserver.errors import FetchError

_LOG = logging.getLogger(__name__)
_CHUNK = 8 * 2**20
_LOG_EVERY_S = 5.0
#: Extras of this package that bring the driver of a URL scheme.
EXTRAS = {"s3": "s3", "s3a": "s3", "oss": "oss", "gs": "gcs", "gcs": "gcs"}
#: What tells one state of a remote file from another, where the store has it.
_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)


@dataclass(frozen=True)
class _RemoteFile:
    path: str
    name: str
    size: int | None
    version: str


def fetch(mount: Mount, state_dir: Path) -> Path:
    """Brings the content of ``mount.remote`` to this machine.

    Args:
        mount: one of :attr:`ServiceConfig.copies`.
        state_dir: the service's state folder.

    Returns:
        ``mount.folder(state_dir)``, complete. A remote that is a single file
        gives a folder with that file in it.

    Raises:
        FetchError: no driver, no access, nothing there, or a broken transfer;
            an earlier copy stays as it was.
    """
    if mount.remote is None:
        raise FetchError(f"{mount.mount_path}: there is no remote to copy from")
    remote = mount.remote
    try:
        filesystem, root = _open(remote, mount.endpoint)
        files = _listing(filesystem, root, remote)
        digest = hashlib.sha256(
            json.dumps([(f.name, f.size, f.version) for f in files]).encode()
        ).hexdigest()[:16]
        copies = mount.copies(state_dir)
        copies.mkdir(parents=True, exist_ok=True)
        _sweep(copies)
        if not (copies / digest).is_dir():
            _copy(filesystem, files, copies / digest, remote)
        _publish(copies, digest)
    except FetchError:
        raise
    except Exception as error:
        # NOTE: drivers raise whatever their client library raises; the text may
        # hold the URL, so only the type and the OS's reason are passed on.
        reason = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
            if error.filename:
                reason += f": {mask_url(str(error.filename))}"
        raise FetchError(f"{remote}: cannot be copied: {reason}") from error
    return mount.folder(state_dir)


def _open(remote: Url, endpoint: str | None) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # PERF: slow import, only needed here

    options: dict[str, Any] = {}
    if endpoint and remote.scheme == "oss":
        options["endpoint"] = endpoint
    elif endpoint and remote.scheme in ("s3", "s3a"):
        options["endpoint_url"] = endpoint
    try:
        filesystem, root = url_to_fs(remote.reveal(), **options)
    except ImportError as error:
        raise FetchError(missing_driver(remote) or f"{remote}: {error}") from error
    except ValueError as error:
        raise FetchError(f"{remote}: {remote.scheme}:// is not known") from error
    return filesystem, root


def missing_driver(remote: Url) -> str:
    """What to install for the URL's scheme; empty where nothing is missing."""
    from fsspec.registry import get_filesystem_class

    try:
        get_filesystem_class(remote.scheme)
    except ImportError as error:
        extra = EXTRAS.get(remote.scheme)
        hint = f"pip install 'procserver[{extra}]'" if extra else str(error)
        return f"{remote}: the driver for {remote.scheme}:// is missing: {hint}"
    except ValueError:
        return f"{remote}: {remote.scheme}:// is not known to fsspec"
    return ""


def _listing(filesystem: Any, root: str, remote: Url) -> list[_RemoteFile]:
    filesystem.invalidate_cache()
    if filesystem.isfile(root):
        found = {root: filesystem.info(root)}
        base = PurePosixPath(root).parent
    else:
        found = filesystem.find(root, detail=True)
        base = PurePosixPath(root)
    files = []
    for path, info in sorted(found.items()):
        if info.get("type") == "directory" or path.endswith("/"):
            continue
        relative = PurePosixPath(path).relative_to(base)
        # SAFETY: keys of an object store may hold anything.
        if ".." in relative.parts or relative.is_absolute() or "\0" in path:
            raise FetchError(f"{remote}: refused, a name in it leaves the folder")
        version = json.dumps(
            [info[key] for key in _VERSION_KEYS if info.get(key) is not None],
            default=str,
        )
        files.append(_RemoteFile(path, str(relative), info.get("size"), version))
    if not files:
        raise FetchError(f"{remote}: nothing is there")
    return files


def _copy(filesystem: Any, files: list[_RemoteFile], to: Path, remote: Url) -> None:
    """Copies aside, then renames."""
    aside = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    progress = _Progress(remote, len(files), sum(file.size or 0 for file in files))
    try:
        for file in files:
            target = aside / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.open(file.path, "rb") as source, open(target, "xb") as sink:
                while chunk := source.read(_CHUNK):
                    sink.write(chunk)
                    progress.add(len(chunk))
                size = sink.tell()
                sink.flush()
                os.fsync(sink.fileno())
            if file.size is not None and size != file.size:
                raise FetchError(
                    f"{remote}: {file.name} has {file.size} bytes, {size} arrived; "
                    "it changed or the transfer broke"
                )
            progress.file_done()
        os.rename(aside, to)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _publish(copies: Path, name: str) -> None:
    """Points ``current`` at the copy; keeps the one before, removes older ones."""
    current = copies / "current"
    before = os.readlink(current) if current.is_symlink() else name
    link = copies / f".current.{os.getpid()}.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(name, target_is_directory=True)
    os.replace(link, current)
    if before == name:
        return
    for entry in copies.iterdir():
        if entry.name not in (name, before, "current") and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)


def _sweep(copies: Path) -> None:
    """Removes what a process that is gone has left half copied."""
    for entry in copies.glob(".*.tmp"):
        owner = entry.name.split(".")[-2]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            if entry.is_symlink():
                with contextlib.suppress(OSError):
                    entry.unlink()
            else:
                shutil.rmtree(entry, ignore_errors=True)


class _Progress:
    """One log line at the start, every few seconds, and at the end."""

    def __init__(self, remote: Url, files: int, size: int) -> None:
        self.remote = remote
        self.files = files
        self.size = size
        self.files_done = 0
        self.bytes_done = 0
        self.said = time.monotonic()
        _LOG.info("copying %s: %d files, %.1f MB", remote, files, size / 1e6)

    def add(self, count: int) -> None:
        self.bytes_done += count
        if time.monotonic() - self.said >= _LOG_EVERY_S:
            self.say()

    def file_done(self) -> None:
        self.files_done += 1
        if self.files_done == self.files:
            self.say()

    def say(self) -> None:
        self.said = time.monotonic()
        _LOG.info(
            "copying %s: %d of %d files, %.1f of %.1f MB",
            self.remote,
            self.files_done,
            self.files,
            self.bytes_done / 1e6,
            self.size / 1e6,
        )
