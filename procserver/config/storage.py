"""``storage``: folders that the platform would mount, and where they are here."""

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from procserver.config.kinds import Boolean, Text, UrlText, Wrong, shown
from procserver.config.secret import Url, url_scheme
from procserver.config.settings import read_section, setting

#: Kinds of remote storage in an entry, in lower case (the vendor writes OSS too).
_REMOTES = ("oss", "nfs", "s3", "gs", "gcs", "cpfs", "git", "dlf")
_OTHER_KEYS = (
    "empty_dir",
    "data_source",
    "dataset",
    "config_map",
    "secret",
    "image",
    "mount_options",
    "properties",
)


@dataclass(frozen=True)
class Mount:
    """One storage entry, resolved.

    ``local`` is the folder on this machine; None means that ``remote`` has to be
    copied to :meth:`folder` at start.
    """

    mount_path: str
    local: Path | None
    remote: Url | None
    read_only: bool
    endpoint: str | None = None

    def folder(self, state_dir: Path) -> Path:
        """Where the content is, or will be after the copy."""
        return self.local or self.copies(state_dir) / "current"

    def copies(self, state_dir: Path) -> Path:
        """The folder that holds this mount's copies."""
        # NOTE: the digest keeps "/a/b" and "/a-b" apart, and an old remote's
        # copy from being taken for a new one's.
        remote = self.remote.reveal() if self.remote else ""
        digest = hashlib.sha256(f"{self.mount_path}\0{remote}".encode()).hexdigest()
        label = re.sub(r"[^A-Za-z0-9]+", "-", self.mount_path).strip("-")[-40:]
        return state_dir / "mounts" / f"{label or 'root'}-{digest[:12]}"


@dataclass(frozen=True, kw_only=True)
class StorageEntry:
    """The keys of one element of ``storage``."""

    SECTION: ClassVar[str] = "storage[]"

    mount_path: str = setting(
        "mount_path",
        Text(r"/.*", "an absolute path"),
        "Where other settings expect the folder.",
        required=True,
    )
    local_path: str | None = setting(
        "local.path",
        Text(),
        "Our own key: the folder on this machine, relative to the JSON file.",
    )
    oss_path: Url | None = setting(
        "oss.path",
        UrlText(),
        "The remote folder (`oss://`, also `s3://`, `gs://`, `file://`). It is "
        "copied at start where neither `local.path` nor `mount_path` is here.",
    )
    oss_endpoint: str | None = setting(
        "oss.endpoint", Text(), "Endpoint of the object store."
    )
    oss_read_only: bool | None = setting(
        "oss.readOnly",
        Boolean(),
        "Whether the service may write there.",
        shown_default="true",
    )


def read_storage(
    given: Any,
    base: Path,
    root: Path,
    problems: list[str],
    warnings: list[str],
) -> tuple[Mount, ...]:
    """Resolves every entry.

    Args:
        given: the ``storage`` list.
        base: folder of the JSON file, for relative paths.
        root: what ``mount_path`` is looked for below.
        problems: collects what is wrong.
        warnings: collects what is doubtful.
    """
    if given is None:
        return ()
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, list):
        problems.append(f"storage: expected a list, got {shown(given, secret=True)}")
        return ()
    mounts: dict[str, Mount] = {}
    for index, element in enumerate(given):
        where = f"storage[{index}]"
        if not isinstance(element, Mapping):
            problems.append(
                f"{where}: expected an object, got {shown(element, secret=True)}"
            )
            continue
        before = len(problems)
        mount = _read_entry(element, where, base, root, problems, warnings)
        if mount is None or len(problems) > before:
            continue
        if mount.mount_path in mounts:
            problems.append(f"{where}.mount_path: {mount.mount_path} is mounted twice")
        mounts[mount.mount_path] = mount
    return tuple(mounts.values())


def _read_entry(
    element: Mapping[str, Any],
    where: str,
    base: Path,
    root: Path,
    problems: list[str],
    warnings: list[str],
) -> Mount | None:
    entry = dict(element)
    if isinstance(entry.get("local"), str):
        entry["local"] = {"path": entry["local"]}
    kinds = [key for key in entry if key.lower() in _REMOTES]
    if len(kinds) > 1:
        problems.append(f"{where}: {' and '.join(kinds)} contradict each other")
        return None
    kind = kinds[0] if kinds else ""
    if kind:
        # The settings are declared under the commonest kind.
        remote = entry.pop(kind)
        entry["oss"] = {"path": remote} if isinstance(remote, str) else remote
        if not isinstance(entry["oss"], Mapping):
            got = shown(remote, secret=True)
            problems.append(f"{where}.{kind}: expected an object, got {got}")
            return None
        if "read_only" in entry["oss"]:
            entry["oss"] = {"readOnly": entry["oss"]["read_only"], **entry["oss"]}
    found: list[str] = []
    values = read_section(StorageEntry, entry, found, element=where)
    renamed = f"{where}.{kind or 'oss'}."
    problems.extend(line.replace(f"{where}.oss.", renamed, 1) for line in found)
    _warn_unknown(entry, where, warnings)
    if found:
        return None
    return _resolve(values, kind, base, root, where, problems)


def _resolve(
    values: dict[str, Any],
    kind: str,
    base: Path,
    root: Path,
    where: str,
    problems: list[str],
) -> Mount | None:
    mount_path = str(PurePosixPath(values["mount_path"]))
    remote: Url | None = values["oss_path"]
    if remote is not None and kind.lower() == "oss" and not remote.scheme:
        problems.append(f"{where}.{kind}.path: expected a URL such as oss://bucket/dir")
        return None
    if remote is not None and not remote.scheme:
        remote = None  # nfs and the like name a path on their own server
    below_root = root / mount_path.lstrip("/")
    local: Path | None = None
    if values["local_path"]:
        local = local_path(base, values["local_path"])
    elif remote is None or below_root.exists():
        local = below_root
    read_only = values["oss_read_only"]
    return Mount(
        mount_path=mount_path,
        local=local,
        remote=remote,
        read_only=bool(kind) if read_only is None else read_only,
        endpoint=values["oss_endpoint"],
    )


def _warn_unknown(entry: Mapping[str, Any], where: str, warnings: list[str]) -> None:
    known = {"mount_path", "local", "oss", *_OTHER_KEYS}
    names = [*known, *_REMOTES]
    for key in entry:
        if key not in known:
            close = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.7)
            hint = f", did you mean {close[0]}?" if close else ""
            warnings.append(f"{where}.{key}: unknown key{hint}")


def local_path(base: Path, text: str) -> Path:
    """Absolute; ``~/`` is the user's home."""
    if text == "~" or text.startswith("~/"):
        return Path.home() / text[2:]
    return base / text


@dataclass(frozen=True)
class Places:
    """Turns paths of the configuration into paths of this machine."""

    base: Path
    state_dir: Path
    mounts: tuple[Mount, ...]

    def mount_of(self, text: str) -> Mount | None:
        """The innermost mount that holds the path."""
        path = PurePosixPath(text)
        holders = [m for m in self.mounts if path.is_relative_to(m.mount_path)]
        return max(holders, key=lambda m: len(m.mount_path), default=None)

    def path(self, text: str) -> Path:
        """Absolute; through the mounts, else relative to the JSON file's folder."""
        mount = self.mount_of(text)
        if mount is None:
            return local_path(self.base, text)
        inside = PurePosixPath(text).relative_to(mount.mount_path)
        return mount.folder(self.state_dir) / inside

    def url(self, url: Url) -> Url:
        """A URL stays; a path is made absolute."""
        text = url.reveal()
        return url if url_scheme(text) else Url(str(self.path(text)))


def refuse_archive(url: Url) -> None:
    """Model packages of the platform are unpacked by its downloader, not here."""
    if re.search(r"\.(tar|tar\.gz|tgz|zip)(\?|$)", url.reveal(), re.IGNORECASE):
        raise Wrong("a folder or a TorchScript file; unpack the archive first")
