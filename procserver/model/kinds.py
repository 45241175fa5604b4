"""What a folder holds, judged by file names and ``model_acc.json`` alone.

Nothing is loaded here: the same judgement serves the loader, the choice of a
version (an incomplete folder is passed over) and ``procserver check``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from procserver.errors import ModelError
from procserver.model.documents import read_object

SCRIPT = "scripted_model.pt"
FG_JSON = "fg.json"
ACC_JSON = "model_acc.json"
DENSE_META = "dense_meta.json"
SPARSE = "sparse"
READY = "READY"
SCRIPT_SUFFIXES = (".pt", ".pth")


@dataclass(frozen=True)
class Parts:
    """An export in several folders, each an export of its own.

    The first folder is served unless the configuration names another.
    """

    name: str
    folders: tuple[str, ...]


_MATCH = ("user", "item")
_TDM = ("model", "embedding")


class Kind(Enum):
    """What was found; the value is what people call it."""

    EXPORT = "TorchEasyRec export"
    DISTRIBUTED = "TorchEasyRec export with distributed embeddings"
    SCRIPT = "TorchScript file"
    HOT = "dense hot export"
    DENSE_PART = "dense part of an online export"
    PARTS = "export in several parts"
    AOT = "AOTInductor export"
    TENSORRT = "TensorRT export"
    RTP = "RTP export"

    @property
    def refusal(self) -> str | None:
        """Why this kind is not served; None if it is."""
        return _REFUSALS.get(self)


_REFUSALS = {
    Kind.AOT: "this is an AOTInductor export, which needs the GPU it was compiled "
    "for and is not served yet; export without ENABLE_AOT",
    Kind.TENSORRT: "this is a TensorRT export, which is not served; export without "
    "ENABLE_TRT",
    Kind.RTP: "this is an RTP export, which is not served; export without USE_RTP",
    Kind.DENSE_PART: "this is a dense hot export, which has neither features nor "
    "sparse tables of its own; set model_path to the base export and "
    "procserver.hot_export to this folder",
}


def recognise(folder: Path) -> Kind | None:
    """The kind of model directly in ``folder``; None: there is no model in it.

    :raises ModelError: if ``model_acc.json`` is damaged
    """
    acc = read_acc(folder)
    other = _other_runtime(folder, acc)
    if other is not None:
        return other
    if (folder / SCRIPT).is_file():
        if is_distributed(folder, acc):
            return Kind.DISTRIBUTED
        if (folder / DENSE_META).is_file() and not (folder / FG_JSON).is_file():
            return Kind.DENSE_PART
        return Kind.EXPORT
    if parts_of(folder) is not None:
        return Kind.PARTS
    return Kind.SCRIPT if loose_scripts(folder) else None


def lacks(folder: Path) -> str | None:
    """What ``folder`` misses to be a model of any kind; None: it is complete."""
    try:
        kind = recognise(folder)
        if kind is None:
            return f"no {SCRIPT}"
        if kind is Kind.DISTRIBUTED:
            return missing_sparse_file(folder)
    except (ModelError, OSError) as error:
        return str(error)
    return None


def read_acc(folder: Path) -> dict[str, str]:
    """``model_acc.json`` as text by key; empty if there is none."""
    file = folder / ACC_JSON
    if not file.is_file():
        return {}
    return {key: str(value) for key, value in read_object(file).items()}


def is_distributed(folder: Path, acc: Mapping[str, str]) -> bool:
    """Whether embeddings stand beside the script instead of in it."""
    if acc.get("DISTRIBUTED_EMBEDDING", "")[:1] == "1":
        return True
    return (folder / DENSE_META).is_file() and (folder / SPARSE).is_dir()


def missing_sparse_file(folder: Path) -> str | None:
    """The first thing that an export with distributed embeddings lacks."""
    wanted = (
        DENSE_META,
        f"{SPARSE}/sparse_embedding.json",
        f"{SPARSE}/sparse_features.json",
    )
    for name in wanted:
        if not (folder / name).is_file():
            return f"no {name}"
    if not any((folder / SPARSE).glob("sparse_*-of-*.npz")):
        return f"no tables (.npz) in {SPARSE}/"
    return None


def loose_scripts(folder: Path) -> list[Path]:
    """TorchScript files under names of their own."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix in SCRIPT_SUFFIXES
        and not file.name.startswith(".")
        and file.is_file()
    )


def parts_of(folder: Path) -> Parts | None:
    """The parts of a match or TDM export that are there; None: it is neither."""
    towers = tuple(name for name in _MATCH if (folder / name / SCRIPT).is_file())
    if towers:
        return Parts("match export", towers)
    # A single folder "model" means nothing: people call theirs so.
    if all((folder / name / SCRIPT).is_file() for name in _TDM):
        return Parts("TDM export", _TDM)
    return None


def part_name(folder: Path) -> str | None:
    """The part that ``folder`` is of the export around it; None: of none."""
    parts = parts_of(folder.parent)
    return folder.name if parts is not None and folder.name in parts.folders else None


def _other_runtime(folder: Path, acc: Mapping[str, str]) -> Kind | None:
    if acc.get("ENABLE_AOT", acc.get("UNIFIED_AOT", "0"))[:1] in ("1", "2", "t", "T"):
        return Kind.AOT
    if (folder / "aoti").is_dir() or (folder / "scripted_sparse_model.pt").is_file():
        return Kind.AOT
    if acc.get("ENABLE_TRT", "0")[:1] in ("1", "t", "T"):
        return Kind.TENSORRT
    if any(folder.glob("model-*-of-*.safetensors")):
        return Kind.RTP
    return None
