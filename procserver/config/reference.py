"""The table of all keys as Markdown, from the declarations.

``python -m procserver.config.reference`` prints it; with ``--write FILE`` it
replaces what stands between the two marks in FILE.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from procserver.config.known import SECTIONS
from procserver.config.page import print_or_write
from procserver.config.platform import PLATFORM_KEYS
from procserver.config.settings import SectionClass, Setting, settings_of

BEGIN = "<!-- reference: begin (python -m procserver.config.reference) -->"
END = "<!-- reference: end -->"

_TITLES = {
    "ServiceConfig": "Service",
    "RpcConfig": "Requests: `metadata.rpc`",
    "EasConfig": "Stopping: `metadata.eas`",
    "ModelConfig": "Model and features: `model_config`",
    "SourceConfig": "Item source: `model_config`",
    "TableConfig": "Tables of the item source: `model_config.tables`",
    "StreamConfig": "Changes of items: `model_config.stream`",
    "StorageEntry": "Folders: `storage`",
    "EnvConfig": "Environment: `processor_envs`",
    "HostConfig": "This machine: `procserver`",
}


def reference() -> str:
    """All sections, and the platform's keys that are ignored."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    for section in SECTIONS:
        yield f"### {_TITLES[section.__name__]}"
        yield ""
        yield from _table(section)
        yield ""
    yield "### Accepted and ignored"
    yield ""
    yield "Settings of the platform, each answered with a notice:"
    yield ", ".join(f"`{path}`" for path in sorted(PLATFORM_KEYS)) + "."


def _table(section: type[SectionClass]) -> Iterator[str]:
    yield "| key | type | default | unit | meaning |"
    yield "|---|---|---|---|---|"
    for _, declared in settings_of(section):
        yield "| " + " | ".join(_cells(declared)) + " |"


def _cells(declared: Setting) -> list[str]:
    words = getattr(declared.kind, "words", ())
    kind = ", ".join(f"`{word}`" for word in words) or declared.kind.name
    meaning = declared.help
    if declared.aliases:
        others = ", ".join(f"`{alias}`" for alias in declared.aliases)
        meaning += f" Also {others}."
    if declared.pending:
        meaning += " *No effect yet.*"
    return [
        f"`{declared.path}`",
        kind + _range(declared.kind),
        _default(declared),
        declared.unit or "",
        meaning,
    ]


def _range(kind: Any) -> str:
    low, high = getattr(kind, "low", None), getattr(kind, "high", None)
    if low is not None and high is not None:
        return f", {low} to {high}"
    return f", at least {low}" if low is not None else ""


def _default(declared: Setting) -> str:
    if declared.required:
        return "required"
    if declared.shown_default:
        return declared.shown_default
    value = declared.default
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the reference or writes it into a page."""
    return print_or_write(
        "python -m procserver.config.reference", reference, (BEGIN, END), arguments
    )


if __name__ == "__main__":
    raise SystemExit(main())
