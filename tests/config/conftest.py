"""Folders and documents that the configuration tests share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[1] / "data" / "config"
MODEL_FOLDER = "home/admin/docker_ml/workspace/model"


def write_export(folder: Path, **acc: str) -> Path:
    """A folder with the file names of an export, for checks that look at names."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scripted_model.pt").write_bytes(b"PK")
    (folder / "fg.json").write_text('{"features": []}')
    (folder / "model_acc.json").write_text(json.dumps({"SPARSE_INT64": "1", **acc}))
    return folder


@pytest.fixture
def export() -> Callable[..., Path]:
    """Writes a fake export: ``export(folder, INPUT_TILE="2")``."""
    return write_export


@pytest.fixture
def data() -> Path:
    """The JSON of the vendor's pages."""
    return DATA


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A PROCSERVER_ROOT under which the vendor's model folder is mapped."""
    write_export(tmp_path / "root" / MODEL_FOLDER)
    return tmp_path / "root"


@pytest.fixture
def environ(root: Path, tmp_path: Path) -> dict[str, str]:
    return {"PROCSERVER_ROOT": str(root), "HOME": str(tmp_path / "home")}


@pytest.fixture
def minimal() -> dict[str, Any]:
    """The least that a service needs, besides the mapped model folder."""
    return {"name": "svc", "processor": "easyrec-torch-1.12"}
