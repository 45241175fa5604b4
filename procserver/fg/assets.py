"""Files that stand beside ``fg.json``."""

from pathlib import Path

from procserver.fg.entry import Entry


def read_asset(entry: Entry, key: str, asset_dir: Path) -> bytes:
    """The content of the file that ``key`` names, relative to ``asset_dir``.

    :raises FgConfigError: if the key is absent or the file cannot be read
    """
    name = entry.text(key)
    try:
        return (asset_dir / name).read_bytes()
    except (OSError, ValueError) as error:
        raise entry.refuse(key, f"file {name!r:.120} cannot be read") from error
