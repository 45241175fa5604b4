"""Folders with the file names of exports, for tests that load nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path


def export(path: Path, *, fg: bool = True, **acc: str) -> Path:
    """An ordinary export."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "scripted_model.pt").write_bytes(b"PK")
    if fg:
        (path / "fg.json").write_text('{"features": []}')
    (path / "model_acc.json").write_text(json.dumps({"SPARSE_INT64": "1", **acc}))
    return path


def distributed(path: Path) -> Path:
    """An export with distributed embeddings."""
    export(path, DISTRIBUTED_EMBEDDING="1")
    (path / "sparse").mkdir()
    for name in ("dense_meta.json", "sparse/sparse_embedding.json"):
        (path / name).write_text("{}")
    (path / "sparse/sparse_features.json").write_text("{}")
    for rank in (1, 0):
        (path / f"sparse/sparse_embeddings-0{rank}-of-02.npz").write_bytes(b"PK")
    return path


def hot_version(root: Path, name: str, *, ready: bool = True) -> Path:
    """One version of a dense hot export, not yet published."""
    folder = root / "versions" / name
    (folder / "graph").mkdir(parents=True)
    for file in ("scripted_model.pt", "dense_meta.json", "gm_dense.code"):
        (folder / file).write_bytes(b"{}")
    if ready:
        (folder / "READY").touch()
    return folder


def publish(root: Path, version: object) -> None:
    """Replaces ``current.json`` as publishers do."""
    root.mkdir(parents=True, exist_ok=True)
    draft = root / "current.json.tmp"
    draft.write_text(json.dumps({"version": version, "checkpoint_step": 1}))
    os.replace(draft, root / "current.json")
