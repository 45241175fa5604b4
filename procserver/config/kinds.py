"""Types of configuration values: lenient where the vendor's samples are."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from procserver.config.secret import Secret, Url, mask_url

_TRUE = {"true", "1", "yes", "on", "t", "y"}
_FALSE = {"false", "0", "no", "off", "f", "n"}


class Wrong(Exception):
    """A value is not what its key takes; the text completes "expected ..."."""


class Kind(Protocol):
    """How the value of one key is read, and how the reference names it."""

    @property
    def name(self) -> str:
        """The type's name in the reference."""

    @property
    def secret(self) -> bool:
        """Whether messages must not show a value."""

    def read(self, value: object) -> Any:
        """The typed value.

        Raises:
            Wrong: with what was expected.
        """


@dataclass(frozen=True)
class Integer:
    """A whole number, also given as text or as ``8.0``."""

    low: int | None = None
    high: int | None = None
    name: str = "integer"
    secret: bool = False

    def read(self, value: object) -> int:
        number: int | None = None
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif (isinstance(value, float) and value.is_integer()) or (
            isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value)
        ):
            number = int(value)
        if number is None:
            raise Wrong("an integer")
        _check_range(number, self.low, self.high, "an integer")
        return number


@dataclass(frozen=True)
class Number:
    """A finite number, also given as text."""

    low: float | None = None
    high: float | None = None
    name: str = "number"
    secret: bool = False

    def read(self, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise Wrong("a number")
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise Wrong("a number") from None
        if not math.isfinite(number):
            raise Wrong("a finite number")
        _check_range(number, self.low, self.high, "a number")
        return number


def _check_range(
    number: float, low: float | None, high: float | None, what: str
) -> None:
    if low is not None and high is not None and not low <= number <= high:
        raise Wrong(f"{what} from {low} to {high}")
    if low is not None and number < low:
        raise Wrong(f"{what} of at least {low}")
    if high is not None and number > high:
        raise Wrong(f"{what} of at most {high}")


@dataclass(frozen=True)
class Boolean:
    """true or false in any spelling the vendor's pages show."""

    name: str = "boolean"
    secret: bool = False

    def read(self, value: object) -> bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        if isinstance(value, str):
            word = value.strip().lower()
            if word in _TRUE:
                return True
            if word in _FALSE:
                return False
        raise Wrong("true or false")


@dataclass(frozen=True)
class Text:
    """A text; numbers are taken as their text, the empty text as absent."""

    pattern: str = ""
    rule: str = ""
    name: str = "text"
    secret: bool = False

    def read(self, value: object) -> str | None:
        text = _as_text(value)
        if text and self.pattern and not re.fullmatch(self.pattern, text):
            raise Wrong(self.rule)
        return text or None


@dataclass(frozen=True)
class SecretText:
    """A text that is never shown."""

    name: str = "secret text"
    secret: bool = True

    def read(self, value: object) -> Secret | None:
        text = _as_text(value)
        return Secret(text) if text else None


@dataclass(frozen=True)
class UrlText:
    """A path or URL whose credentials are never shown."""

    name: str = "path or URL"
    secret: bool = True

    def read(self, value: object) -> Url | None:
        if not isinstance(value, str):
            raise Wrong("a path or URL")
        text = _as_text(value)
        return Url(text) if text else None


@dataclass(frozen=True)
class Choice:
    """One of a few words, in any case."""

    words: tuple[str, ...]
    none_words: tuple[str, ...] = ()
    more: Callable[[], tuple[str, ...]] = tuple
    name: str = "text"
    secret: bool = False

    def read(self, value: object) -> str | None:
        word = value.strip().lower() if isinstance(value, str) else None
        if word == "" or word in self.none_words:
            return None
        if word is not None and (word in self.words or word in self.more()):
            return word
        raise Wrong("one of " + ", ".join([*self.words, *self.more()]))


@dataclass(frozen=True)
class Names:
    """A list of names, or one text with commas between them."""

    name: str = "comma list"
    secret: bool = False

    def read(self, value: object) -> tuple[str, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list) or not all(isinstance(p, str) for p in parts):
            raise Wrong("names as a list or as a text with commas")
        names = [part.strip() for part in parts if part.strip()]
        # NOTE: dict keeps the order of the first mention.
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Devices:
    """``cpu``, ``cuda``, ``cuda:1`` or several of the latter."""

    name: str = "device or list"
    secret: bool = False

    def read(self, value: object) -> tuple[str, ...]:
        names = [name.lower() for name in Names().read(value)]
        devices = ["cuda:0" if name == "cuda" else name for name in names]
        for device in devices:
            if not re.fullmatch(r"cpu|cuda:\d{1,3}", device):
                raise Wrong('"cpu", "cuda:N" or a list of "cuda:N"')
        if not devices:
            raise Wrong('"cpu", "cuda:N" or a list of "cuda:N"')
        if "cpu" in devices and len(set(devices)) > 1:
            raise Wrong("either the CPU or GPUs, not both")
        return tuple(dict.fromkeys(devices))


@dataclass(frozen=True)
class Texts:
    """An object of texts; numbers and booleans are taken as their JSON text."""

    name: str = "object of texts"
    secret: bool = False

    def read(self, value: object) -> Mapping[str, str] | None:
        if not isinstance(value, dict):
            raise Wrong("an object of texts")
        texts = {}
        for key, one in value.items():
            if isinstance(one, bool):
                one = json.dumps(one)
            texts[_as_text(key)] = _as_text(one)
        return MappingProxyType(texts) if texts else None


_SCALAR = r"(?:int(?:32|64)|float(?:32|64)|string)"
_COLUMN_TYPE = re.compile(
    rf"bool|timestamp|{_SCALAR}|list<{_SCALAR}>|list<list<{_SCALAR}>>"
    rf"|map<{_SCALAR},{_SCALAR}>"
)


@dataclass(frozen=True)
class ColumnTypes:
    """An object of column types; pairs of name and type, without spaces."""

    name: str = "object of types"
    secret: bool = False

    def read(self, value: object) -> tuple[tuple[str, str], ...] | None:
        if not isinstance(value, dict):
            raise Wrong("an object of types")
        types = {}
        for key, one in value.items():
            text = "".join(_as_text(one).lower().split())
            if not _COLUMN_TYPE.fullmatch(text):
                raise Wrong(f"a type such as float32, list<string> for {key!r}")
            types[_as_text(key)] = text
        return tuple(types.items()) or None


@dataclass(frozen=True)
class Raw:
    """Read elsewhere: an object or list with declarations of its own."""

    name: str = "list"
    secret: bool = True

    def read(self, value: object) -> object:
        return value


def _as_text(value: object) -> str:
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" or c == "\0" for c in value):
            raise Wrong("a text in Unicode")
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    raise Wrong("a text")


def shown(value: object, *, secret: bool = False) -> str:
    """The value for a message: short JSON, or only its type for a secret."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if secret:
        return {str: "a text", bool: "a boolean"}.get(type(value), "a number")
    if isinstance(value, str):
        value = mask_url(value)
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
