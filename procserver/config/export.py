"""Whether a model folder looks like an export, judged by its files alone."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from procserver.config.service import ServiceConfig

SCRIPTED = "scripted_model.pt"


@dataclass
class Findings:
    """What was seen in the model folder."""

    summary: str = ""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def inspect(service: ServiceConfig) -> Findings:
    """Looks at names and small JSON files; loads no model."""
    found = Findings()
    place = service.model_dir
    try:
        if place.is_file():
            _single_file(service, place, found)
        elif not place.is_dir():
            found.problems.append(f"model folder {place}: does not exist")
        elif service.engine == "tensorflow":
            _saved_model(place, found)
        else:
            _torch_export(service, place, found)
    except OSError as error:
        found.problems.append(f"model folder {place}: {error.strerror}")
    return found


def _single_file(service: ServiceConfig, file: Path, found: Findings) -> None:
    found.summary = "TorchScript file"
    if service.engine != "torch" or file.suffix not in (".pt", ".pth"):
        found.problems.append(f"model {file}: expected a folder or a .pt file")
    elif service.model.fg_mode != "bypass" and not (file.parent / "fg.json").is_file():
        found.problems.append(
            f'model {file}: fg_mode "{service.model.fg_mode}" needs fg.json beside it'
        )


def _saved_model(place: Path, found: Findings) -> None:
    folders = [place, *_numbered(place)]
    if any((folder / "saved_model.pb").is_file() for folder in folders):
        found.summary = "SavedModel"
    else:
        found.problems.append(f"model folder {place}: no saved_model.pb in it")


def _numbered(place: Path) -> list[Path]:
    return [p for p in place.iterdir() if p.name.isdigit() and p.is_dir()]


def _torch_export(service: ServiceConfig, place: Path, found: Findings) -> None:
    if (place / SCRIPTED).is_file():
        _export(service, place, found)
    elif (place / "scripted_sparse_model.pt").exists() or (place / "aoti").exists():
        found.problems.append(
            f"model folder {place}: an AOTInductor export (ENABLE_AOT), which is not "
            "served; export without it"
        )
    elif any(place.glob("model-*-of-*.safetensors")):
        found.problems.append(
            f"model folder {place}: an RTP export (USE_RTP), which is not served"
        )
    elif towers := [t for t in ("user", "item") if (place / t / SCRIPTED).is_file()]:
        found.summary = f"match export: {', '.join(towers)}"
        found.warnings.append(
            f"model folder {place}: a match export; name the tower to serve, such as "
            f'"model_entry": "{towers[0]}"'
        )
    elif (place / "current.json").is_file() or _numbered(place):
        found.summary = "versions"
    else:
        scripts = sorted(p.name for p in place.glob("*.pt"))
        hint = f", only {', '.join(scripts)}" if scripts else ""
        found.problems.append(f"model folder {place}: no {SCRIPTED} in it{hint}")


def _export(service: ServiceConfig, place: Path, found: Findings) -> None:
    names = [
        name
        for name in (SCRIPTED, "fg.json", "model_acc.json")
        if (place / name).is_file()
    ]
    found.summary = ", ".join(names)
    features = _read_json(place / "fg.json", found)
    if service.model.fg_mode != "bypass":
        if "fg.json" not in names:
            found.problems.append(
                f"model folder {place}: no fg.json, which fg_mode "
                f'"{service.model.fg_mode}" needs'
            )
        elif features is not None and not isinstance(features.get("features"), list):
            found.problems.append(f'{place / "fg.json"}: no list "features" in it')
    acc = _read_json(place / "model_acc.json", found)
    if acc is None:
        return
    tile = str(acc.get("INPUT_TILE", ""))[:1]
    if service.rpc.batching and (
        tile in ("2", "3") or ("INPUT_TILE" not in acc and service.envs.input_tile)
    ):
        found.warnings.append(
            "metadata.rpc.batching: requests of an INPUT_TILE export cannot be "
            "merged, so each is a forward pass of its own"
        )
    if tile in ("2", "3"):
        found.summary += f"; INPUT_TILE {tile}"
        given = service.envs.input_tile
        if given is not None and given != int(tile):
            found.warnings.append(
                f"processor_envs.INPUT_TILE: {given}, but the model was exported "
                f"with {tile}, which counts"
            )


def _read_json(file: Path, found: Findings) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        found.problems.append(f"{file}: {place}: not JSON: {error.msg}")
        return None
    except (UnicodeDecodeError, RecursionError):
        found.problems.append(f"{file}: not JSON in UTF-8")
        return None
    if not isinstance(content, dict):
        found.problems.append(f"{file}: expected an object")
        return None
    return content
