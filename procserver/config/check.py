"""``procserver check``: the resolved service, or every problem in it."""

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from procserver.config.fetch import missing_driver
from procserver.config.findings import Findings, Inspect
from procserver.config.load import Loaded, load
from procserver.config.secret import Url
from procserver.config.service import ServiceConfig
from procserver.config.settings import SectionClass, settings_of
from procserver.config.source import missing_store_drivers
from procserver.errors import ConfigError

_KEY_WIDTH = 32


def check(
    path: str | os.PathLike[str],
    environ: Mapping[str, str],
    out: TextIO,
    err: TextIO,
    inspect: Inspect,
) -> int:
    """Prints what would be served; secrets are masked.

    Args:
        path: the service JSON.
        environ: as for :func:`procserver.config.load.load`.
        out: takes the resolved service.
        err: takes problems.
        inspect: judges the model by its files.

    Returns:
        0 if the service could start (warnings included), 2 if not; then ``err``
        holds one line for each problem.
    """
    try:
        loaded = load(path, environ)
    except ConfigError as error:
        return _fail(error.problems, getattr(error, "__notes__", []), err)
    service = loaded.service
    model = Path(service.model_dir)
    problems: list[str] = []
    warnings = list(loaded.warnings)
    if any(model.is_relative_to(c.folder(service.state_dir)) for c in service.copies):
        found = Findings(summary="copied at start, not examined")
    else:
        found = inspect(service)
    problems += found.problems
    warnings += found.warnings
    problems += _items_problems(service)
    problems += _warm_up_problems(service)
    warnings += _driver_warnings(service)
    if problems:
        return _fail(problems, warnings, err)
    for line in report(loaded, found, warnings):
        _say(line, out)
    return 0


def _say(line: str, stream: TextIO) -> None:
    # Keys of a JSON file may hold what UTF-8 cannot.
    print(line.encode(errors="backslashreplace").decode(), file=stream)


def _fail(problems: list[str], warnings: list[str], err: TextIO) -> int:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{count}:", file=err)
    for problem in problems:
        _say(f"  {problem}", err)
    for line in _listed("warnings", warnings):
        _say(line, err)
    return 2


def _items_problems(service: ServiceConfig) -> list[str]:
    """Local Parquet items must be there; remote ones are seen at start."""
    source = service.item_source
    if source is None or source.url is None or source.url.scheme:
        return []
    if source.remote_type != "parquet":
        return []
    place = Path(source.url.reveal())
    copied = (copy.folder(service.state_dir) for copy in service.copies)
    if any(place.is_relative_to(folder) for folder in copied):
        return []
    names = [table.name for table in source.tables if table.name] or [""]
    wanted = [place / name for name in names if "://" not in name]
    return [
        f"model_config.url: no items at {item}"
        for item in wanted
        if not (glob.glob(str(item), recursive=True) or item.exists())
    ]


def _warm_up_problems(service: ServiceConfig) -> list[str]:
    file = service.warm_up_data_path
    copied = any(
        file is not None and file.is_relative_to(copy.folder(service.state_dir))
        for copy in service.copies
    )
    if file is None or copied or file.exists():
        return []
    return [f"warm_up_data_path: nothing at {file}"]


def _driver_warnings(service: ServiceConfig) -> list[str]:
    remotes = [copy.remote for copy in service.copies]
    source = service.item_source
    if source is not None and source.remote_type == "parquet":
        remotes.append(source.url)
    wanted = [remote for remote in remotes if remote is not None and remote.scheme]
    missing = [text for text in map(missing_driver, wanted) if text]
    return missing if source is None else missing + missing_store_drivers(source)


def report(loaded: Loaded, found: Findings, warnings: list[str]) -> Iterator[str]:
    """The lines of the resolved service."""
    service = loaded.service
    yield f"service {service.name}"
    yield _line("processor", service.processor, f"engine {service.engine}")
    yield _line("token", service.token)
    yield _line("debug levels", "answered" if service.allow_debug else "refused")
    yield _line("model", service.model_dir, found.summary)
    for key, value in found.facts:
        yield _line(key, value)
    yield _line("state folder", service.state_dir)
    for key, given in (
        ("warm_up_data_path", service.warm_up_data_path),
        ("oss_endpoint", service.oss_endpoint),
    ):
        if given is not None:
            yield _line(key, given)
    yield from _section("metadata.rpc", service.rpc)
    yield from _section("metadata.eas", service.eas)
    yield from _section("model_config", service.model)
    if service.source is not None:
        yield from _section("model_config: item source", service.source)
        for table in service.source.tables:
            columns = ", ".join(table.value) if table.value else "all columns"
            yield _line("table", table.name or "(url)", f"key {table.key}; {columns}")
        if service.source.stream is not None:
            yield from _section("model_config.stream", service.source.stream)
    yield ""
    yield "processor_envs"
    yield from _settings(service.envs)
    for name, text in service.envs.raw.masked().items():
        yield _line(f"given: {name}", text)
    if service.storage:
        yield ""
        yield "storage"
    for mount in service.storage:
        mode = "read-only" if mount.read_only else "read-write"
        copied = f"; copy of {mount.remote}" if mount.local is None else ""
        yield _line(mount.mount_path, mount.folder(service.state_dir), mode + copied)
    yield from _section("procserver", service.host)
    yield from _listed("notices", [*loaded.notices, *found.notices])
    yield from _listed("warnings", warnings)


def _section(title: str, section: SectionClass) -> Iterator[str]:
    yield ""
    yield title
    yield from _settings(section)


def _settings(section: SectionClass) -> Iterator[str]:
    """A line per setting; what is not given shows its default."""
    for name, declared in settings_of(type(section)):
        value = getattr(section, name)
        if name == "tables":
            continue
        is_default = value == declared.default
        unset = value is None or value == ()
        if unset and not declared.shown_default:
            continue
        if unset:
            value = declared.shown_default
        text = (
            value if unset or not declared.unit else f"{_shown(value)} {declared.unit}"
        )
        yield _line(declared.key, text, default=is_default)


def _line(key: str, value: Any, remark: str = "", *, default: bool = False) -> str:
    text = f"  {key:<{_KEY_WIDTH}} {_shown(value)}"
    if remark:
        text += f"  ({remark})"
    return f"{text}  [default]" if default else text


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Url):
        return value.masked()
    return str(value)


def _listed(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield title
        for line in lines:
            yield f"  {line}"
