"""Files that stand beside ``fg.json``."""

from pathlib import Path

from procserver.fg.entry import Entry


def asset_path(asset_dir: Path, name: str) -> Path:
    """Where the file that ``fg.json`` calls ``name`` is on this machine.

    An absolute name is a path of the machine that wrote the export: a file of its
    last part in ``asset_dir`` comes first.
    """
    path = asset_dir / name
    if Path(name).is_absolute():
        beside = asset_dir / Path(name).name
        if beside.is_file():
            return beside
    return path


def read_asset(entry: Entry, key: str, asset_dir: Path) -> bytes:
    """The content of the file that ``key`` names, relative to ``asset_dir``.

    :raises FgConfigError: if the key is absent or the file cannot be read
    """
    name = entry.text(key)
    try:
        return asset_path(asset_dir, name).read_bytes()
    except (OSError, ValueError) as error:
        raise entry.refuse(key, f"file {name!r:.120} cannot be read") from error
