"""Which files a table is made of, on any file system, as one Arrow dataset."""

import hashlib
import posixpath
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

from procserver.errors import SourceError
from procserver.itemcache.sources.versions import newest_version

# The extra of ours that installs what a URL scheme needs.
EXTRAS = {"s3": "s3", "s3a": "s3", "oss": "oss", "gs": "gcs", "gcs": "gcs"}
# What file systems tell of a file that changes with its content; "created" is the
# time of the last change of a memory or an object store's file.
_MARKS = ("size", "mtime", "ino", "ETag", "etag", "LastModified", "updated", "created")
FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".ipc": "ipc",
}


def open_dataset(url: str) -> ds.Dataset:
    """The dataset of a file, a directory, or a glob.

    Directories are walked recursively; names that start with ``_`` or ``.`` are
    left out, ``name=value`` directories become columns. Where some files have a
    known suffix (.parquet, .pq, .arrow, .feather, .ipc) only those are read, else
    all are taken for Parquet. Columns of all files are united. Of a directory of
    versions the current one is read, see ``versions``.

    :raises SourceError: if nothing is there, it cannot be read, or schemas clash
    """
    filesystem, path, root, paths = _find(url)
    if not paths:
        raise SourceError(f"item table {path!r}: no such file or directory, or empty")
    known = [p for p in paths if _format(p)]
    formats = {_format(p) or "parquet" for p in known or paths}
    if len(formats) > 1:
        raise SourceError(f"item table {path!r} mixes Parquet and Arrow files")
    options = {
        "format": _dataset_format(formats.pop(), _is_local(filesystem)),
        "filesystem": _arrow_filesystem(filesystem),
        "partitioning": "hive",
        "partition_base_dir": root,
    }
    try:
        dataset = ds.dataset(known or paths, **options)
        if len(paths) < 2:
            return dataset
        return ds.dataset(known or paths, schema=_united(dataset), **options)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"item table {path!r} cannot be read: {error}") from error


def fingerprint(url: str) -> str:
    """A text that is another one when the files have changed.

    It goes by their names, sizes and times or tags, without reading them.

    :raises SourceError: if they cannot be listed
    """
    filesystem, path, _, paths = _find(url)
    digest = hashlib.sha256()
    try:
        for file in paths:
            about = filesystem.info(file)
            marks = [str(about.get(key)) for key in _MARKS]
            digest.update("\0".join([file, *marks, ""]).encode())
    except OSError as error:
        raise SourceError(f"item table {path!r} cannot be listed: {error}") from error
    return digest.hexdigest()


def _find(url: str) -> tuple[Any, str, str, list[str]]:
    """File system, path, the directory that partitions count from, files."""
    filesystem, path = _resolve(url)
    try:
        path = newest_version(filesystem, path.rstrip("/") or "/") or path
        return filesystem, path, *_list_files(filesystem, path)
    except SourceError as error:
        raise SourceError(f"item table {path!r}: {error}") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"item table {path!r} cannot be listed: {error}") from error


def _resolve(url: str) -> tuple[Any, str]:
    scheme = url.split("://", 1)[0] if "://" in url else ""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        hint = f"install procserver[{extra}]" if extra else str(error)
        raise SourceError(f"no driver for {scheme}:// URLs: {hint}") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"item source: a {scheme}:// URL is wrong: {error}") from (
            error
        )
    return filesystem, str(path)


def _is_local(filesystem: Any) -> bool:
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _arrow_filesystem(filesystem: Any) -> FileSystem:
    if _is_local(filesystem):
        return LocalFileSystem()
    return PyFileSystem(FSSpecHandler(filesystem))


def _dataset_format(name: str, local: bool) -> str | ds.FileFormat:
    if name != "parquet" or not local:
        return name
    # PERF: reading ahead whole row groups saves round trips to an object store;
    # with a local file it only doubles the memory of a build.
    options = ds.ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
    return ds.ParquetFileFormat(default_fragment_scan_options=options)


def _list_files(filesystem: Any, path: str) -> tuple[str, list[str]]:
    """The directory that partitions count from, and the files in order of name."""
    if any(mark in path for mark in "*?[") and not filesystem.exists(path):
        first = min(path.find(mark) for mark in "*?[" if mark in path)
        root = posixpath.dirname(path[:first])
        matches = sorted(filesystem.glob(path))
    else:
        root, matches = path.rstrip("/"), [path]
    files: list[str] = []
    for match in matches:
        if filesystem.isdir(match):
            files += sorted(filesystem.find(match))
        elif filesystem.exists(match):
            if match == path:
                return posixpath.dirname(path), [path]
            files.append(match)
    return root, [file for file in files if not _hidden(file[len(root) :])]


def _hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in Path(path).parts)


def _format(path: str) -> str | None:
    return FORMATS.get(posixpath.splitext(path)[1].lower())


def _united(dataset: ds.Dataset) -> pa.Schema:
    """The columns of all files, widened where they differ, and the partitions'."""
    schemas = [fragment.physical_schema for fragment in dataset.get_fragments()]
    files = pa.unify_schemas(schemas, promote_options="permissive")
    partitions = [f for f in dataset.schema if files.get_field_index(f.name) < 0]
    return pa.schema([*files, *partitions])
