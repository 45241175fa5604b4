"""A model directory as an exporter wrote it (spec/export.md section 1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from procserver.config.service import ServiceConfig
from procserver.errors import ModelError
from procserver.model.hot import HOT_FOLDER, current_hot_version, hot_root
from procserver.model.kinds import (
    ACC_JSON,
    DENSE_META,
    FG_JSON,
    SCRIPT,
    SPARSE,
    Kind,
    loose_scripts,
    missing_sparse_file,
    part_name,
    parts_of,
    read_acc,
    recognise,
)
from procserver.model.versions import LATEST, is_versions_root, resolve

# The sequence of candidates of one user, where a model scores them as such.
CANDIDATES = "cand_seq_pk"


@dataclass(frozen=True)
class SparseFiles:
    """What the script of a distributed-embedding export does not hold itself.

    ``dense_meta`` says what the dense script is called with; ``folder`` holds the
    tables as ``sparse_embeddings-RR-of-WW.npz`` and
    ``sparse_dynamic_embedding-RR-of-WW.npz`` with their JSON companions.
    """

    dense_meta: Path
    folder: Path

    @property
    def tables(self) -> Path:
        """Table -> features, dimension, dtype, shape, quantisation."""
        return self.folder / "sparse_embedding.json"

    @property
    def features(self) -> Path:
        """Feature -> table and pooling."""
        return self.folder / "sparse_features.json"

    @property
    def shards(self) -> tuple[Path, ...]:
        """The archives of ordinary tables, by name."""
        return tuple(sorted(self.folder.glob("sparse_embeddings-*-of-*.npz")))

    @property
    def dynamic_shards(self) -> tuple[Path, ...]:
        """The archives of tables with keys of their own, by name."""
        return tuple(sorted(self.folder.glob("sparse_dynamic_embedding-*-of-*.npz")))


@dataclass(frozen=True)
class ModelPackage:
    """The files of one model version, found but not loaded.

    ``directory`` holds the script, ``base`` everything else; they differ for a
    dense hot export only. ``version`` names what is served: the folder's name in
    a versions root; otherwise the directory's name and the script's time stamp,
    so that an export replaced in place is told apart. ``input_tile`` is 0, 2 or
    3; 3 for an export with distributed embeddings, whose other files are
    ``sparse``. ``part`` is the tower of a match export (``user``, ``item``).
    ``notices`` are for the operator.
    """

    directory: Path
    script: Path
    fg_json: Path | None
    input_tile: int
    version: str
    acc: Mapping[str, str] = field(default_factory=dict)
    sparse: SparseFiles | None = None
    kind: Kind = Kind.EXPORT
    base: Path = Path()
    part: str | None = None
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Place:
    """A folder on the way to a package, and what is known of it so far."""

    folder: Path
    version: str | None = None
    notices: tuple[str, ...] = ()


def open_served(service: ServiceConfig) -> ModelPackage:
    """The package that a service's configuration means, as the disk is now.

    :raises ModelError: if there is no model, or one that is not served here
    """
    package = open_package(
        service.model_dir,
        input_tile=service.envs.input_tile,
        version=service.host.model_version,
        entry=service.model.model_entry,
        hot_export=service.host.hot_export,
    )
    candidates = package.acc.get(CANDIDATES)
    if candidates and service.model.fg_mode != "bypass":
        # SAFETY: scored item by item, its answers would be wrong without a word.
        raise ModelError(
            f"{ACC_JSON}, {CANDIDATES}: models that take the items to score as the "
            f"sequence {candidates!r} (dlrm_hstu, ultra_hstu) are served in "
            "fg_mode bypass only"
        )
    return package


def open_package(
    path: Path,
    *,
    input_tile: int | None = None,
    version: str = LATEST,
    entry: str | None = None,
    hot_export: Path | None = None,
) -> ModelPackage:
    """Finds the model under ``path``: an export, a versions root, a bare script.

    :param input_tile: the environment's INPUT_TILE; it counts for models without
        ``model_acc.json`` only, which says of every other one how it was exported
    :param version: which version of a versions root: ``latest`` or a name
    :param entry: the part to serve, a path below ``path`` or below its version
    :param hot_export: the folder of dense hot exports over this base export;
        None: ``dense_hot_export`` below it, if there is one
    :raises ModelError: if there is no model, or one that is not served here
    """
    try:
        return _open(path, input_tile, version, entry, hot_export)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def _open(
    path: Path,
    input_tile: int | None,
    version: str,
    entry: str | None,
    hot_export: Path | None,
) -> ModelPackage:
    if not path.exists():
        raise ModelError(f"model path {path} does not exist")
    if entry and (path / entry).exists():
        path, entry = path / entry, None
    if path.is_file() and path.name == SCRIPT:
        path = path.parent
    if path.is_file():
        _refuse_pin(path, version)
        return _script_package(_Place(path.parent), path, input_tile)
    place = _version_place(path, version)
    if entry:
        if not (place.folder / entry).exists():
            raise ModelError(f"model_entry: there is no {entry} in {place.folder}")
        place = replace(place, folder=place.folder / entry)
        if place.folder.is_file():
            return _script_package(place, place.folder, input_tile)
    kind = recognise(place.folder)
    if kind is Kind.PARTS:
        place = _part_place(place)
        kind = recognise(place.folder)
    if kind is None:
        raise _nothing_in(place.folder)
    if kind.refusal is not None:
        raise ModelError(f"{place.folder}: {kind.refusal}")
    if kind is Kind.SCRIPT:
        return _script_package(place, _only_script(place.folder), input_tile)
    return _with_hot_version(_export_package(place, kind, input_tile), hot_export)


def _version_place(path: Path, version: str) -> _Place:
    """Follows a versions root to one of its versions."""
    # A model in the folder itself comes first; a loose script does not count
    # against versions beside it.
    if recognise(path) in (None, Kind.SCRIPT) and is_versions_root(path):
        found = resolve(path, version)
        return _Place(found.folder, found.name, notices=found.remarks)
    _refuse_pin(path, version)
    return _Place(path)


def _refuse_pin(path: Path, version: str) -> None:
    if version != LATEST:
        raise ModelError(
            f"procserver.model_version: {version!r:.140} cannot be chosen, "
            f"{path} is one model and has no versions"
        )


def _part_place(place: _Place) -> _Place:
    parts = parts_of(place.folder)
    if parts is None:
        raise _nothing_in(place.folder)
    served = parts.folders[0]
    notice = (
        f'this is a {parts.name}, of which {served}/ is served; "model_entry" '
        f"chooses another part ({', '.join(parts.folders)})"
    )
    return replace(
        place, folder=place.folder / served, notices=(*place.notices, notice)
    )


def _nothing_in(folder: Path) -> ModelError:
    if (folder / HOT_FOLDER).is_dir():
        return ModelError(f"{folder}: {Kind.DENSE_PART.refusal}")
    return ModelError(
        f"{folder} holds no {SCRIPT}, no other .pt file and no versions of a model"
    )


def _only_script(folder: Path) -> Path:
    found = loose_scripts(folder)
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:8])
        raise ModelError(
            f"{folder} holds no {SCRIPT}, but {len(found)} other scripts: {names}"
        )
    return found[0]


def _script_package(
    place: _Place, script: Path, input_tile: int | None
) -> ModelPackage:
    place = replace(place, folder=script.parent)
    return _package(place, script, Kind.SCRIPT, script.stem, input_tile)


def _export_package(place: _Place, kind: Kind, input_tile: int | None) -> ModelPackage:
    folder = place.folder
    part = part_name(folder)
    name = folder.name if part is None else f"{folder.parent.name}-{part}"
    package = _package(place, folder / SCRIPT, kind, name, input_tile)
    return replace(package, part=part)


def _package(
    place: _Place, script: Path, kind: Kind, name: str, input_tile: int | None
) -> ModelPackage:
    folder = place.folder
    acc = read_acc(folder)
    recorded = (folder / ACC_JSON).is_file()
    tile = _tile(acc.get("INPUT_TILE", "")) if recorded else input_tile or 0
    sparse = _sparse_files(folder) if kind is Kind.DISTRIBUTED else None
    if sparse is not None:
        # NOTE: the exporter forces this and need not record it.
        tile = 3
    fg_json = folder / FG_JSON
    return ModelPackage(
        directory=folder,
        script=script,
        fg_json=fg_json if fg_json.is_file() else None,
        input_tile=tile,
        version=place.version or _stamped(script, name),
        acc=acc,
        sparse=sparse,
        kind=kind,
        base=folder,
        notices=place.notices,
    )


def _sparse_files(folder: Path) -> SparseFiles:
    missing = missing_sparse_file(folder)
    if missing is not None:
        raise ModelError(
            f"{folder}: this export has distributed embeddings, but {missing}"
        )
    return SparseFiles(folder / DENSE_META, folder / SPARSE)


def _with_hot_version(base: ModelPackage, given: Path | None) -> ModelPackage:
    """The newest dense part over its base, if there is one."""
    if base.part is not None:
        if given is not None:
            raise ModelError(
                "procserver.hot_export: there are no dense hot exports of match "
                "and TDM models"
            )
        return base
    root = hot_root(base.directory, given)
    if root is None:
        return base
    hot = current_hot_version(root)
    if hot is None:
        notice = f"{root} has no published version yet: the base export is served"
        return replace(base, notices=(*base.notices, notice))
    if base.sparse is None:
        raise ModelError(
            f"{root}: a dense hot export needs sparse tables, and the base export "
            f"{base.directory} has no distributed embeddings"
        )
    return replace(
        base,
        directory=hot.folder,
        script=hot.folder / SCRIPT,
        version=f"{base.version}+{hot.name}",
        sparse=replace(base.sparse, dense_meta=hot.folder / DENSE_META),
        kind=Kind.HOT,
    )


def _tile(value: str) -> int:
    # Exporters test the first character only ("2", "2_online", "3..").
    return int(value[0]) if value[:1] in ("2", "3") else 0


def _stamped(script: Path, name: str) -> str:
    # The version stands in a header, so that only plain characters are kept.
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name) or "model"
    return f"{plain}-{script.stat().st_mtime_ns // 1_000_000:x}"
