"""Service JSON text to one canonical tree: nested, dotted and aliased keys."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from procserver.config.kinds import shown
from procserver.errors import ConfigError

# Strings are matched first, so that nothing inside them is taken for more.
_LENIENT = re.compile(
    r'(?P<string>"(?:[^"\\\n]|\\.)*")'
    r"|(?P<comment>//[^\n]*|\#[^\n]*|/\*.*?\*/)"
    r"|(?P<word>\b(?:True|False|None)\b)",
    re.DOTALL,
)
_TRAILING_COMMA = re.compile(r'"(?:[^"\\\n]|\\.)*"|(?P<comma>,)(?=\s*[\]}])')
_WORDS = {"True": "true", "False": "false", "None": "null"}
_MAX_DEPTH = 64


class Pairs(list[tuple[str, Any]]):
    """A JSON object as written: duplicate keys are still there."""


@dataclass
class Canonical:
    """The document with every key at its full nested place.

    ``spelled`` remembers how each place was written, for messages; ``ignored``
    holds the places of platform-only keys that were found, in order.
    """

    tree: dict[str, Any] = field(default_factory=dict)
    spelled: dict[tuple[str, ...], str] = field(default_factory=dict)
    ignored: dict[tuple[str, ...], str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_text(text: str, where: str = "") -> tuple[Pairs, list[str]]:
    """Parses JSON, and what the vendor's pages show beyond it.

    Comments (``#``, ``//``, ``/* */``), a comma before a closing bracket and
    Python's ``True``, ``False``, ``None`` are read, with a warning, since the
    platform's console refuses some of them.

    Raises:
        ConfigError: the text is not JSON; line and column are named.
    """
    prefix = f"{where}: " if where else ""
    lenient = _TRAILING_COMMA.sub(
        lambda match: " " if match.group("comma") else match.group(),
        _LENIENT.sub(_plain, text),
    )
    try:
        document = json.loads(
            lenient, object_pairs_hook=Pairs, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ConfigError([f"{prefix}{place}: not JSON: {error.msg}"]) from None
    except RecursionError:
        raise ConfigError([f"{prefix}not JSON: nested too deeply"]) from None
    except ValueError as error:
        raise ConfigError([f"{prefix}not JSON: {error}"]) from None
    if not isinstance(document, Pairs):
        what = shown(document)
        raise ConfigError([f"{prefix}expected an object, got {what}"])
    if lenient == text:
        return document, []
    line = _first_difference(text, lenient)
    return document, [
        f"{prefix}line {line}: comments, trailing commas and True/False/None are "
        "read here, but they are not JSON"
    ]


def _plain(match: re.Match[str]) -> str:
    """Same length and line breaks, so that positions in messages stay right."""
    if match.lastgroup == "comment":
        return re.sub(r"[^\n]", " ", match.group())
    if match.lastgroup == "word":
        return _WORDS[match.group()]
    return match.group()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _first_difference(text: str, other: str) -> int:
    pairs = zip(text, other, strict=True)
    first = next(i for i, (one, two) in enumerate(pairs) if one != two)
    return text.count("\n", 0, first) + 1


def canonical(
    document: Mapping[str, Any] | Pairs,
    aliases: Mapping[tuple[str, ...], tuple[str, ...]],
    ignored: Iterable[tuple[str, ...]] = (),
    opaque: Iterable[tuple[str, ...]] = (),
    embedded: Iterable[tuple[str, ...]] = (),
) -> Canonical:
    """Puts every key at its full place.

    Args:
        document: the parsed JSON.
        aliases: place -> canonical place; a prefix counts for all below it.
        ignored: places left out of the tree with all below them.
        opaque: places whose content is kept as it is written.
        embedded: places that may hold their object as JSON text.
    """
    result = Canonical()
    placer = _Placer(result, aliases, set(ignored), set(opaque), set(embedded))
    placer.walk((), document, "")
    return result


class _Placer:
    def __init__(
        self,
        result: Canonical,
        aliases: Mapping[tuple[str, ...], tuple[str, ...]],
        ignored: set[tuple[str, ...]],
        opaque: set[tuple[str, ...]],
        embedded: set[tuple[str, ...]],
    ) -> None:
        self.result = result
        self.aliases = aliases
        self.ignored = ignored
        self.opaque = opaque
        self.embedded = embedded

    def walk(
        self, prefix: tuple[str, ...], node: Mapping[str, Any] | Pairs, spelled: str
    ) -> None:
        pairs = node if isinstance(node, Pairs) else list(node.items())
        seen: set[str] = set()
        for key, value in pairs:
            if key in seen:
                name = f"{spelled}.{key}" if spelled else key
                self.result.warnings.append(f"{name}: written twice in one object")
            seen.add(key)
            if value is None or is_comment(key):
                continue
            parts = tuple(key.split("."))
            parts = parts if all(parts) else (key,)
            full = f"{spelled}.{key}" if spelled else key
            self.place(self.renamed(prefix + parts), value, full)

    def renamed(self, place: tuple[str, ...]) -> tuple[str, ...]:
        for size in range(len(place), 0, -1):
            if place[:size] in self.aliases:
                return self.aliases[place[:size]] + place[size:]
        return place

    def place(self, place: tuple[str, ...], value: Any, spelled: str) -> None:
        if len(place) > _MAX_DEPTH:
            self.result.problems.append(f"{spelled[:80]}: nested too deeply")
            return
        for size in range(1, len(place) + 1):
            if place[:size] in self.ignored:
                self.result.ignored.setdefault(place[:size], spelled)
                return
        if place in self.embedded and isinstance(value, str) and value.strip():
            try:
                value, warnings = read_text(value, spelled)
            except ConfigError as error:
                self.result.problems.extend(error.problems)
                return
            self.result.warnings.extend(warnings)
        if place in self.opaque:
            self.insert(place, plain(value), spelled)
        elif isinstance(value, Mapping | Pairs):
            if self.branch(place, spelled) is not None:
                self.walk(place, value, spelled)
        elif isinstance(value, list):
            self.insert(place, self.elements(value, spelled), spelled)
        else:
            self.insert(place, value, spelled)

    def elements(self, values: list[Any], spelled: str) -> list[Any]:
        """List elements are documents of their own: no aliases in them."""
        elements: list[Any] = []
        for index, value in enumerate(values):
            if not isinstance(value, Mapping | Pairs):
                elements.append(plain(value))
                continue
            inner = Canonical()
            _Placer(inner, {}, set(), set(), set()).walk(
                (), value, f"{spelled}[{index}]"
            )
            elements.append(inner.tree)
            self.result.problems.extend(inner.problems)
            self.result.warnings.extend(inner.warnings)
        return elements

    def branch(self, place: tuple[str, ...], spelled: str) -> dict[str, Any] | None:
        """The object at ``place``, made where it is missing."""
        node = self.result.tree
        for size, part in enumerate(place, 1):
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                self.contradict(place, place[:size], spelled)
                return None
            self.result.spelled.setdefault(place[:size], spelled)
            node = child
        return node

    def insert(self, place: tuple[str, ...], value: Any, spelled: str) -> None:
        node = self.branch(place[:-1], spelled)
        if node is None:
            return
        if place[-1] in node:
            if not _same(node[place[-1]], value):
                self.contradict(place, place, spelled)
            return
        node[place[-1]] = value
        self.result.spelled[place] = spelled

    def contradict(
        self, place: tuple[str, ...], other: tuple[str, ...], spelled: str
    ) -> None:
        first = self.result.spelled.get(other, ".".join(other))
        self.result.problems.append(
            f"{'.'.join(place)}: given twice with different values, "
            f'as "{first}" and as "{spelled}"'
        )


def is_comment(key: str) -> bool:
    """Keys that people use for remarks, since JSON has none."""
    return key.startswith(("//", "#", "_comment", "$schema", "__comment"))


def plain(value: Any) -> Any:
    """Without :class:`Pairs`; of duplicate keys the last one stays."""
    if isinstance(value, Pairs):
        return {key: plain(inner) for key, inner in value}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict | list) or isinstance(other, dict | list):
        return bool(one == other)
    return bool(one == other) or _word(one) == _word(other)


def _word(value: Any) -> str:
    return str(value).strip().lower()
