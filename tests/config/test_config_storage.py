"""Storage entries: where each one is found on this machine."""

from pathlib import Path
from typing import Any

import pytest

from procserver import config
from procserver.config.model import MODEL_FOLDER
from procserver.config.storage import Mount, Places
from procserver.errors import ConfigError


def parse(
    minimal: dict[str, Any], environ: dict[str, str], *storage: Any, **more: Any
) -> config.Loaded:
    document = minimal | {"model_path": "export", "storage": list(storage)} | more
    return config.parse(document, "/srv", environ)


def mount(
    minimal: dict[str, Any], environ: dict[str, str], entry: dict[str, Any]
) -> Mount:
    (found,) = parse(minimal, environ, entry).service.storage
    return found


@pytest.mark.parametrize(
    "local", [{"local": {"path": "w"}}, {"local": "w"}, {"local.path": "w"}]
)
def test_local_path_wins(
    local: dict[str, Any], minimal: dict[str, Any], environ: dict[str, str], root: Path
) -> None:
    (root / "warmup").mkdir()
    entry = {"mount_path": "/warmup/", "oss": {"path": "oss://b/w"}} | local
    found = mount(minimal, environ, entry)
    assert found.mount_path == "/warmup"
    assert found.local == Path("/srv/w")


def test_then_the_mount_path_below_the_root(
    minimal: dict[str, Any], environ: dict[str, str], root: Path
) -> None:
    (root / "warmup").mkdir()
    entry = {"mount_path": "/warmup", "oss": {"path": "oss://b/w"}}
    assert mount(minimal, environ, entry).local == root / "warmup"


def test_then_the_remote(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    entry = {"mount_path": "/warmup", "OSS": {"path": "oss://b/w", "readOnly": "false"}}
    found = mount(minimal, environ, entry)
    assert found.local is None
    assert found.remote == config.Url("oss://b/w")
    assert found.read_only is False
    folder = found.folder(Path("/state"))
    assert folder.is_relative_to("/state/mounts")
    assert folder.name == "current"


@pytest.mark.parametrize(
    "entry",
    [
        {"mount_path": "/n", "nfs": {"server": "10.0.0.1", "path": "/x"}},
        {"mount_path": "/n", "empty_dir": {}},
        {"mount_path": "/n"},
    ],
)
def test_what_cannot_be_copied_is_taken_as_mounted(
    entry: dict[str, Any], minimal: dict[str, Any], environ: dict[str, str], root: Path
) -> None:
    found = mount(minimal, environ, entry)
    assert found.local == root / "n"
    assert found.remote is None


def test_read_only_defaults(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    remote = {"mount_path": "/r", "oss": {"path": "oss://b/r"}}
    assert mount(minimal, environ, remote).read_only is True
    local = {"mount_path": "/r", "local": {"path": "r"}}
    assert mount(minimal, environ, local).read_only is False
    snake = {"mount_path": "/r", "s3": {"path": "s3://b/r", "read_only": 0}}
    assert mount(minimal, environ, snake).read_only is False


def test_endpoints(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    entries = [
        {"mount_path": "/a", "oss": {"path": "oss://b/r", "endpoint": "own"}},
        {"mount_path": "/b", "oss": {"path": "oss://b/r"}},
    ]
    loaded = parse(minimal, environ, *entries, oss_endpoint="general")
    assert [m.endpoint for m in loaded.service.storage] == ["own", "general"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("x", r"storage\[0\]: expected an object, got a text"),
        ({}, r"storage\[0\].mount_path: missing"),
        ({"mount_path": "m"}, r"storage\[0\].mount_path: expected an absolute path"),
        (
            {"mount_path": "/m", "OSS": {"path": "oss://b", "readOnly": "so"}},
            r"storage\[0\].OSS.readOnly: expected true or false",
        ),
        (
            {"mount_path": "/m", "oss": {"path": "bucket/x"}},
            r"storage\[0\].oss.path: expected a URL",
        ),
        (
            {"mount_path": "/m", "oss": {"path": "oss://b"}, "nfs": {"path": "/"}},
            "oss and nfs contradict",
        ),
        ({"mount_path": "/m", "oss": 5}, r"storage\[0\].oss: expected an object"),
    ],
)
def test_problems(
    entry: Any, text: str, minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=text):
        parse(minimal, environ, entry)


def test_one_place_mounted_twice(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="/m is mounted twice"):
        parse(minimal, environ, {"mount_path": "/m"}, {"mount_path": "/m/"})


def test_unknown_keys(minimal: dict[str, Any], environ: dict[str, str]) -> None:
    entry = {"mount_path": "/m", "propertys": {}, "local": "x"}
    warnings = parse(minimal, environ, entry).warnings
    assert warnings == ["storage[0].propertys: unknown key, did you mean properties?"]


def test_configured_paths_go_through_the_mounts(
    minimal: dict[str, Any], environ: dict[str, str]
) -> None:
    loaded = parse(
        minimal,
        environ,
        {"mount_path": "/warmup", "local": {"path": "w"}},
        {"mount_path": "/logs", "oss": {"path": "oss://b/l", "readOnly": False}},
        model_config={"warmup_data_path": "/warmup/a", "request_log_path": "/logs/b"},
        procserver={"state_dir": "/state"},
    )
    service = loaded.service
    assert service.model.warmup_data_path == Path("/srv/w/a")
    (logs,) = [m for m in service.storage if m.mount_path == "/logs"]
    assert service.model.request_log_path == logs.folder(Path("/state")) / "b"
    # A log folder is written, not read: nothing is copied from there.
    assert service.copies == ()
    assert any("stays in the state folder" in line for line in loaded.warnings)


def test_only_what_is_needed_is_copied(
    minimal: dict[str, Any], environ: dict[str, str], tmp_path: Path
) -> None:
    environ["PROCSERVER_ROOT"] = str(tmp_path / "empty")
    document = minimal | {
        "storage": [
            {"mount_path": MODEL_FOLDER, "oss": {"path": "oss://b/model"}},
            {"mount_path": "/unused", "oss": {"path": "oss://b/unused"}},
            {"mount_path": "/warmup", "oss": {"path": "oss://b/warmup"}},
        ],
        "model_config": {"warmup_data_path": "/warmup"},
        "warm_up_data_path": "oss://b/warm.bin",
    }
    service = config.parse(document, "/srv", environ).service
    remotes = [copy.remote.reveal() for copy in service.copies if copy.remote]
    assert remotes == ["oss://b/model", "oss://b/warmup", "oss://b/warm.bin"]
    assert service.warm_up_data_path is not None
    assert service.warm_up_data_path.name == "warm.bin"
    assert service.model_dir == service.copies[0].folder(service.state_dir)


def test_innermost_mount_counts() -> None:
    outer = Mount("/a", Path("/x"), None, False)
    inner = Mount("/a/b", Path("/y"), None, False)
    places = Places(Path("/srv"), Path("/state"), (outer, inner))
    assert places.path("/a/b/c") == Path("/y/c")
    assert places.path("/a/bc") == Path("/x/bc")
    assert places.path("rel") == Path("/srv/rel")


def test_copies_of_two_remotes_never_share_a_folder() -> None:
    mounts = [
        Mount(path, None, config.Url(url), True)
        for path in ("/a/b", "/a-b")
        for url in ("oss://b/1", "oss://b/2")
    ]
    assert len({mount.folder(Path("/s")) for mount in mounts}) == 4
