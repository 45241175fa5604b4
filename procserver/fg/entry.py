"""Typed reading of one JSON object of ``fg.json``."""

import math
from collections.abc import Mapping
from typing import Any

from procserver.errors import FgConfigError

MISSING = object()
INT64_MAX = 2**63 - 1


class Entry:
    """One feature or sequence group; every refusal names it and the key.

    JSON as people write it is taken: numbers as text, ``"true"`` for true, one
    string where a list is meant. ``null`` is the same as an absent key.
    """

    def __init__(self, value: Mapping[str, Any], name: str = "") -> None:
        self.value = value
        self.name = name

    def refuse(self, key: str, reason: str) -> FgConfigError:
        """The error to raise about ``key``."""
        return FgConfigError(self.name, key, reason)

    def raw(self, *keys: str) -> tuple[str, Any]:
        """The first of ``keys`` (spellings of one thing) that is present."""
        for key in keys:
            found = self.value.get(key)
            if found is not None:
                return key, found
        return keys[0], MISSING

    def has(self, *keys: str) -> bool:
        """Whether one of ``keys`` is present."""
        return self.raw(*keys)[1] is not MISSING

    def text(self, *keys: str, default: str | None = None) -> str:
        """A string; numbers become their text; required without a default."""
        key, found = self.raw(*keys)
        if found is MISSING:
            if default is None:
                raise self.refuse(key, "is required")
            return default
        return self.as_text(key, found)

    def as_text(self, key: str, found: object) -> str:
        """``found`` as text: a string, or a number."""
        if isinstance(found, str):
            try:
                found.encode()
            except UnicodeEncodeError:
                raise self.refuse(key, "is not valid Unicode") from None
            return found
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self.refuse(key, f"must be a string, not {_kind(found)}")
        if isinstance(found, float) and found.is_integer() and abs(found) < 2**53:
            return str(int(found))
        return repr(found)

    def integer(
        self, *keys: str, default: int, low: int = 0, high: int = INT64_MAX
    ) -> int:
        """An integer between ``low`` and ``high``."""
        key, found = self.raw(*keys)
        if found is MISSING:
            return default
        return self.as_integer(key, found, low, high)

    def as_integer(
        self, key: str, found: object, low: int = -(2**63), high: int = INT64_MAX
    ) -> int:
        """``found`` as an integer between ``low`` and ``high``."""
        number: int | None = None
        if isinstance(found, int) and not isinstance(found, bool):
            number = found
        elif isinstance(found, float) and found.is_integer():
            number = int(found)
        elif isinstance(found, str) and len(found) < 32:
            try:
                number = int(found)
            except ValueError:
                number = None
        if number is None:
            raise self.refuse(key, f"must be an integer, not {_kind(found)}")
        if not low <= number <= high:
            raise self.refuse(key, f"{number} is not between {low} and {high}")
        return number

    def flag(self, *keys: str, default: bool = False) -> bool:
        """A boolean."""
        key, found = self.raw(*keys)
        if found is MISSING:
            return default
        if isinstance(found, bool):
            return found
        text = str(found).strip().lower()
        if text in ("true", "1"):
            return True
        if text in ("false", "0", ""):
            return False
        raise self.refuse(key, f"must be true or false, not {_kind(found)}")

    def strings(self, *keys: str) -> tuple[str, ...] | None:
        """A list of strings (one string is a list of one), or None."""
        key, found = self.raw(*keys)
        if found is MISSING:
            return None
        if isinstance(found, str):
            found = [found]
        if not isinstance(found, list):
            raise self.refuse(key, f"must be a list of strings, not {_kind(found)}")
        return tuple(self.as_text(key, one) for one in found)

    def numbers(self, *keys: str) -> tuple[float, ...] | None:
        """A list of numbers, or comma-separated text of them, or None."""
        key, found = self.raw(*keys)
        if found is MISSING:
            return None
        if isinstance(found, str):
            found = [part for part in found.split(",") if part.strip()]
        if not isinstance(found, list):
            raise self.refuse(key, f"must be a list of numbers, not {_kind(found)}")
        return tuple(self.as_number(key, one) for one in found)

    def as_number(self, key: str, found: object) -> float:
        """``found`` as a number; NaN is none."""
        number = math.nan
        if isinstance(found, int | float | str) and not isinstance(found, bool):
            try:
                number = float(found)
            except (ValueError, OverflowError):
                number = math.nan
        if math.isnan(number):
            raise self.refuse(key, f"holds {_kind(found)}, which is no number")
        return number

    def character(self, key: str, default: str) -> bytes:
        """One ASCII character."""
        found = self.text(key, default=default)
        if len(found) != 1 or not found.isascii():
            raise self.refuse(key, f"must be one ASCII character, not {found!r:.40}")
        return found.encode()

    def objects(self, key: str) -> list[Mapping[str, Any]]:
        """A list of JSON objects."""
        _, found = self.raw(key)
        if not isinstance(found, list) or not all(
            isinstance(one, dict) for one in found
        ):
            raise self.refuse(key, "must be a list of objects")
        return found


def _kind(found: object) -> str:
    return f"{found!r:.60}"
