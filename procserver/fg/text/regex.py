"""Replacing what a regular expression finds: the only user of google-re2.

NOTE(14.17): syntax and replacement are taken to be RE2's. The package brings RE2's
matching but a replacement of Python's kind, so replacing is written out here as
``RE2::Replace`` and ``RE2::GlobalReplace`` are documented to work.
"""

from collections.abc import Callable, Sequence
from typing import Any

from procserver.fg.entry import Entry
from procserver.fg.text.extra import missing

Part = bytes | int


def load_replacer(
    entry: Entry,
    key: str,
    patterns: Sequence[str],
    replacement: str,
    *,
    replace_all: bool,
    icase: bool,
) -> Callable[[str], str]:
    """A function that replaces the first match, or all, of one of ``patterns``.

    ``key``: the key that the patterns came from.

    :raises FgConfigError: without the package, or for a pattern or replacement
        that RE2 refuses
    """
    try:
        import re2
    except ImportError as error:
        raise missing(entry, key, "google-re2") from error
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not icase
    for pattern in patterns:
        _compiled(re2, entry, key, pattern, options)
    # NOTE(14.17): alternatives share one group, so that a flag such as (?s) also
    # counts for those after it.
    joined = patterns[0] if len(patterns) == 1 else f"(?:{'|'.join(patterns)})"
    regex = _compiled(re2, entry, key, joined, options)
    parts = rewrite_parts(entry, replacement, regex.groups)
    search = regex.search

    def replace(text: str) -> str:
        data = text.encode()
        match = search(data)
        if match is None:
            return text
        if replace_all:
            return _replaced_all(search, match, data, parts)
        start, end = match.span()
        return (data[:start] + _rewritten(match, parts) + data[end:]).decode()

    return replace


def rewrite_parts(entry: Entry, replacement: str, groups: int) -> tuple[Part, ...]:
    """Literal bytes and group numbers of a replacement.

    ``\\0`` to ``\\9`` stand for groups and ``\\\\`` for a backslash.
    """
    literals, *escapes = replacement.split("\\")
    parts: list[Part] = [literals.encode()]
    at = 0
    while at < len(escapes):
        text = escapes[at]
        at += 1
        if text[:1] in "0123456789" and text:
            if int(text[0]) > groups:
                raise entry.refuse(
                    "replacement", f"\\{text[0]}: the pattern has {groups} groups"
                )
            parts += [int(text[0]), text[1:].encode()]
        elif not text and at < len(escapes):
            parts += [b"\\", escapes[at].encode()]
            at += 1
        else:
            raise entry.refuse(
                "replacement", "a backslash needs a digit or a backslash after it"
            )
    return tuple(part for part in parts if part != b"")


def _compiled(re2: Any, entry: Entry, key: str, pattern: str, options: Any) -> Any:
    try:
        # Of bytes, spans are byte offsets; matching is by UTF-8 all the same.
        return re2.compile(pattern.encode(), options)
    except re2.error as error:
        reason = error.args[0] if error.args else b""
        if isinstance(reason, bytes):
            reason = reason.decode(errors="replace")
        raise entry.refuse(key, f"{pattern!r:.80}: {reason!s:.120}") from error


def _rewritten(match: Any, parts: tuple[Part, ...]) -> bytes:
    # A group that took no part in the match counts as empty.
    return b"".join(
        part if isinstance(part, bytes) else match.group(part) or b"" for part in parts
    )


def _replaced_all(
    search: Callable[..., Any], match: Any, data: bytes, parts: tuple[Part, ...]
) -> str:
    found: list[bytes] = []
    at, last_end = 0, -1
    while match is not None:
        start, end = match.span()
        found.append(data[at:start])
        if start == end == last_end:
            # An empty match just behind the last one does not count: one
            # character is passed over.
            at = _next_character(data, start)
            found.append(data[start:at])
        else:
            found.append(_rewritten(match, parts))
            at = last_end = end
        match = search(data, at) if at < len(data) or last_end != at else None
    found.append(data[at:])
    return b"".join(found).decode()


def _next_character(data: bytes, at: int) -> int:
    at += 1
    while at < len(data) and data[at] & 0xC0 == 0x80:
        at += 1
    return at
