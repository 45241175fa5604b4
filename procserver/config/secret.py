"""Text that must not be shown: tokens, passwords, URLs with credentials."""

import hmac
import re

MASK = "***"
_QUERY_VALUE = re.compile(r"([?&;][^=&;#]*=)[^&;#]*")
_DSN_PASSWORD = re.compile(
    r"((?:password|passwd|secret|token)\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE
)


class Secret:
    """A secret text; only :meth:`reveal` gives it away.

    ``repr``, ``str`` and formatting are masked; equality takes constant time.
    It pickles and copies as itself, so it survives ``dataclasses.asdict`` and
    the way into a child process.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself."""
        return self._text

    def masked(self) -> str:
        """What may be shown to anybody."""
        return MASK

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.masked()!r})"

    def __str__(self) -> str:
        return self.masked()

    def __format__(self, spec: str) -> str:
        return format(self.masked(), spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __hash__(self) -> int:
        return hash(self._text)

    def __bool__(self) -> bool:
        return bool(self._text)

    def __reduce__(self) -> tuple[type["Secret"], tuple[str]]:
        return type(self), (self._text,)


class Url(Secret):
    """A path or URL whose user name, password and query values are masked."""

    __slots__ = ()

    def masked(self) -> str:
        return mask_url(self._text)

    @property
    def scheme(self) -> str:
        """The scheme in lower case, empty for a plain path."""
        return url_scheme(self._text)


def url_scheme(text: str) -> str:
    """``oss`` of ``oss://bucket/path``; empty where there is no scheme."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*)://", text)
    return match.group(1).lower() if match else ""


def mask_url(text: str) -> str:
    """The URL without user info, query values and DSN passwords.

    Keys of object stores hold ``/``, ``+`` and ``@``, which people do not
    escape, so everything up to the last ``@`` counts as user info: a path with
    an ``@`` in it is masked too much rather than a password too little.
    """
    if url_scheme(text):
        scheme, rest = text.split("://", 1)
        if "@" in rest:
            rest = f"{MASK}@{rest.rpartition('@')[2]}"
        rest = _QUERY_VALUE.sub(rf"\1{MASK}", rest)
        text = f"{scheme}://{rest}"
    return _DSN_PASSWORD.sub(rf"\1{MASK}", text)
