"""text_normalizer: case, width, script, special characters and spaces.

NOTE(14.13): the vendor's tables are not public. Width follows Unicode's full-width
mapping; special characters without a ``stop_char_file`` are those that are neither
letters, digits, marks nor white space, and they are removed.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field

UPPER = 2
LOWER = 4
HALF_WIDTH = 8
SIMPLIFIED = 16
FILTER = 32
SPLIT_CHINESE = 512
KNOWN = UPPER | LOWER | HALF_WIDTH | SIMPLIFIED | FILTER | SPLIT_CHINESE
DEFAULT = UPPER | HALF_WIDTH | SIMPLIFIED | FILTER

SPACE = re.compile(r"\s+")
CHINESE = (
    "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002fa1f\U00030000-\U000323af"
)
# Between a Chinese character and whatever stands beside it, spaces aside.
SEAM = re.compile(rf"(?<=[{CHINESE}])(?=\S)|(?<=\S)(?=[{CHINESE}])")


def half_width(character: str) -> str:
    """The half-width form of a full-width character, else the character."""
    kind, _, code = unicodedata.decomposition(character).partition(" ")
    return chr(int(code, 16)) if kind == "<wide>" else character


def is_special(character: str) -> bool:
    """Whether the filter removes ``character`` when no list says otherwise."""
    return not character.isspace() and unicodedata.category(character)[0] not in "LMN"


def upper(character: str) -> str:
    """The upper-case letter; the character itself if that is more than one."""
    found = character.upper()
    return found if len(found) == 1 else character


def lower(character: str) -> str:
    """The lower-case letter; the character itself if that is more than one."""
    found = character.lower()
    return found if len(found) == 1 else character


class CharacterTable(dict[int, str | None]):
    """What becomes of each character, for ``str.translate``; worked out when met.

    SAFETY: it holds one entry per character of Unicode at most.
    """

    def __init__(self, rule: Callable[[str], str | None]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str | None:
        found = self[code] = self._rule(chr(code))
        return found


@dataclass(frozen=True)
class TextNormalizer:
    """One text_normalizer (spec section 8.13).

    ``options``: the bit mask. ``max_length``: longer texts, in characters, are
    left as they are (0: none is). ``stops``: what the filter removes, None for
    the built-in rule. ``simplify``: traditional to simplified characters, given
    if ``options`` asks for it.
    """

    options: int = DEFAULT
    remove_space: bool = False
    max_length: int = 0
    stops: frozenset[str] | None = None
    simplify: Callable[[str], str] | None = None
    _shapes: CharacterTable = field(init=False, repr=False, compare=False)
    _filter: CharacterTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_shapes", CharacterTable(self._shape))
        object.__setattr__(self, "_filter", CharacterTable(self._kept))

    def __call__(self, text: str) -> str:
        """``text`` normalised.

        NOTE(14.13): in the order width, case, script, filter, spaces, splitting.
        """
        if self.max_length and len(text) > self.max_length:
            return text
        if self.options & (HALF_WIDTH | UPPER | LOWER | FILTER):
            text = text.translate(self._shapes)
        if self.simplify is not None and not text.isascii():
            text = self.simplify(text)
        if self.options & FILTER:
            text = text.translate(self._filter)
        if self.remove_space:
            text = SPACE.sub("", text)
        if self.options & SPLIT_CHINESE and not text.isascii():
            text = SEAM.sub(" ", text)
        return text

    def _shape(self, character: str) -> str | None:
        """Width and case. Stop characters go before either could hide them."""
        if self.options & FILTER and self.stops and character in self.stops:
            return None
        if self.options & HALF_WIDTH:
            character = half_width(character)
        if self.options & UPPER:
            return upper(character)
        return lower(character) if self.options & LOWER else character

    def _kept(self, character: str) -> str | None:
        if self.stops is not None:
            return None if character in self.stops else character
        return None if is_special(character) else character


def read_stop_characters(data: bytes) -> frozenset[str]:
    """The characters of a ``stop_char_file``, UTF-8, line ends aside.

    :raises ValueError: if it is not UTF-8
    """
    return frozenset(data.decode("utf-8-sig")) - {"\n", "\r"}
