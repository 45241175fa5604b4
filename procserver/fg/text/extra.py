"""The refusal when an optional text library is not installed."""

from procserver.errors import FgConfigError
from procserver.fg.entry import Entry


def missing(entry: Entry, key: str, package: str) -> FgConfigError:
    """What to raise when ``package`` cannot be imported."""
    return entry.refuse(
        key, f"needs the package {package}: install the extra procserver[text]"
    )
