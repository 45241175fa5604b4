"""Whether a service's model could be served, judged by its files alone.

The judgement and its sentences are the loader's own; no weights are read.
"""

from pathlib import Path

from procserver.config.findings import Findings
from procserver.config.service import ServiceConfig
from procserver.errors import ModelError
from procserver.model.documents import read_object
from procserver.model.integrity import MANIFEST, SUMS
from procserver.model.kinds import ACC_JSON, Kind, parts_of
from procserver.model.operators import missing_extra, operator_libraries
from procserver.model.package import ModelPackage, open_served
from procserver.model.versions import is_versions_root, present


def inspect(service: ServiceConfig) -> Findings:
    """Looks at file names, small JSON files and the code inside the script."""
    found = Findings()
    try:
        if service.engine == "tensorflow":
            _saved_model(service.model_dir, found)
        else:
            _torch_model(service, found)
    except ModelError as error:
        found.problems.append(f"model: {error}")
    except OSError as error:
        found.problems.append(f"model {service.model_dir}: {error.strerror}")
    return found


def _saved_model(place: Path, found: Findings) -> None:
    if not place.is_dir():
        raise ModelError(f"model path {place} is no folder")
    numbered = [p for p in place.iterdir() if p.name.isdigit() and p.is_dir()]
    if not any((p / "saved_model.pb").is_file() for p in (place, *numbered)):
        raise ModelError(f"{place} holds no saved_model.pb")
    found.summary = "SavedModel"


def _torch_model(service: ServiceConfig, found: Findings) -> None:
    package = open_served(service)
    found.summary = package.kind.value
    found.notices += package.notices
    found.facts.append(("model version", _version(service, package)))
    if package.part is not None:
        parts = parts_of(package.base.parent)
        others = ", ".join(parts.folders) if parts else package.part
        found.facts.append(("part", f"{package.part} (of {others})"))
    found.facts.append(("model files", _files(package)))
    if package.kind is Kind.HOT:
        found.facts.append(("dense part", str(package.directory)))
    if package.sparse is not None:
        count = len(package.sparse.shards) + len(package.sparse.dynamic_shards)
        found.facts.append(("sparse tables", f"{count} archives"))
    _features(service, package, found)
    _tile(service, package, found)
    _operators(package, found)


def _version(service: ServiceConfig, package: ModelPackage) -> str:
    root = service.model_dir
    entry = service.model.model_entry
    if entry and (root / entry).is_dir():
        root /= entry
    if package.base == root or not is_versions_root(root):
        return package.version
    policy = service.host.model_version
    chosen = policy if policy == "latest" else "chosen by model_version"
    return f"{package.version} ({chosen}; there are {', '.join(present(root))})"


def _files(package: ModelPackage) -> str:
    beside = [
        file.name
        for name in (ACC_JSON, MANIFEST, SUMS)
        if (file := package.base / name).is_file()
    ]
    features = [package.fg_json.name] if package.fg_json else []
    return ", ".join([package.script.name, *features, *beside])


def _features(service: ServiceConfig, package: ModelPackage, found: Findings) -> None:
    mode = service.model.fg_mode
    if package.fg_json is None:
        if mode != "bypass":
            found.problems.append(
                f'model: fg_mode "{mode}" needs fg.json, and {package.base} holds none'
            )
        return
    try:
        features = read_object(package.fg_json).get("features")
    except ModelError as error:
        lines = found.warnings if mode == "bypass" else found.problems
        lines.append(f"model: {error}")
        return
    if mode != "bypass" and not isinstance(features, list):
        found.problems.append(f'model: {package.fg_json}: no list "features" in it')


def _tile(service: ServiceConfig, package: ModelPackage, found: Findings) -> None:
    if package.input_tile:
        found.facts.append(("model INPUT_TILE", str(package.input_tile)))
        if service.rpc.batching:
            found.warnings.append(
                "metadata.rpc.batching: requests of an INPUT_TILE export cannot be "
                "merged, so each is a forward pass of its own"
            )
    given = service.envs.input_tile
    if given is not None and given != package.input_tile:
        found.warnings.append(
            f"processor_envs.INPUT_TILE: {given}, but the model was exported with "
            f"{package.input_tile or 'none'}, which counts"
        )


def _operators(package: ModelPackage, found: Findings) -> None:
    libraries = operator_libraries(package.script)
    if "fbgemm" in libraries:
        found.facts.append(("operators", "fbgemm (the extra torchrec)"))
    missing = missing_extra(package.script)
    if missing is not None:
        found.problems.append(f"model: {missing}")
