"""Copies of remote folders: complete, reused, replaced, never half."""

import logging
import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from procserver.config import Mount, Url
from procserver.config import fetch as fetching
from procserver.config.fetch import fetch, missing_driver
from procserver.errors import FetchError, ServiceError


def mount_of(url: str) -> Mount:
    return Mount("/model", None, Url(url), True)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def write(remote: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        with fsspec.open(f"{remote}/{name}", "wb", auto_mkdir=True) as sink:
            sink.write(content)


@pytest.fixture(params=["memory", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield f"file://{tmp_path}/remote"
        return
    root = f"memory://{uuid.uuid4().hex}"
    yield root
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)


FILES = {"scripted_model.pt": b"PK" * 1000, "fg.json": b"{}", "sub/a.txt": b""}


def test_a_folder_is_copied(
    remote: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(remote, FILES)
    mount = mount_of(remote)
    with caplog.at_level(logging.INFO, logger="procserver.config.fetch"):
        folder = fetch(mount, tmp_path / "state")
    assert folder == mount.folder(tmp_path / "state")
    assert tree(folder) == FILES
    assert "3 of 3 files" in caplog.text


def test_a_single_file_is_copied_into_a_folder(remote: str, tmp_path: Path) -> None:
    write(remote, {"x/model.pt": b"PK"})
    folder = fetch(mount_of(f"{remote}/x/model.pt"), tmp_path / "state")
    assert tree(folder) == {"model.pt": b"PK"}


def test_an_unchanged_remote_is_not_copied_again(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(remote, FILES)
    folder = fetch(mount_of(remote), tmp_path / "state")
    before = os.readlink(folder)

    def copied(*_: object) -> None:
        raise AssertionError("copied again")

    monkeypatch.setattr(fetching, "_copy", copied)
    assert fetch(mount_of(remote), tmp_path / "state") == folder
    assert os.readlink(folder) == before


def test_a_changed_remote_replaces_the_copy(remote: str, tmp_path: Path) -> None:
    for content in (b"one", b"two!", b"three"):
        write(remote, {"scripted_model.pt": content})
        folder = fetch(mount_of(remote), tmp_path / "state")
        assert tree(folder.resolve()) == {"scripted_model.pt": content}
    # The current copy and the one before stay, nothing else.
    kept = [p for p in folder.parent.iterdir() if not p.is_symlink()]
    assert len(kept) == 2


def test_a_vanished_file_is_gone_from_the_new_copy(remote: str, tmp_path: Path) -> None:
    write(remote, FILES)
    fetch(mount_of(remote), tmp_path / "state")
    filesystem, root = fsspec.core.url_to_fs(remote)
    filesystem.rm(f"{root}/fg.json")
    assert "fg.json" not in tree(fetch(mount_of(remote), tmp_path / "state"))


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), KeyboardInterrupt])
def test_a_broken_transfer_leaves_the_old_copy(
    fault: BaseException,
    remote: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(remote, FILES)
    folder = fetch(mount_of(remote), tmp_path / "state")
    write(remote, {"fg.json": b'{"features": []}', "new": b"x"})

    def broken(self: object) -> None:
        raise fault

    monkeypatch.setattr(fetching._Progress, "file_done", broken)
    with pytest.raises((FetchError, KeyboardInterrupt)):
        fetch(mount_of(remote), tmp_path / "state")
    assert tree(folder) == FILES
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted(
        ["current", os.readlink(folder)]
    )


def test_a_file_that_grows_while_copied_is_refused(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(remote, {"a": b"1", "b": b"2"})
    listing = fetching._listing

    def stale(*arguments: object) -> object:
        found = listing(*arguments)  # type: ignore[arg-type]
        write(remote, {"b": b"longer"})
        return found

    monkeypatch.setattr(fetching, "_listing", stale)
    with pytest.raises(FetchError, match="b has 1 bytes, 6 arrived"):
        fetch(mount_of(remote), tmp_path / "state")
    assert not mount_of(remote).folder(tmp_path / "state").exists()


def test_what_a_dead_process_left_is_swept(remote: str, tmp_path: Path) -> None:
    write(remote, FILES)
    mount = mount_of(remote)
    copies = mount.copies(tmp_path / "state")
    dead = copies / ".0123456789abcdef.4194305.tmp"  # above the largest pid
    alive = copies / f".0123456789abcdef.{os.getppid()}.tmp"
    for folder in (dead, alive):
        (folder / "sub").mkdir(parents=True)
    (copies / ".current.4194305.tmp").symlink_to("x")
    fetch(mount, tmp_path / "state")
    assert not dead.exists()
    assert alive.exists()
    assert not (copies / ".current.4194305.tmp").is_symlink()


def test_nothing_there(remote: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="nothing is there"):
        fetch(mount_of(f"{remote}/missing"), tmp_path / "state")


def test_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    filesystem = fsspec.filesystem("memory")
    write(f"memory://{name}", {"ok": b"1"})
    # An object store may hold any key; the in-memory one takes this only raw.
    evil = f"/{name}/../../evil"
    filesystem.store[evil] = filesystem.store[f"/{name}/ok"]
    try:
        with pytest.raises(FetchError, match="leaves the folder"):
            fetch(mount_of(f"memory://{name}"), tmp_path / "state")
    finally:
        del filesystem.store[evil]


def test_no_remote(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="no remote"):
        fetch(Mount("/m", None, None, True), tmp_path)


def test_missing_driver_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for driver in ("ossfs", "s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, driver, None)
    for scheme, extra in (("oss", "oss"), ("s3", "s3"), ("gs", "gcs")):
        url = Url(f"{scheme}://id:c4n4ry@bucket/x")
        assert f"pip install 'procserver[{extra}]'" in missing_driver(url)
        with pytest.raises(FetchError, match=rf"procserver\[{extra}\]") as caught:
            fetch(Mount("/m", None, url, True), tmp_path)
        assert "c4n4ry" not in str(caught.value)


def test_unknown_scheme(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="nope:// is not known"):
        fetch(mount_of("nope://x/y"), tmp_path)
    assert "not known" in missing_driver(Url("nope://x"))
    assert missing_driver(Url("memory://x")) == ""


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    write(f"memory://{name}", {"ok": b"1"})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FetchError, match=rf"Not a directory: {tmp_path}/file"):
        fetch(mount_of(f"memory://{name}"), tmp_path / "file")


def test_errors_of_drivers_do_not_show_the_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://id:c4n4ry@bucket/x"

    def failing(*_: object) -> None:
        raise RuntimeError(f"cannot reach {url}")

    monkeypatch.setattr(fetching, "_listing", failing)
    with pytest.raises(FetchError, match="RuntimeError") as caught:
        fetch(mount_of(url), tmp_path)
    assert "c4n4ry" not in str(caught.value)
