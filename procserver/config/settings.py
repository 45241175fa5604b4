"""Declarations: one :func:`setting` per key feeds parser, key hints and docs."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from procserver.config.kinds import Kind, Wrong, shown


@dataclass(frozen=True)
class Setting:
    """What is known about one key of the service JSON.

    ``path`` is the canonical dotted path, with ``[]`` for list elements;
    ``aliases`` are further paths that mean the same; ``pending`` marks a key
    that is read and typed but has no effect in this version yet.
    """

    path: str
    kind: Kind
    help: str
    default: Any
    unit: str
    shown_default: str
    aliases: tuple[str, ...]
    required: bool
    pending: bool

    @property
    def key(self) -> str:
        """The last part of the path: the vendor's key name."""
        return self.path.rpartition(".")[2]


class SectionClass(Protocol):
    """A dataclass whose fields are settings of one object of the JSON."""

    SECTION: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


def setting(
    key: str,
    kind: Kind,
    help: str,
    *,
    default: Any = None,
    required: bool = False,
    unit: str = "",
    shown_default: str = "",
    at: str | None = None,
    aliases: tuple[str, ...] = (),
    pending: bool = False,
) -> Any:
    """A dataclass field that declares one key.

    Args:
        key: the vendor's key below the section (or below ``at``).
        kind: how its value is read.
        help: one or two sentences; they are the documentation.
        default: the typed value where the key is absent.
        required: absent is a problem.
        unit: ``ms``, ``s``, ``min``, ``bytes``, ...
        shown_default: the default in words where the value says too little.
        at: another section than the class's own.
        aliases: other full dotted paths with the same meaning.
        pending: accepted, no effect in this version.
    """
    metadata = {
        "setting": (key, kind, help, required, unit, shown_default, at, aliases),
        "pending": pending,
    }
    return dataclasses.field(
        default=default,
        metadata=metadata,
        kw_only=True,
    )


def settings_of(section: type[SectionClass]) -> Iterator[tuple[str, Setting]]:
    """Attribute name and declaration of every setting of a section class."""
    for name, field in section.__dataclass_fields__.items():
        if "setting" not in field.metadata:
            continue
        key, kind, help, required, unit, shown_default, at, aliases = field.metadata[
            "setting"
        ]
        base = section.SECTION if at is None else at
        yield (
            name,
            Setting(
                path=f"{base}.{key}" if base else key,
                kind=kind,
                help=help,
                default=field.default,
                unit=unit,
                shown_default=shown_default,
                aliases=aliases,
                required=required,
                pending=field.metadata["pending"],
            ),
        )


def lookup(tree: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of nested objects, None where there is none."""
    node: Any = tree
    for part in path.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def read_section(
    section: type[SectionClass],
    tree: Mapping[str, Any],
    problems: list[str],
    *,
    element: str = "",
) -> dict[str, Any]:
    """Typed values by attribute name; what is wrong goes to ``problems``.

    Args:
        section: the dataclass.
        tree: the whole canonical document, or with ``element`` one list element.
        problems: collects one line per wrong value.
        element: the path of the list element, such as ``storage[0]``.
    """
    values: dict[str, Any] = {}
    for name, declared in settings_of(section):
        path = declared.path
        if element:
            below = path.removeprefix(f"{section.SECTION}.")
            raw, path = lookup(tree, below), f"{element}.{below}"
        else:
            raw = lookup(tree, path)
        value = None
        if raw is not None:
            try:
                value = declared.kind.read(raw)
            except Wrong as wrong:
                got = shown(raw, secret=declared.kind.secret)
                problems.append(f"{path}: expected {wrong}, got {got}")
                value = declared.default
                values[name] = value
                continue
        if value is None and declared.required:
            problems.append(f"{path}: missing; {declared.help}")
        values[name] = declared.default if value is None else value
    return values
