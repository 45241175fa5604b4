"""All declared keys: aliases, unknown keys, the nearest known key."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from procserver.config.envs import EnvConfig
from procserver.config.host import HostConfig
from procserver.config.kinds import shown
from procserver.config.model import ModelConfig
from procserver.config.platform import PLATFORM_KEYS
from procserver.config.rpc import EasConfig, RpcConfig
from procserver.config.service import ServiceConfig
from procserver.config.settings import SectionClass, Setting, settings_of
from procserver.config.source import SourceConfig, StreamConfig, TableConfig
from procserver.config.storage import StorageEntry

#: Every section in the order of the reference.
SECTIONS: tuple[type[SectionClass], ...] = (
    ServiceConfig,
    RpcConfig,
    EasConfig,
    ModelConfig,
    SourceConfig,
    TableConfig,
    StreamConfig,
    StorageEntry,
    EnvConfig,
    HostConfig,
)

#: Objects that have another spelling of their own.
_OBJECT_ALIASES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("rpc",): ("metadata", "rpc"),
    ("eas",): ("metadata", "eas"),
}


def all_settings() -> Iterator[tuple[type[SectionClass], str, Setting]]:
    """Section, attribute name and declaration of every key."""
    for section in SECTIONS:
        for name, declared in settings_of(section):
            yield section, name, declared


def aliases() -> dict[tuple[str, ...], tuple[str, ...]]:
    """Place -> canonical place."""
    table = dict(_OBJECT_ALIASES)
    for _, _, declared in all_settings():
        for alias in declared.aliases:
            table[_parts(alias)] = _parts(declared.path)
    return table


def ignored_places() -> list[tuple[str, ...]]:
    """Places of platform-only keys."""
    return [_parts(path) for path in PLATFORM_KEYS]


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.split("."))


def check_keys(
    tree: Mapping[str, Any], problems: list[str], warnings: list[str]
) -> None:
    """Warns of keys that no declaration knows, and refuses values for objects."""
    paths = [declared.path for _, _, declared in all_settings()]
    leaves = {path for path in paths if "[]" not in path}
    leaves |= {"processor_envs", "storage", "model_config.tables"}
    objects = {
        ".".join(_parts(path)[:size])
        for path in leaves
        for size in range(1, len(_parts(path)))
    } - leaves
    _walk(tree, "", leaves, objects, problems, warnings)
    tables = tree.get("model_config")
    tables = tables.get("tables") if isinstance(tables, Mapping) else None
    _check_tables(tables, warnings)


def _walk(
    node: Mapping[str, Any],
    prefix: str,
    leaves: set[str],
    objects: set[str],
    problems: list[str],
    warnings: list[str],
) -> None:
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else key
        if path in leaves:
            continue
        if path not in objects:
            warnings.append(f"{path}: unknown key{_hint(path, leaves)}")
        elif isinstance(value, Mapping):
            _walk(value, path, leaves, objects, problems, warnings)
        else:
            problems.append(
                f"{path}: expected an object, got {shown(value, secret=True)}"
            )


def _check_tables(tables: Any, warnings: list[str]) -> None:
    names = {declared.key for _, declared in settings_of(TableConfig)}
    elements = tables if isinstance(tables, list) else [tables]
    for index, element in enumerate(elements):
        if not isinstance(element, Mapping):
            continue
        where = "model_config.tables"
        where += f"[{index}]" if isinstance(tables, list) else ""
        for key in element:
            if key not in names:
                warnings.append(f"{where}.{key}: unknown key{_hint(key, names)}")


def _hint(path: str, known: set[str]) -> str:
    """The nearest key of the same object, else of any object."""
    parent, _, key = path.rpartition(".")
    prefix = f"{parent}." if parent else ""
    siblings = {
        name.removeprefix(prefix): name for name in known if name.startswith(prefix)
    }
    everywhere = {name.rpartition(".")[2]: name for name in sorted(known)}
    for names in (siblings, everywhere):
        folded = {name.lower(): target for name, target in names.items()}
        close = difflib.get_close_matches(key.lower(), folded, n=1, cutoff=0.7)
        if close:
            return f", did you mean {folded[close[0]]}?"
    return ""
