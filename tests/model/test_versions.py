"""Versions roots: which version is served, and what is passed over."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from exports import distributed, export, publish
from hypothesis import given, settings
from hypothesis import strategies as st

from procserver.errors import ModelError
from procserver.model.kinds import Kind
from procserver.model.package import open_package
from procserver.model.versions import is_name, present, resolve


def test_the_highest_number_is_served_under_its_own_name(tmp_path: Path) -> None:
    for name in ("9", "10", "2"):
        export(tmp_path / name)
    package = open_package(tmp_path)
    assert package.version == "10"
    assert package.directory == tmp_path / "10"


@pytest.mark.parametrize("folder", ["", "versions"])
def test_current_json_wins_over_numbers(tmp_path: Path, folder: str) -> None:
    for name in ("1", "2", "rollback-a"):
        export(tmp_path / folder / name)
    for version in ("rollback-a", "1", 1):
        publish(tmp_path, version)
        assert open_package(tmp_path).version == str(version)


def test_a_pinned_version_wins_over_current_json(tmp_path: Path) -> None:
    for name in ("1", "2"):
        export(tmp_path / name)
    publish(tmp_path, "2")
    assert open_package(tmp_path, version="1").version == "1"
    with pytest.raises(ModelError, match=r"model_version: there is no .*'3', only 1"):
        open_package(tmp_path, version="3")


def test_a_pin_needs_versions(tmp_path: Path) -> None:
    path = export(tmp_path / "export")
    for place in (path, path / "scripted_model.pt"):
        with pytest.raises(ModelError, match="'3' cannot be chosen"):
            open_package(place, version="3")


def test_hidden_temporary_and_incomplete_folders_are_passed_over(
    tmp_path: Path,
) -> None:
    export(tmp_path / "4")
    export(tmp_path / "5").joinpath("scripted_model.pt").unlink()
    for name in (".9", "8.tmp", "7.tmp.123"):
        export(tmp_path / name)
    (tmp_path / "6").write_text("a file")
    package = open_package(tmp_path)
    assert package.version == "4"
    assert package.notices == (
        "version 5 is incomplete and passed over: no scripted_model.pt",
    )
    with pytest.raises(ModelError, match=r"5 is incomplete: no scripted_model\.pt"):
        open_package(tmp_path, version="5")


def test_a_version_whose_tables_are_still_being_copied(tmp_path: Path) -> None:
    distributed(tmp_path / "1")
    shutil.rmtree(distributed(tmp_path / "2") / "sparse")
    package = open_package(tmp_path)
    assert (package.version, package.kind) == ("1", Kind.DISTRIBUTED)


def test_ready_is_needed_where_one_version_has_it(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        export(tmp_path / name)
    assert open_package(tmp_path).version == "3"
    (tmp_path / "2" / "READY").touch()
    assert open_package(tmp_path).version == "2"
    publish(tmp_path, "3")
    with pytest.raises(ModelError, match="version 3 is incomplete: no READY"):
        open_package(tmp_path)


def test_a_version_of_another_runtime_is_not_passed_over(tmp_path: Path) -> None:
    export(tmp_path / "1")
    export(tmp_path / "2", ENABLE_TRT="1")
    with pytest.raises(ModelError, match="TensorRT"):
        open_package(tmp_path)


def test_versions_of_towers(tmp_path: Path) -> None:
    for version in ("1", "2"):
        for tower in ("user", "item"):
            export(tmp_path / version / tower)
    package = open_package(tmp_path, entry="item")
    assert package.directory == tmp_path / "2" / "item"
    assert (package.version, package.part) == ("2", "item")
    assert open_package(tmp_path).part == "user"


def test_versions_below_the_entry(tmp_path: Path) -> None:
    export(tmp_path / "ranker" / "3")
    assert open_package(tmp_path, entry="ranker").version == "3"


def test_versions_of_bare_scripts(tmp_path: Path) -> None:
    (tmp_path / "11").mkdir()
    (tmp_path / "11" / "mine.pt").write_bytes(b"PK")
    (tmp_path / "old.pt").write_bytes(b"PK")
    package = open_package(tmp_path)
    assert (package.version, package.kind) == ("11", Kind.SCRIPT)


def test_a_linked_version_is_a_version(tmp_path: Path) -> None:
    stored = export(tmp_path / "store" / "abc")
    root = tmp_path / "root"
    root.mkdir()
    (root / "1").symlink_to(stored)
    assert open_package(root).version == "1"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"version": 1.5}'])
def test_a_damaged_pointer_is_refused(tmp_path: Path, text: str) -> None:
    export(tmp_path / "1")
    (tmp_path / "current.json").write_text(text)
    with pytest.raises(ModelError, match=r"current\.json"):
        open_package(tmp_path)
    assert open_package(tmp_path, version="1").version == "1"


@given(
    name=st.one_of(
        st.text(max_size=20), st.text("./\\a1\0", max_size=8), st.just("../1")
    )
)
@settings(deadline=None)
def test_a_pointer_never_leaves_the_root(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("pointer")
    export(folder / "outside" / "1")
    root = folder / "outside" / "root"
    export(root / "7")
    publish(root, name)
    try:
        found = resolve(root)
    except ModelError:
        return
    assert (name, found.folder) == ("7", root / "7")


NAMES = st.one_of(
    st.integers(0, 200).map(str),
    st.sampled_from(["007", "7", "x1", "20261121080000", "1.5", "3.tmp", ".4"]),
)
STATES = st.sampled_from(["complete", "ready", "empty", "no-script", "other-file"])


@given(st.dictionaries(NAMES, STATES, max_size=6))
@settings(deadline=None, max_examples=60)
def test_any_root_serves_its_highest_complete_number(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, str]
) -> None:
    root = tmp_path_factory.mktemp("root")
    for name, state in content.items():
        folder = root / name
        folder.mkdir()
        if state in ("complete", "ready"):
            export(folder)
        if state == "ready":
            (folder / "READY").touch()
        if state == "no-script":
            (folder / "fg.json").write_text("{}")
        if state == "other-file":
            (folder / "notes.txt").write_text("")
    valid = {name: state for name, state in content.items() if is_name(name)}
    good = {"ready"} if "ready" in valid.values() else {"complete"}
    numbers = [n for n, state in valid.items() if state in good and n.isdecimal()]
    if numbers:
        assert int(resolve(root).name) == max(map(int, numbers))
    else:
        with pytest.raises(ModelError, match="no complete version"):
            resolve(root)
    shown = [int(name) for name in present(root) if name.isdecimal()]
    assert shown == sorted(shown)


def test_publications_and_clean_ups_while_resolving(tmp_path: Path) -> None:
    """A reader sees a whole version at every moment of a publisher's work."""
    export(tmp_path / "versions" / "0")
    publish(tmp_path, "0")
    stop = threading.Event()
    failures: list[BaseException] = []

    def publisher() -> None:
        number = 0
        try:
            while not stop.is_set():
                number += 1
                draft = export(tmp_path / "versions" / f"{number}.tmp.{os.getpid()}")
                draft.rename(tmp_path / "versions" / str(number))
                publish(tmp_path, str(number))
                shutil.rmtree(tmp_path / "versions" / str(number - 1))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=publisher)
    thread.start()
    seen = []
    try:
        while len(seen) < 300 or seen[-1] == seen[0]:
            seen.append(int(resolve(tmp_path).name))
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert seen == sorted(seen)
