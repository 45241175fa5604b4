"""A model directory as an exporter wrote it (spec/export.md section 1)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from procserver.errors import ModelError

SCRIPT = "scripted_model.pt"
FG_JSON = "fg.json"
ACC_JSON = "model_acc.json"


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

    ``version`` names what is served: the directory's name and the script's
    time stamp, so that an export replaced in place is told apart.
    ``input_tile`` is 0, 2 or 3; 3 for an export with distributed embeddings,
    whose other files are ``sparse``.
    """

    directory: Path
    script: Path
    fg_json: Path | None
    input_tile: int
    version: str
    acc: Mapping[str, str] = field(default_factory=dict)
    sparse: SparseFiles | None = None


def open_package(path: Path, *, input_tile: int | None = None) -> ModelPackage:
    """Finds the model under ``path``: an export directory or a bare script.

    :param input_tile: the environment's INPUT_TILE; ``model_acc.json`` wins
    :raises ModelError: if there is no model, or one that is not served here
    """
    if not path.exists():
        raise ModelError(f"model path {path} does not exist")
    if path.is_file():
        return ModelPackage(
            path.parent, path, None, input_tile or 0, _version(path, path.stem)
        )
    acc = _read_acc(path / ACC_JSON)
    _refuse_other_runtimes(path, acc)
    script = path / SCRIPT
    if not script.is_file():
        found = sorted(path.glob("*.pt"))
        if len(found) != 1:
            raise ModelError(
                f"{path} holds no {SCRIPT} and "
                + (f"{len(found)} other .pt files" if found else "no other .pt file")
            )
        script = found[0]
    fg_json = path / FG_JSON
    tile = acc.get("INPUT_TILE")
    sparse = _sparse_files(path, acc)
    if sparse is not None:
        # NOTE: the exporter forces this and need not record it.
        tile = "3"
    return ModelPackage(
        directory=path,
        script=script,
        fg_json=fg_json if fg_json.is_file() else None,
        input_tile=_tile(tile) if tile is not None else input_tile or 0,
        version=_version(script, path.name),
        acc=acc,
        sparse=sparse,
    )


def _sparse_files(path: Path, acc: Mapping[str, str]) -> SparseFiles | None:
    if acc.get("DISTRIBUTED_EMBEDDING", "")[:1] != "1":
        return None
    sparse = SparseFiles(path / "dense_meta.json", path / "sparse")
    for file in (sparse.dense_meta, sparse.tables, sparse.features):
        if not file.is_file():
            raise ModelError(
                "this export has distributed embeddings, but holds no "
                f"{file.relative_to(path)}"
            )
    if not sparse.shards and not sparse.dynamic_shards:
        raise ModelError(
            "this export has distributed embeddings, but no tables (.npz) in sparse/"
        )
    return sparse


def _tile(value: str) -> int:
    # Exporters test the first character only ("2", "2_online", "3..").
    return int(value[0]) if value[:1] in ("2", "3") else 0


def _version(script: Path, name: str) -> str:
    return f"{name}-{script.stat().st_mtime_ns // 1_000_000:x}"


def _read_acc(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} is not a JSON object")
    return {str(key): str(value) for key, value in content.items()}


def _refuse_other_runtimes(path: Path, acc: Mapping[str, str]) -> None:
    if acc.get("ENABLE_AOT", "0")[:1] in ("1", "2") or (path / "aoti").is_dir():
        raise ModelError(
            "this is an AOTInductor export, which needs the GPU it was compiled "
            "for and is not served yet; export without ENABLE_AOT"
        )
    if acc.get("ENABLE_TRT", "0")[:1] == "1":
        raise ModelError(
            "this is a TensorRT export, which is not served; export without ENABLE_TRT"
        )
    if list(path.glob("model-*-of-*.safetensors")):
        raise ModelError(
            "this is an RTP export, which is not served; export without USE_RTP"
        )
    if (path / "user").is_dir() and (path / "item").is_dir():
        raise ModelError(
            "this export has two towers: point the service at its user/ or item/ folder"
        )
