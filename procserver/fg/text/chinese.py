"""Traditional to simplified Chinese: the only user of the package opencc."""

from collections.abc import Callable

from procserver.fg.entry import Entry
from procserver.fg.text.extra import missing


def load_simplifier(entry: Entry, key: str) -> Callable[[str], str]:
    """A function that writes a text in simplified characters.

    NOTE(14.13): the vendor's table is not public; OpenCC's ``t2s`` is used, which
    knows phrases as well as characters.

    :raises FgConfigError: without the package
    """
    try:
        import opencc
    except ImportError as error:
        raise missing(entry, key, "opencc") from error
    convert: Callable[[str], str] = opencc.OpenCC("t2s").convert
    return convert
