"""The import rule of the house: rooms know only the rooms below them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SIBLINGS = {"wire", "itemcache", "fg", "model", "recall"}
BELOW_ALL = {"config", "errors", "faults", "shm", "observe", "cython_ext"}
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "faults": {"errors"},
    "shm": {"errors", "faults", "cython_ext"},
    "observe": {"errors", "config", "faults", "shm", "cython_ext"},
    "cython_ext": {"errors", "config"},
    **{room: BELOW_ALL for room in SIBLINGS},
    "offline": {"fg", "errors"},
    "debug": BELOW_ALL | {"wire", "fg", "model"},
    "pipeline": BELOW_ALL | SIBLINGS | {"debug"},
    "app": BELOW_ALL | {"pipeline", "wire"},
    "lifecycle": BELOW_ALL | SIBLINGS | {"pipeline", "app"},
    "replay": BELOW_ALL | {"wire"},
    "demo": BELOW_ALL | {"fg", "wire"},
}
# The command line starts whatever it is asked for.
UNBOUND = {"cli", "__main__", "__init__"}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] == "cython_ext":
        return "cython_ext"
    if parts[0] != "procserver":
        return None
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            # "from procserver import x" imports the room x.
            if node.module == "procserver":
                found.update(f"procserver.{name.name}" for name in node.names)
    return found


def cython_imports(path: Path) -> set[str]:
    found = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if (
            len(words) > 3 and words[0] == "from" and words[2] in ("import", "cimport")
        ) or (len(words) > 1 and words[0] in ("import", "cimport")):
            found.add(words[1])
    return found


def sources() -> list[Path]:
    python = [
        path
        for path in (ROOT / "procserver").rglob("*.py")
        if "wire/pb" not in path.as_posix()
    ]
    return sorted([*python, *(ROOT / "cython_ext").glob("*.p[yx][xd]")])


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_rooms_below(path: Path) -> None:
    relative = path.relative_to(ROOT)
    module = ".".join(relative.with_suffix("").parts)
    room = room_of(module)
    assert room is not None
    if room in UNBOUND:
        return
    imported = imports_of(path) if path.suffix == ".py" else cython_imports(path)
    rooms = {room_of(name) for name in imported} - {None, room, "__init__"}
    assert rooms <= ALLOWED[room], f"{module} imports {sorted(rooms - ALLOWED[room])}"


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in sources()
        if path.suffix == ".py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []
